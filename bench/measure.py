"""Times of rival functions, taken in turn, and a clock that hands them to pytest-benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Work = Callable[[], object]

WARMUP_CALLS = 3
FEWEST_ROUNDS, MOST_ROUNDS = 11, 501
# Zeroed before each timed call on a GPU, so that it starts with a cold L2 cache (50 MB on an H100).
FLUSH_BYTES = 256 << 20


def available_device() -> torch.device:
    """Where the suite runs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DeviceClock:
    """A clock that moves only when told to: pytest-benchmark records what was measured elsewhere.

    Given to a test as `@pytest.mark.benchmark(timer=CLOCK)`.
    """

    __name__ = "device_clock"  # what the JSON calls the timer

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = DeviceClock()


def replay(benchmark: Any, seconds: list[float]) -> None:
    """Record `seconds`, one round each, as the result of a test that is timed by `CLOCK`."""
    rounds = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(rounds)), rounds=len(seconds))


def interleave(
    rivals: Mapping[str, Work], device: torch.device, budget: float, fewest: int = FEWEST_ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each rival, in rounds that call every rival once and start with another each time.

    In turn, because clocks and neighbours drift: a ratio within one round sees the same machine.

    Args:
        rivals: functions to time; each is warmed up first.
        device: CUDA takes events and a flushed L2 cache, the CPU the wall clock.
        budget: about how many seconds the rounds may take.
        fewest: rounds, whatever they take; there are never more than 501.
    """
    timed = _cuda_timer(device) if device.type == "cuda" else _wall_timer
    for work in rivals.values():
        for _ in range(WARMUP_CALLS):
            work()
    # On CUDA without waiting, `once` would be the time to submit: far less than a round takes.
    once = sum(_wall_timer(lambda: timed(work)) for work in rivals.values())  # noqa: B023
    rounds = max(fewest, min(MOST_ROUNDS, int(budget / once)))
    names = list(rivals)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(rivals[name]))
    return seconds


def _wall_timer(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_timer(device: torch.device) -> Callable[[Work], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(work: Work) -> float:
        # No synchronisation between flush and start: on an idle GPU the start event would fire
        # while Python is still submitting, and host time would land in the interval.
        flush.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return timed


def how_timed(device: torch.device) -> str:
    return "CUDA events, cold L2" if device.type == "cuda" else "wall clock"


def copy_bandwidth(device: torch.device, quick: bool) -> float:
    """Bytes read plus written a second by a plain copy of 256 MiB (64 MiB when quick)."""
    size = (64 if quick else 256) << 20
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, device, 0.5)["copy"]
    return 2 * size / median(seconds)


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Bytes that a (warm) call allocates on top of what is held before it; None where unknown."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most if events else None
