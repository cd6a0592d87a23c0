"""DIR/PART.jsonl, the results of a part so far: a JSON line for each event, written at once.

Several processes append to the file. The kinds of lines:

- "run": a run begins: its machine, its code, whether it is a dry run;
- "plan": the rows that a worker has to do in this run;
- "begin": the rows that are lost if the worker's process ends now;
- "built": a group of rows whose kernels are compiled;
- "row": the outcome of a row and its numbers; the last line of a row counts;
- "end": the run ended, with the problems of its processes, such as the time limit.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]

PASSED, SKIPPED, FAILED, CRASHED, DRY = "passed", "skipped", "failed", "crashed", "dry run"
# These hold for later runs, too. The next run repeats rows that failed or crashed.
FINAL_OUTCOMES = (PASSED, SKIPPED, DRY)


class Journal:
    """The lines of one part."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **values: Any) -> None:
        """Append a line and wait until it is on the disk; NaN and infinity become null."""
        line = json.dumps(_finite({"kind": kind, "time": time.time()} | values)) + "\n"
        # One write to a file opened for appending does not mix with lines of other processes.
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if _ends_in_half_a_line(handle):
                line = "\n" + line
            data = line.encode()
            written = os.write(handle, data)
            if written != len(data):
                raise OSError(
                    errno.ENOSPC, f"only {written} of {len(data)} bytes fit", str(self.path)
                )
            os.fsync(handle)
        finally:
            os.close(handle)

    def lines(self) -> list[Line]:
        """All lines, oldest first, without those that a kill or a full disk cut short."""
        lines = []
        text_of_all = self.path.read_text(errors="replace") if self.path.exists() else ""
        for text in text_of_all.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "kind" in line:
                lines.append(line)
        return lines

    def crash(self, worker: str, why: str) -> list[str]:
        """Record the rows that a worker lost as crashed, and return them."""
        lines = this_run(self.lines())
        begun = [line for line in lines if line["kind"] == "begin" and line["worker"] == worker]
        ended = {line["id"] for line in lines if line["kind"] == "row"}
        lost = [row for row in begun[-1]["rows"] if row not in ended] if begun else []
        for row in lost:
            self.write("row", worker=worker, id=row, outcome=CRASHED, why=why)
        return lost


def _ends_in_half_a_line(handle: int) -> bool:
    """Whether a kill or a full disk cut the last line, so that a new line must not continue it."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def _finite(value: Any) -> Any:
    # JSON has neither NaN nor infinity
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def this_run(lines: list[Line]) -> list[Line]:
    """The lines from the latest "run" line on."""
    starts = [i for i, line in enumerate(lines) if line["kind"] == "run"]
    return lines[starts[-1] :] if starts else []


def rows(lines: Iterable[Line]) -> dict[str, Line]:
    """Each row's last line."""
    return {line["id"]: line for line in lines if line["kind"] == "row"}


def settled(lines: list[Line]) -> set[str]:
    """The rows that this run need not do: they have a final outcome, or this run did them."""
    lasting = {row for row, line in rows(lines).items() if line["outcome"] in FINAL_OUTCOMES}
    return lasting | set(rows(this_run(lines)))


def planned(lines: list[Line]) -> list[str]:
    """The rows of all plans, in order and without repetitions."""
    return list(
        dict.fromkeys(row for line in lines if line["kind"] == "plan" for row in line["rows"])
    )
