"""A part's processes: started, watched, stopped at the limit, and started again after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.journal import Journal
from bench.process import ROOT, environment

# pytest's exit statuses of a finished run: all passed, some failed, no rows to run.
FINISHED = (0, 1, 5)
# Exit status of a worker that lost its CUDA device. It has already recorded the rows it lost.
LOST = 86
# Time for a stopped process to write its log; its rows are on the disk already.
GRACE_SECONDS = 5.0
# A process without a new line in its log for so long hangs, in a kernel or in a compiler.
STALL_SECONDS = 150.0


@dataclass(frozen=True)
class Outcome:
    """How a process ended; `status` is None if we stopped it, and `why` says the reason."""

    status: int | None
    why: str
    at_the_limit: bool = False

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def run(
    command: Sequence[str],
    log: Path,
    deadline: float,
    stall: float = STALL_SECONDS,
    threads: int | None = None,
) -> Outcome:
    """Run Python with `command` at the root of the repository, at most until `deadline`.

    Args:
        command: the arguments of Python.
        log: its output is appended to this file.
        deadline: when it is stopped, a time of the monotonic clock.
        stall: it is also stopped after so many seconds without output.
        threads: of its matrix products on the CPU; None for all cores.
    """
    variables = environment()
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take three quarters of the GPU
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    with log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its compilers are stopped with it
        )
    try:
        return _watched(process, log, deadline, stall)
    finally:
        _stop(process)


def _watched(process: subprocess.Popen[bytes], log: Path, deadline: float, stall: float) -> Outcome:
    size, moved = -1, time.monotonic()
    while True:
        now = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(timeout=min(0.5, max(0.01, deadline - now)))
            return Outcome(status, _ended(status))
        now = time.monotonic()
        if now >= deadline:
            return Outcome(None, "cut off at the time limit", at_the_limit=True)
        if log.stat().st_size != size:
            size, moved = log.stat().st_size, now
        elif now - moved > stall:
            return Outcome(None, f"it said nothing for {stall:.0f} s")


def _ended(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS)
    with suppress(ProcessLookupError):  # compilers may still run
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def workers(
    command: Sequence[str],
    journal: Journal,
    logs: Path,
    names: Sequence[str],
    deadline: float,
) -> list[str]:
    """Run the rows in one process for each name; returns what went wrong with the processes.

    A row that ends its process is recorded as crashed, and a new process runs the remaining rows.
    """
    threads = None if len(names) == 1 else max(1, (os.cpu_count() or 1) // len(names))

    def work(i: int) -> str | None:
        worker = names[i]
        share = ["--worker", worker, "--share", f"{i}/{len(names)}"]
        while True:
            log = logs / f"{worker}.txt"
            outcome = run([*command, *share], log, deadline, threads=threads)
            if outcome.finished:
                return None
            if outcome.at_the_limit:
                return outcome.why
            if outcome.status != LOST and not journal.crash(worker, outcome.why):
                return f"{worker}: {outcome.why}; see {worker}.txt"

    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        found = pool.map(work, range(len(names)))
        return list(dict.fromkeys(why for why in found if why is not None))
