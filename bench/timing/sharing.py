"""Times of steps alone on the machine and beside a busy process, which is started for it.

Steps beside a busy process take turns with it in time slices of milliseconds: most are fast, some
very slow. So a round is the mean of all steps in half a second, after a lead-in for code that
adapts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from statistics import median
from typing import NamedTuple

from bench.timing.building import Built
from bench.timing.clock import FEWEST_ROUNDS, Work
from bench.timing.rows import Group
from vaez_fast.system.cores import SharedCores

ROUNDS, QUICK_ROUNDS = FEWEST_ROUNDS, 1
TIMING = "means of half a second, beside a busy process"
NO_GPU = "on a GPU the host's threads only launch"
ROUND_SECONDS, LEAD_IN_SECONDS = 0.5, 0.6
# Ends with the process that started it, however that ends.
BUSY = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    sum(range(100_000))
"""


class Shared(NamedTuple):
    """Seconds of a step, the mean of each round."""

    alone: list[float]
    beside: list[float]


def shared_group(title: str, built: Built, adapting: str, quick: bool) -> Group:
    """A group that was timed alone and beside a busy process.

    Args:
        title: of the group.
        built: its rivals; a call of each is a step.
        adapting: the start of the names of those that share cores as our training loop does.
        quick: whether few rounds are enough.
    """
    works = {
        name: rival.work
        for name, rival in built.rivals.items()
        if rival.work is not None and rival.check.passed
    }
    times = alone_and_beside(
        works, lambda name: name.startswith(adapting), QUICK_ROUNDS if quick else ROUNDS
    )
    for name, of_one in times.items():
        built.rivals[name].notes["alone_seconds"] = median(of_one.alone)
        built.rivals[name].work = None  # it was timed here
    return Group(
        title,
        built.rivals,
        built.unavailable,
        floor_bytes=None,
        broken=built.broken,
        timing=TIMING,
        seconds={name: of_one.beside for name, of_one in times.items()},
    )


def alone_and_beside(
    steps: Mapping[str, Work], adapting: Callable[[str], bool], rounds: int
) -> dict[str, Shared]:
    """Times of each kind of step in turn, first alone, then beside a process that is always busy.

    Args:
        steps: name → one step.
        adapting: whether a kind of step is run as our training loop runs it, with `SharedCores`.
        rounds: of each kind, alone and beside.
    """
    alone = _in_turn(steps, adapting, rounds)
    with busy_process():
        beside = _in_turn(steps, adapting, rounds)
    return {name: Shared(alone[name], beside[name]) for name in steps}


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that keeps one core busy during the block."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def _in_turn(
    steps: Mapping[str, Work], adapting: Callable[[str], bool], rounds: int
) -> dict[str, list[float]]:
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_mean(steps[name], adapting(name)))
    return seconds


def _mean(step: Work, adapts: bool) -> float:
    with closing(SharedCores()) as cores:
        for length in (LEAD_IN_SECONDS, ROUND_SECONDS):
            start, taken = time.perf_counter(), 0
            while time.perf_counter() < start + length:
                step()
                taken += 1
                if adapts:
                    cores.done()
    return (time.perf_counter() - start) / taken
