"""vaez-fast report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...system.errors import printable
from ...system.files import OutputError, reading
from ...system.progress import waiting
from .. import settings
from ..kinds import PATH
from ..metrics_table import table_of_metrics

DESCRIPTION = """\
Write DIR/report.md, DIR/report.html (one file that opens offline) and their figures: of a study
from its results.json, or of one training run from its metrics.json and checkpoint.pt. Takes
seconds, and needs no data set."""
EXAMPLE = "vaez-fast report runs/article"


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
        return show(folder, as_json=options.json)
    if (folder / "metrics.json").exists():
        return _show_run(folder, as_json=options.json)
    raise OutputError(
        f"cannot read {folder}: it holds neither a study's results.json nor a training run's "
        "metrics.json"
    )


def show(folder: Path, *, as_json: bool) -> int:
    """Write a study's report and print its findings."""
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


def _show_run(folder: Path, *, as_json: bool) -> int:
    from ...measures.evaluate import Metrics
    from ...report import run as report_run

    with waiting("drawing the report", show=True):
        trained = report_run.write(folder)
    if as_json:
        shown = {name: value for name, value in trained.record.items() if name != "curve"}
        print(json.dumps(shown, indent=1, allow_nan=False))
    else:
        print(f"{trained.title}\n")
        print("\n".join(table_of_metrics(Metrics(**trained.record["test"]), "test")))
        print(f"\nwrote {printable(folder / 'report.html')} and report.md")
    return 0
