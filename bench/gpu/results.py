"""The results of a part in DIR: its rows, its state, and its records for other tools."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu import clocks
from bench.gpu.journal import CRASHED, FAILED, Journal, Line, planned, rows
from bench.gpu.journal import this_run as since_run
from bench.gpu.parts import Part
from vaez_fast.compare import Row, record
from vaez_kernels.cases import OPS

SCHEMA = 2  # that of bench.conftest


@dataclass(frozen=True)
class Found:
    """The results of a part so far."""

    part: Part
    run: Line | None  # the line that begins the latest run; None if there was none
    rows: dict[str, Line]  # in the order they were first written
    missing: list[str]  # planned rows without a result
    problems: list[str]  # of the latest run, such as the time limit
    seconds: float | None  # of the latest run; None if it was killed
    ahead_seconds: dict[str, float]  # group → seconds to compile it ahead

    @property
    def counts(self) -> Counter[str]:
        return Counter(line["outcome"] for line in self.rows.values())

    @property
    def passed(self) -> bool:
        """Whether every row ran, and none failed or crashed."""
        return (
            self.run is not None
            and bool(self.rows)
            and not (self.missing or self.problems or self.counts[FAILED] or self.counts[CRASHED])
        )

    @property
    def state(self) -> str:
        """The state in words, for a table."""
        if self.run is None:
            return "not run"
        if self.passed:
            return "dry run" if self.run["dry_run"] else "passed"
        words = [f"{n} {outcome}" for outcome in (FAILED, CRASHED) if (n := self.counts[outcome])]
        if self.missing:
            words.append(f"{len(self.missing)} missing")
        if self.seconds is None:
            words.append("it was killed")
        return "; ".join([*words, *self.problems]) or "no rows"

    def trouble(self) -> dict[str, str]:
        """The rows that failed or crashed, and why."""
        bad = (FAILED, CRASHED)
        return {
            row: f"{line['outcome']}: {line['why']}"
            for row, line in self.rows.items()
            if line["outcome"] in bad
        }


def found(out: Path, part: Part) -> Found:
    """Read a part's journal."""
    lines = Journal(out / f"{part.name}.jsonl").lines()
    now = since_run(lines)
    ended = [line for line in now if line["kind"] == "end"]
    results = rows(lines)
    return Found(
        part=part,
        run=now[0] if now else None,
        rows=results,
        missing=[row for row in planned(lines) if row not in results],
        problems=ended[-1]["problems"] if ended else [],
        seconds=ended[-1]["seconds"] if ended else None,
        ahead_seconds={line["group"]: line["seconds"] for line in now if line["kind"] == "built"},
    )


def benchmarks(of: Found, samples: list[clocks.Sample]) -> dict[str, Any] | None:
    """The timed rows in the format of `--benchmark-json`, for `python -m bench report` and others.

    Each row's extra_info has `gpu`, the clocks while it was timed. None if there are no rows, and
    after a dry run, whose times are not measurements.
    """
    timed = [line["benchmark"] for line in of.rows.values() if line.get("benchmark")]
    if of.run is None or of.run["dry_run"] or not timed:
        return None
    for row in timed:
        load = row["extra_info"].get("load")
        if load:
            begin = load["ended"] - load["seconds"]
            row["extra_info"]["gpu"] = clocks.during(samples, begin, load["ended"])
    return {
        "machine_info": of.run["machine"],
        "benchmarks": timed,
        "datetime": datetime.fromtimestamp(of.run["time"], UTC).isoformat(),
        "schema": SCHEMA,
        "quick": False,
        "command": f"python -m bench gpu {of.part.name}",
    }


def comparison(of: Found) -> tuple[list[Row], dict[str, Any]] | None:
    """The rows of `vaez-fast compare` on CUDA, and their JSON.

    The comparison passes if all rows pass and every op has rows. None if there are no rows, and
    after a dry run.
    """
    compared = [values for line in of.rows.values() for values in line.get("comparison", ())]
    if of.run is None or of.run["dry_run"] or not compared:
        return None
    found_rows = [_row(values) for values in compared]
    content = record(found_rows, of.run["machine"])
    content["missing"] = [op for op in OPS if op not in {row.op for row in found_rows}]
    content["passed"] &= not content["missing"]
    return found_rows, content


def _row(values: dict[str, Any]) -> Row:
    # JSON has no NaN: the numbers that a failed row lacks are null and become NaN again.
    numbers = ("absolute", "relative", "ulp", "tolerance")
    lacking = {name: math.nan for name in numbers if values[name] is None}
    return Row(**(values | lacking))
