"""The two times of a call on a GPU: what its caller waits for, and what the GPU takes by itself.

They differ where launches cost more than what they launch: an eager forward and backward of the
latent op at 128 x 128 takes the host 289 µs to submit, and the GPU a fraction of that to run.

- Wall: calls back to back and one wait for the GPU at the end, over the number of calls. The host
  submits a call while the GPU runs the one before, so it is the longer of the two times. A call
  finds in the L2 cache what the call before left there.
- Device: between two events around a call that starts with a cold L2 cache. The GPU runs the
  call's kernels as they come from a stream, one after the other, and never waits for the host.

Before the first event of a device time the GPU reads 256 MiB, several times over. That evicts from
the L2 cache what earlier calls left, and lasts until the host has submitted all of the call. Each
time the host then asks whether the first event was reached. If it was, the GPU may have waited for
the host between the events: the time is thrown away, and twice as many reads come before the next.
Work has no device time if it waits for the GPU, as a copy from pageable memory does, or submits
more than a stream holds, about 1,000 launches.

Why not another way:
- Writing 256 MiB (triton.testing.do_bench) leaves modified lines in the L2 cache, which are written
  back while the timed kernel runs.
- Waiting for the GPU before the first event lets an idle GPU reach that event at once, while the
  host has yet to submit the call.
- Replaying a graph (triton.testing.do_bench_cudagraph) leaves out part of what a launch costs the
  GPU, reads from a warm cache, and cannot capture all that is timed here. Graphs have rows of their
  own.
- torch.cuda._sleep is private and counts the cycles of a clock whose rate changes; the reads are
  needed in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# More than the L2 cache of any GPU so far (126 MB on a B200).
FLUSH_BYTES = 256 << 20
# About 11 ms on an H100. A stream has room for this many launches plus those of the call.
MOST_READS = 128
# A loop of calls takes so long at least: its launch and its end, some 20 µs, are 0.4 % of it.
LOOP_SECONDS = 5e-3


class Sample(NamedTuple):
    """Seconds of a call; `device` is None where the host could not be kept out of it."""

    wall: float
    device: float | None


class Flush:
    """Reads of 256 MiB, for which nothing is allocated; each writes 256 KiB of sums.

    `seconds` is what one takes.
    """

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.zeros(FLUSH_BYTES // 4096, 1024, dtype=torch.float32, device=device)
        self._sums = torch.zeros(len(self._memory), dtype=torch.float32, device=device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.queue(2)  # until it is launched as fast as ever
        start.record()
        self.queue(4)
        end.record()
        end.synchronize()
        self.seconds = start.elapsed_time(end) * 1e-3 / 4

    def queue(self, times: int) -> None:
        for _ in range(times):
            torch.sum(self._memory, 1, out=self._sums)


class CudaClock:
    """Times a call of `work`, which is warmed up, each time it is called."""

    def __init__(self, work: Callable[[], object], device: torch.device, flush: Flush) -> None:
        self._work, self._device, self._flush = work, device, flush
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._calls = self._reads = 1
        self._wall_seconds()  # finds out how many calls a loop needs
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
