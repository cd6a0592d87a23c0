"""How the rows of the suite developed: `python -m bench history REPORTS --out DIR`.

Reads every JSON file under REPORTS that has a time and a machine. For each run of the suite it
draws how many times as fast each of our rows was as the first row of its group, a ratio that runs
on different machines have in common. The times of other files are in a table. Writes report.md,
its figures, and report.html, a single file that opens without a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import Parser
from bench.records import figures
from bench.records.records import (
    Record,
    RecordError,
    family,
    load,
    machine_text,
    parse,
    part_of_name,
    reference_of,
    revision_of,
)
from bench.records.report import write_page
from bench.records.summary import time_text
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text
from vaez_fast.system.errors import first_line
from vaez_fast.system.files import OutputError


@dataclass(frozen=True)
class Timing:
    """A time in a file that is no run of the suite."""

    file: str
    date: str  # "–" if the file has none
    machine: dict[str, Any]
    what: str


def collect(folder: Path) -> tuple[list[Record], list[Timing], list[str]]:
    """The runs of the suite under `folder` by date, other times, and the files that are neither.

    Raises:
        RecordError: there is no such folder, or no run of the suite in it.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; expected one with the suite's JSON files")
    records, timings, silent = [], [], []
    for path in sorted(folder.rglob("*.json")):
        content = load(path)
        if isinstance(content, dict) and "benchmarks" in content:
            records.append(parse(path, content))
            continue
        name = path.relative_to(folder).as_posix()
        try:
            timing = _timing(name, content)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RecordError(
                f"{path}: tells no time ({first_line(error)}); expected what a command wrote"
            ) from error
        if timing is None:
            silent.append(name)
        else:
            timings.append(timing)
    if not records:
        raise RecordError(f"{folder}: holds no run of the suite; expected bench.json in it")
    return sorted(records, key=lambda record: record.date), timings, silent


def _timing(file: str, content: Any) -> Timing | None:
    # By the content of a file, because one folder holds many kinds.
    match content:
        case {"environment": {"device": _, "threads": _} as machine}:
            pass
        case _:
            return None
    match content:
        case {"mean_train_seconds": ours, "target": target, "textbook_over_ours": ratio}:
            what = (
                f"training to log p(x) {target} nats: {ours:.1f} s, textbook {ratio:.0f} × as long"
            )
        case {"mean_train_seconds": ours, "target": target}:
            what = f"training to log p(x) {target} nats: {ours:.1f} s"
        case {"arm": arm, "config": {"model": model}, "speed": {"train_seconds": s, "steps": n}}:
            what = f"training {model}, {arm}, {n:,} steps: {s:.1f} s, {time_text(s / n)} a step"
        case {"model": model, "batch_size": batch, "seconds": dict(profiles)}:
            steps = (f"{name} {time_text(part['step'])}" for name, part in profiles.items())
            what = f"a step of {model}, batch {batch}: {', '.join(steps)}"
        case {"models": [*models]} if all("seconds" in model for model in models):
            told = (f"{m['model']} {m['seconds']:.0f} s" for m in models)
            what = f"log p(x) of {models[0]['images']:,} images: {', '.join(told)}"
        case {"config": {"model": model}, "runs": [{"train_seconds": _}, *_] as runs}:
            total = sum(run["train_seconds"] for run in runs)
            what = f"{len(runs)} trainings of {model}: {total / 60:.0f} min together"
        case {"rows": {"batch": [*points]}}:
            told = (
                f"{p['batch']:,}: {p['seconds']['textbook'] / p['seconds']['engine']:.2f}"
                for p in points
                if {"textbook", "engine"} <= p["seconds"].keys()
            )
            what = f"a step, textbook over ours, by batch: {', '.join(told)}"
        case _:
            return None
    return Timing(file, str(content.get("date", "–")), machine, what)


def key_groups(records: Sequence[Record]) -> list[str]:
    """Groups to draw: those whose first row is not ours. A group of the forward alone is drawn only
    if there is no group of forward and backward."""
    titles = dict.fromkeys(title for record in records for title in record.groups)

    def drawn(title: str) -> bool:
        first = [reference_of(r.groups[title]) for r in records if title in r.groups]
        both = title.replace(", forward,", ", forward+backward,")
        return not first[0].ours and (both == title or both not in titles)

    return [title for title in titles if drawn(title)]


def draw(
    records: Sequence[Record], timings: Sequence[Timing], silent: Sequence[str], folder: Path
) -> tuple[list[Block], dict[str, bytes]]:
    """The blocks of the page, and its pictures by file name."""
    pictures: dict[str, bytes] = {}
    return list(_blocks(records, timings, silent, folder, pictures)), pictures


def _blocks(
    records: Sequence[Record],
    timings: Sequence[Timing],
    silent: Sequence[str],
    folder: Path,
    pictures: dict[str, bytes],
) -> Iterator[Block]:
    yield Heading(1, "How the benchmarks developed")
    yield Text(
        f"{len(records)} runs of the suite, by date. The figures show how many times as fast each "
        "of our rows was as the first row of its group (eager, textbook, torch.randn) in the same "
        "run, with the 95 % interval of the run's rounds. Times cannot be compared between "
        "machines, and they drift on one machine. Ratios drift less, but they also change with the "
        "machine and with torch. So compare only runs of one machine and one torch, with python -m "
        "bench compare."
    )
    yield Table(
        ("run", "date", "machine", "threads", "torch", "triton", "revision", "rows", "file"),
        [_run(i, record, folder) for i, record in enumerate(records)],
    )
    families: dict[str, list[str]] = {}
    for title in key_groups(records):
        families.setdefault(family(title), []).append(title)
    for name, titles in families.items():
        yield Heading(2, name.capitalize())
        file = f"history-{part_of_name(name)}.png"
        pictures[file] = figures.strips(records, titles, name)
        yield Figure(file, f"{name.capitalize()}: our rows, run after run.")
        yield _ratios(records, name)
    yield Heading(2, "Times in other files")
    yield Text("These are times, not ratios: compare only those of one machine.")
    yield Table(
        ("file", "date", "machine", "torch", "revision", "what"),
        [
            (
                *(t.file, t.date, machine_text(t.machine)),
                *(str(t.machine.get("torch")), revision_of(t.machine), t.what),
            )
            for t in timings
        ],
    )
    if silent:
        yield Text(f"These tell no time, or no machine: {', '.join(silent)}.")


def _run(i: int, record: Record, folder: Path) -> tuple[str, ...]:
    machine = record.machine
    return (
        *(str(i + 1), record.date[:16].replace("T", " "), str(machine["device"])),
        *(str(machine["threads"]), str(machine["torch"]), str(machine["triton"])),
        *(record.revision + (" (quick)" if record.quick else ""), str(len(record.rows))),
        record.path.relative_to(folder).as_posix(),
    )


def _ratios(records: Sequence[Record], name: str) -> Table:
    # All groups of the family, drawn or not; one column for each run that has one of them.
    runs = [i for i, r in enumerate(records) if any(family(title) == name for title in r.groups)]
    keys = dict.fromkeys(
        (title, row.provider)
        for record in records
        for title, group in record.groups.items()
        for row in group.values()
        if family(title) == name and row.ours
    )
    rows = []
    for title, provider in keys:
        cells = [title.partition(", ")[2] or title, provider]
        for i in runs:
            group = records[i].groups.get(title, {})
            row = group.get(provider)
            cells.append("–" if row is None else figures.speed_up(row, group).text())
        rows.append(tuple(cells))
    return Table(("group", "provider", *(f"run {i + 1}" for i in runs)), rows)


def write(folder: Path, out: Path) -> None:
    """Read `folder` and write report.md, report.html and the figures into `out`.

    Raises:
        RecordError: there is no run of the suite, or a file cannot be read.
        OutputError: `out` cannot be written.
    """
    records, timings, silent = collect(folder)
    write_page(out, *draw(records, timings, silent, folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the output failed, 2 a file or the folder is bad."""
    parser = Parser("history", __doc__)
    parser.add_argument("folder", type=Path, metavar="REPORTS", help="searched with its subfolders")
    parser.add_out_folder()
    options = parser.parse_args(argv)
    try:
        write(options.folder, options.out)
    except (RecordError, OutputError) as error:
        return parser.failed(error, 2 if isinstance(error, RecordError) else 1)
    print(f"wrote {options.out / 'report.html'}, report.md and their figures")
    return 0
