"""Times of rival functions, taken in turn, and a clock that passes them to pytest-benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.timing.cuda_times import CudaClock, Flush, Sample
from vaez_fast.system.cores import Waits

Work = Callable[[], object]

WARMUP_CALLS = 3
FEWEST_ROUNDS, MOST_ROUNDS = 11, 501
# A call is disturbed if one of our threads waited for a core for more than this share of it. Alone
# on two cores threads wait for 0 to 2 % of the time, beside a busy loop for half of it. The medians
# of undisturbed calls are the same in both cases (a product of 256 x 256: 172 µs beside a busy loop
# that sleeping threads share the cores with, 189 alone; all calls: 16 ms).
MOST_WAITING, SLACK_SECONDS = 0.05, 5e-6
MOST_TRIES = 3  # of a call that is disturbed
# PyTorch's threads spin for some milliseconds after a call, on the cores that other threads need: a
# training step of JAX takes 3.9 ms, and 7.1 right after a step of ours.
SETTLE_SECONDS = 0.01


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
    and if the host's time cannot be separated. bench.timing.cuda_times explains both. `disturbed`
    says that other processes left too few undisturbed rounds, so that these are all rounds; None if
    the system does not tell.
    """

    wall: list[float]
    device: list[float] | None = None
    disturbed: bool | None = None

    @property
    def of_the_device(self) -> list[float]:
        """`device` if it is known, else `wall`; on a CPU they are the same."""
        return self.wall if self.device is None else self.device


def interleave(
    rivals: Mapping[str, Work],
    device: torch.device,
    budget: float,
    fewest: int = FEWEST_ROUNDS,
    foreign_threads: bool = False,
) -> dict[str, Times]:
    """Times of each rival, in rounds that time every rival once and start with another rival.

    Clock rates and the load of other processes drift, but the rivals of one round run on nearly the
    same machine. A call is timed again, up to three times in all, if one of our threads had to wait
    for a core meanwhile (known on Linux). Rounds with a call that stayed disturbed are left out,
    unless fewer than `fewest` others remain.

    Args:
        rivals: functions to time; each is warmed up first.
        device: where they work.
        budget: about how many seconds the rounds may take; twice as many on a busy machine.
        fewest: rounds, even if they take longer; there are at most 501.
        foreign_threads: whether rivals use threads of other libraries than PyTorch's. Then each
            timed call comes after 10 ms of calls that are not timed, until the threads of the last
            rival no longer spin, and no call counts as disturbed, because JAX's own threads wait
            for each other.
    """
    for work in rivals.values():
        for _ in range(WARMUP_CALLS):
            work()
    clocks = _clocks(rivals, device)
    # The clocks are timed, not the work: on CUDA a round takes many calls.
    settle = SETTLE_SECONDS if foreign_threads else 0.0
    once = sum(settle + _wall_seconds(clock) for clock in clocks.values())
    wanted = min(MOST_ROUNDS, max(fewest, int(budget / once)))
    end = time.perf_counter() + 2 * budget
    names = list(rivals)
    rounds: list[dict[str, Sample]] = []
    calm: list[dict[str, Sample]] = []
    with closing(Waits()) as waits:
        while len(rounds) < wanted and (len(rounds) < fewest or time.perf_counter() < end):
            first = len(rounds) % len(names)
            taken = {}
            for name in names[first:] + names[:first]:
                _settle(clocks[name], settle)
                taken[name] = _calm_sample(clocks[name], None if foreign_threads else waits)
            rounds.append({name: sample for name, (sample, _) in taken.items()})
            if all(was_calm for _, was_calm in taken.values()):
                calm.append(rounds[-1])
        disturbed = len(calm) < fewest if waits.known and not foreign_threads else None
    kept = rounds if disturbed else calm
    return {name: _times([r[name] for r in kept], disturbed) for name in names}


def _settle(clock: Callable[[], Sample], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        clock()


def _calm_sample(clock: Callable[[], Sample], waits: Waits | None) -> tuple[Sample, bool]:
    if waits is None:
        return clock(), True
    for _ in range(MOST_TRIES):
        waits.longest()
        start = time.perf_counter()
        sample = clock()
        elapsed = time.perf_counter() - start
        if waits.longest() <= MOST_WAITING * elapsed + SLACK_SECONDS:
            return sample, True
    return sample, False


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


def _times(samples: list[Sample], disturbed: bool | None) -> Times:
    known = [sample.device for sample in samples if sample.device is not None]
    wall = [sample.wall for sample in samples]
    return Times(wall, known if len(known) == len(samples) else None, disturbed)


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
