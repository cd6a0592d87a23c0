"""The two times of a call on a GPU: the time that its caller waits, and that of the GPU alone.

They differ if launches take longer than the launched kernels: the host needs 289 µs to submit an
eager forward and backward of the latent op at 128 x 128, and the GPU a fraction of that to run it.

- Wall: the time of many calls back to back, with one wait for the GPU at the end, over the number
  of calls. The host submits a call while the GPU runs the previous one, so this is the longer of
  the host's time and the GPU's. The L2 cache holds what the previous call left there.
- Device: the time between two events around a call that starts with a cold L2 cache. The GPU runs
  the kernels of the call one after the other and never waits for the host.

Before the first event of a device time the GPU reads 256 MiB several times. This evicts from the L2
cache what earlier calls left there, and it keeps the GPU busy until the host has submitted the
whole call. Then the host asks whether the GPU has reached the first event. If so, the GPU may have
waited for the host between the events: the time is discarded, and the next try reads twice as much.
Work has no device time if it waits for the GPU, as a copy from pageable memory does, or if it
submits more than a stream holds, about 1,000 launches.

Why other methods are not used:
- Writing 256 MiB (triton.testing.do_bench) leaves modified lines in the L2 cache, which are written
  back while the timed kernel runs.
- After a wait for the GPU, the idle GPU reaches the first event at once, before the host has
  submitted the call.
- Replaying a graph (triton.testing.do_bench_cudagraph) leaves out part of the GPU's cost of a
  launch, reads from a warm cache, and cannot capture everything that is timed here. Graphs have
  their own rows.
- torch.cuda._sleep is private and counts cycles of a clock whose rate changes. The reads are needed
  anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# More than the L2 cache of any GPU so far (126 MB on a B200).
FLUSH_BYTES = 256 << 20
# About 11 ms on an H100. A stream has room for so many launches and those of the call.
MOST_READS = 128
# A loop of calls takes at least so long: its start and its end, some 20 µs, are 0.4 % of that.
LOOP_SECONDS = 5e-3


class Sample(NamedTuple):
    """Seconds of a call; `device` is None if the GPU may have waited for the host."""

    wall: float
    device: float | None


class Flush:
    """Reads of 256 MiB that allocate nothing; each writes 256 KiB of sums.

    `seconds` is the time of one read.
    """

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.zeros(FLUSH_BYTES // 4096, 1024, dtype=torch.float32, device=device)
        self._sums = torch.zeros(len(self._memory), dtype=torch.float32, device=device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.queue(2)  # warms up the launch
        start.record()
        self.queue(4)
        end.record()
        end.synchronize()
        self.seconds = start.elapsed_time(end) * 1e-3 / 4

    def queue(self, times: int) -> None:
        for _ in range(times):
            torch.sum(self._memory, 1, out=self._sums)


class CudaClock:
    """A call of this clock times one call of `work`, which must be warmed up."""

    def __init__(self, work: Callable[[], object], device: torch.device, flush: Flush) -> None:
        self._work, self._device, self._flush = work, device, flush
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._calls = self._reads = 1
        self._wall_seconds()  # finds how many calls a loop needs
        submission = self._submission()
        while self._reads < MOST_READS and self._reads * flush.seconds < submission:
            self._reads *= 2

    def __call__(self) -> Sample:
        return Sample(self._wall_seconds(), self._device_seconds())

    def _wall_seconds(self) -> float:
        while (seconds := self._loop()) < LOOP_SECONDS:
            self._calls *= 2
        return seconds / self._calls

    def _loop(self) -> float:
        torch.cuda.synchronize(self._device)
        begin = time.perf_counter()
        for _ in range(self._calls):
            self._work()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - begin

    def _submission(self) -> float:
        torch.cuda.synchronize(self._device)
        begin = time.perf_counter()
        self._work()
        seconds = time.perf_counter() - begin
        torch.cuda.synchronize(self._device)
        return seconds

    def _device_seconds(self) -> float | None:
        while self._reads <= MOST_READS:
            self._flush.queue(self._reads)
            self._start.record()
            self._work()
            self._end.record()
            all_submitted = not self._start.query()
            self._end.synchronize()
            if all_submitted:
                return self._start.elapsed_time(self._end) * 1e-3
            self._reads *= 2
        return None
