"""vaez-fast report."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from ...system.errors import printable
from ...system.files import OutputError, read_json, reading
from ...system.progress import waiting
from .. import settings
from ..kinds import PATH
from ..metrics_table import table_of_metrics

DESCRIPTION = """\
Write DIR/report.md, DIR/report.html (one file that opens offline) and their figures: of a study
from its results.json, or of one training run from its metrics.json and checkpoint.pt. The pages of
a sweep are DIR/sweep.md and DIR/sweep.html, those of remedies DIR/remedies.md and
DIR/remedies.html. Takes seconds, and needs no data set."""
EXAMPLE = "vaez-fast report runs/article"

# Records of a table, by kind: the module of vaez_fast.report that draws it.
TABLES = {"vaez-fast sweep": "sweep", "vaez-fast remedies": "remedies"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=PATH, metavar="DIR", help="the folder of a study or of a training run"
    )
    output = parser.add_argument_group("output")
    settings.add_json(
        output, "a study's verdicts and means with intervals, or a run's test metrics and speed"
    )


def run(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if (folder / "results.json").exists():
        kind = read_json(folder / "results.json").get("kind")
        if isinstance(kind, str) and kind in TABLES:
            return show_table(folder, TABLES[kind], as_json=options.json)
        return show(folder, as_json=options.json)
    if (folder / "metrics.json").exists():
        return _show_run(folder, as_json=options.json)
    raise OutputError(
        f"cannot read {folder}: it holds neither a study's results.json nor a training run's "
        "metrics.json"
    )


def show(folder: Path, *, as_json: bool) -> int:
    """Write the report of the article's study and print its findings."""
    from ...report import article as report

    with waiting("drawing the report", show=True):
        found = report.write(folder)
    if as_json:
        with reading(folder / "results.json", "article"):
            text = json.dumps(report.summary(*found), indent=1, allow_nan=False)
        print(text)
    else:
        print("\n".join(map(printable, report.lines(*found))))
        print(f"wrote {printable(folder / 'report.html')} and report.md")
    return 0


def show_table(folder: Path, name: str, *, as_json: bool) -> int:
    """Write the report of a sweep or of remedies, and print its sentences and its table."""
    from ...drawing.page import plain

    report = importlib.import_module(f"vaez_fast.report.{name}")
    with waiting("drawing the report", show=True):
        results = report.write(folder)
    if as_json:
        print(json.dumps(results, indent=1, allow_nan=False))
    else:
        with reading(folder / "results.json", name):
            lines = [*report.sentences(results), "", *plain(report.table(results)), ""]
        print("\n".join(map(printable, lines)))
        print(f"wrote {printable(folder / f'{name}.html')} and {name}.md")
    return 0


def _show_run(folder: Path, *, as_json: bool) -> int:
    from ...measures.evaluate import Metrics
    from ...report import run as report_run

    with waiting("drawing the report", show=True):
        trained = report_run.write(folder)
    if as_json:
        shown = {name: value for name, value in trained.record.items() if name != "curve"}
        print(json.dumps(shown, indent=1, allow_nan=False))
    else:
        test = Metrics(**trained.record["test"])
        print(f"{trained.title}\n")
        print("\n".join(table_of_metrics(trained.config, test, "test")))
        print(f"\nwrote {printable(folder / 'report.html')} and report.md")
    return 0
