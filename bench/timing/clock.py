"""Times of rival functions, taken in turn, and a clock that passes them to pytest-benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.timing.cuda_times import CudaClock, Flush, Sample

Work = Callable[[], object]

WARMUP_CALLS = 3
FEWEST_ROUNDS, MOST_ROUNDS = 11, 501


def available_device() -> torch.device:
    """Where the suite runs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DeviceClock:
    """A clock that moves only by `advance`: pytest-benchmark records times measured elsewhere.

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


def record_rounds(benchmark: Any, seconds: list[float]) -> None:
    """Record `seconds`, one for each round, as the result of a test whose timer is `CLOCK`."""
    rounds = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(rounds)), rounds=len(seconds))


@dataclass(frozen=True)
class Times:
    """Seconds of a call, one for each round.

    `wall` is the time that a caller waits. `device` is the time of the GPU alone; None on a CPU,
    and if the host's time cannot be separated. bench.timing.cuda_times explains both.
    """

    wall: list[float]
    device: list[float] | None = None

    @property
    def of_the_device(self) -> list[float]:
        """`device` if it is known, else `wall`; on a CPU they are the same."""
        return self.wall if self.device is None else self.device


def interleave(
    rivals: Mapping[str, Work], device: torch.device, budget: float, fewest: int = FEWEST_ROUNDS
) -> dict[str, Times]:
    """Times of each rival, in rounds that time every rival once and start with another rival.

    Clock rates and the load of other processes drift, but the rivals of one round run on nearly the
    same machine.

    Args:
        rivals: functions to time; each is warmed up first.
        device: where they work.
        budget: about how many seconds the rounds may take.
        fewest: rounds, even if they take longer; there are at most 501.
    """
    for work in rivals.values():
        for _ in range(WARMUP_CALLS):
            work()
    clocks = _clocks(rivals, device)
    # The clocks are timed, not the work: on CUDA a round takes many calls.
    once = sum(_wall_seconds(clock) for clock in clocks.values())
    rounds = min(MOST_ROUNDS, max(fewest, int(budget / once)))
    names = list(rivals)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(clocks[name]())
    return {name: _times(of_one) for name, of_one in samples.items()}


def _clocks(rivals: Mapping[str, Work], device: torch.device) -> dict[str, Callable[[], Sample]]:
    if device.type == "cuda":
        flush = Flush(device)
        return {name: CudaClock(work, device, flush) for name, work in rivals.items()}
    return {name: partial(_cpu_sample, work) for name, work in rivals.items()}


def _cpu_sample(work: Work) -> Sample:
    return Sample(_wall_seconds(work), None)


def _wall_seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _times(samples: list[Sample]) -> Times:
    known = [sample.device for sample in samples if sample.device is not None]
    wall = [sample.wall for sample in samples]
    return Times(wall, known if len(known) == len(samples) else None)


def how_timed(device: torch.device) -> str:
    if device.type == "cuda":
        return "wall clock of calls back to back; device: CUDA events, cold L2"
    return "wall clock"


def copy_bandwidth(device: torch.device, quick: bool) -> float:
    """Bytes read plus written a second by a plain copy of 256 MiB (64 MiB when quick)."""
    size = (64 if quick else 256) << 20
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, device, 0.5)["copy"]
    return 2 * size / median(times.of_the_device)


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Peak of the bytes that a warm call allocates; None if it is unknown."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most if events else None
