"""What became faster or slower between runs of the suite: `python -m bench compare OLD NEW`.

Several runs a side give much sharper verdicts: `python -m bench compare OLD OLD … --new NEW NEW …`.
Their noise is measured from run to run, and the intervals hold for all rows at once
(bench.records.several). `python -m bench revisions` makes such runs.

Two single runs:

A machine drifts between two runs, and the times of all rows drift with it. So a row is judged by
its time over that of the first row of its group (eager, textbook, torch.randn), which was timed in
turn with it, round by round. The verdict is on NEW's ratio over OLD's; above 1 is slower. The
heading of a group shows how its first row changed, by drift or by a new torch. If a group has no
common first row, or the first row is ours as in training, its rows are judged by their times alone.

The 95 % interval of the ratio covers the noise of both runs' rounds (bench.records.bootstrap) and
the noise from one process to the next, which rounds do not show. The latter is the spread of the
controls: rows of code that this project does not change (compiled, careful, products), whose ratios
should all be 1. In four runs of the same code on two shared and busy cores, the ratios of controls
spread by 13 to 18 % between any two runs, and times by 16 to 82 %. With the rounds alone a third of
all rows would have been called slower or faster; with the controls it is one in ten of ours. On
such a machine only large changes can be seen; the widths of the intervals show how large.

  same       the whole interval lies within the band, 1/1.05 to 1.05: there is no larger change
  slower     the interval lies above 1, and the ratio above the band
  faster     the interval lies below 1, and the ratio below the band
  ambiguous  anything else: too noisy, disturbed by other processes, or too few rounds (a training
             run has one)
  unlike     not compared, because it was timed in another way or did not pass its check

Rows that appeared or vanished are named. Runs of different machines are refused, and so are a quick
run and a full one. Different versions of torch or triton are noted.

Exit status: 0 nothing of ours is slower, 1 a row of ours is slower or any vanished, 2 runs or rows
cannot be compared, or a file is bad.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.command import Parser
from bench.records import several
from bench.records.changes import BAND, Change, changes, control_spread
from bench.records.records import Record, RecordError, read
from bench.records.summary import time_text
from bench.timing.busy import busy_line

# In the order of the counts at the end, the most important first.
VERDICTS = ["slower", "vanished", "unlike", "faster", "ambiguous", "appeared", "same", "reference"]
MACHINE = ("device", "cpu", "threads")
VERSIONS = ("torch", "triton", "python")


def differences(runs: Sequence[Record]) -> list[str]:
    """The differences that forbid a comparison, such as "threads: 2 and 4"."""
    first, *others = runs
    return list(dict.fromkeys(text for other in others for text in _differences(first, other)))


def _differences(old: Record, new: Record) -> list[str]:
    found = [
        f"{name}: {old.machine.get(name)} and {new.machine.get(name)}"
        for name in MACHINE
        if old.machine.get(name) != new.machine.get(name)
    ]
    if old.quick != new.quick:
        names = ("a quick run" if record.quick else "a full run" for record in (old, new))
        found.append(" and ".join(names))
    return found


def exit_status(found: Sequence[Change]) -> int:
    """0 nothing of ours is slower, 1 a row of ours is slower or any vanished, 2 a row is unlike."""
    if any(alarming(change) for change in found):
        return 1
    return 2 if any(change.verdict == "unlike" for change in found) else 0


def alarming(change: Change) -> bool:
    """Whether a row vanished, or is ours and became slower."""
    return change.verdict == "vanished" or (change.verdict == "slower" and change.ours)


def notes(old: Sequence[Record], new: Sequence[Record]) -> Iterator[str]:
    """The runs, and the differences between them that do not forbid a comparison."""
    for name, runs in (("OLD", old), ("NEW", new)):
        for record in runs:
            yield f"{name}  {record.path}: {record.where()}"
            busy = busy_line(row.info for row in record.rows)
            if busy:
                yield f"{name}  {busy}"
    for version in VERSIONS:
        found = dict.fromkeys(str(record.machine.get(version)) for record in (*old, *new))
        if len(found) > 1:
            yield f"{version} differs: {' and '.join(found)}"
    copies = [[record.copy for record in runs if record.copy] for runs in (old, new)]
    if all(copies):
        first, second = map(median, copies)
        yield f"a plain copy moved {first:.1f} GB/s in OLD, {second:.1f} GB/s in NEW"
    if len(old) == 1:
        yield control_spread(old[0], new[0]).text()
    else:
        yield f"{len(old)} and {len(new)} runs; intervals of 95 % for all rows of ours at once"


def table(found: Sequence[Change]) -> Iterator[str]:
    """A block for each group, then the number of rows with each verdict, and the worst rows."""
    for title in dict.fromkeys(change.group for change in found):
        rows = [change for change in found if change.group == title]
        yield ""
        yield title + "".join(_drift(change) for change in rows if change.verdict == "reference")
        yield f"  {'provider':<27}{'old':>11}{'new':>11}   {'ratio [95 %]':<20}  verdict"
        for change in rows:
            if change.verdict != "reference":
                yield _line(change)
    yield ""
    counts = Counter(change.verdict for change in found)
    yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    for change in found:
        if alarming(change) or change.verdict == "unlike":
            yield f"{change.verdict}: {change.group}, {change.provider}"


def _drift(change: Change) -> str:
    assert change.old is not None
    assert change.new is not None
    assert change.ratio is not None
    times = f"{time_text(change.old)} → {time_text(change.new)}"
    return f"\n  first row {change.provider}: {times}, ratio {change.ratio.text()}"


def _line(change: Change) -> str:
    old, new = ("–" if t is None else time_text(t) for t in (change.old, change.new))
    ratio = change.ratio.text() if change.ratio else "–"
    note = f" ({change.note})" if change.note else ""
    by_time = " (by time alone)" if change.judged == "time" else ""
    return (
        f"  {change.provider:<27}{old:>11}{new:>11}   {ratio:<20}  {change.verdict}{by_time}{note}"
    )


def as_json(
    old: Sequence[Record],
    new: Sequence[Record],
    found: Sequence[Change],
    differing: Sequence[str],
    band: float,
) -> str:
    """The comparison as JSON for a script; missing numbers are null."""

    def row(change: Change) -> dict[str, Any]:
        values = asdict(change)
        if change.ratio is not None:
            numbers = asdict(change.ratio).items()
            values["ratio"] = {k: None if math.isnan(v) else v for k, v in numbers}
        return values

    def side(runs: Sequence[Record]) -> list[dict[str, Any]]:
        return [{"file": str(r.path), "date": r.date, "machine": r.machine} for r in runs]

    content = {
        "old": side(old),
        "new": side(new),
        "forced_over": list(differing),
        "band_percent": band,
        "controls": asdict(control_spread(old[0], new[0])) if len(old) == 1 else None,
        "rows": [row(change) for change in found],
        "verdicts": dict(Counter(change.verdict for change in found)),
        "exit_status": exit_status(found),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: see the docstring of the module."""
    parser = Parser("compare", __doc__)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="OLD and NEW, or all files of OLD"
    )
    parser.add_argument(
        "--new", type=Path, nargs="+", metavar="FILE", help="all files of NEW, three at least"
    )
    parser.add_argument(
        "--band",
        type=float,
        default=BAND,
        metavar="PERCENT",
        help=f"what counts as no change (default {BAND:g})",
    )
    parser.add_argument(
        "--groups", default="", metavar="TEXT", help="only groups whose title contains TEXT"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="compare runs of different machines, or a quick run with a full one",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    if not 0 <= options.band < math.inf:
        parser.error(f"--band must be a percentage from 0 on, got {options.band}")
    files = (options.files, options.new) if options.new else ([f] for f in options.files)
    try:
        sides = [[read(file) for file in side] for side in files]
        if len(sides) != 2 or not (
            max(map(len, sides)) == 1 or min(map(len, sides)) >= several.FEWEST_RUNS
        ):
            parser.error("expected OLD NEW, or at least three files a side: OLD … --new NEW …")
        old, new = sides
        differing = differences([*old, *new])
        if differing and not options.force:
            raise RecordError(
                f"{old[0].path} and {new[0].path} are not comparable ({'; '.join(differing)}); "
                "--force compares them nevertheless"
            )
        found = [c for c in compared(old, new, options.band) if options.groups in c.group]
        if not found:
            raise RecordError(f"--groups: no group's title contains {options.groups!r}")
    except RecordError as error:
        return parser.failed(error, 2)
    if options.json:
        print(as_json(old, new, found, differing, options.band))
    else:
        forced = [f"forced: these runs differ in what counts: {'; '.join(differing)}"] * bool(
            differing
        )
        print("\n".join([*notes(old, new), *forced, *table(found)]))
    return exit_status(found)


def compared(old: Sequence[Record], new: Sequence[Record], band: float) -> list[Change]:
    """Every row of either side, from one run each or from several."""
    if len(old) == 1:
        return changes(old[0], new[0], band)
    return several.changes(old, new, band)
