"""Journals of a part's rows and a log of GPU clocks, written without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.journal import Journal
from tests.bench.suite_record import MACHINE

ID = "00000000:1b:00.0"
SESSION = {"machine": MACHINE | {"device": "a GPU"}, "code": "c0de", "dry_run": False, "gpu": ""}

# A GPU at 1,980 MHz, throttled in the second and third sample, then idle; the last line is cut off.
SMI = """\
2026/11/25 10:00:00.000, 1980, 2619, 310.25, 45, 0x0000000000000000
2026/11/25 10:00:00.100, 1410, 2619, 699.50, 71, 0x0000000000000004
2026/11/25 10:00:00.200, 1500, 2619, [N/A], 72, 0x0000000000000044
2026/11/25 10:00:09.000, 1980, 2619, 120.00, 50, 0x0000000000000001
2026/11/25 10:00:0"""


def journal(out: Path, part: str = "ops", **session: Any) -> Journal:
    """The journal of a part, with the first line of a run."""
    begun = Journal(out / f"{part}.jsonl")
    begun.write("run", **(SESSION | session))
    return begun


def ended(of: Journal, *outcomes: tuple[str, str], problems: tuple[str, ...] = ()) -> None:
    of.write("plan", worker="0", rows=[row for row, _ in outcomes])
    for row, outcome in outcomes:
        if outcome != "missing":
            of.write("row", worker="0", id=row, outcome=outcome, why=f"why {row}", seconds=1.0)
    of.write("end", seconds=7.0, problems=problems)
