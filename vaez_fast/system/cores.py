"""Cores that other processes use, too: how long our threads wait for one, and how to share them.

GNU's OpenMP, which PyTorch uses on Linux, lets a thread without work spin for some milliseconds.
That is fastest while the cores are ours, because the next loop starts at once. Beside a busy
process, a thread that spins holds the core that a thread with work waits for. Milliseconds of a
training step (altosaar, batch 128, two cores of an AMD EPYC):

                                  float32   bfloat16
  alone, threads spin                 3.3        2.1
  alone, threads sleep                5.5        4.2
  beside a busy loop, they spin    9 to 23     6 to 9
  beside a busy loop, they sleep      6.9        4.3
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

THREADS = Path("/proc/self/task")
INTERVAL = 0.25  # seconds between two decisions
# The share of the time for which one of our threads waits for a core. Alone on the machine it is
# below 0.02, beside a busy loop 0.28 to 0.50, whether threads spin or sleep.
SHARED, OURS = 0.10, 0.03
PATIENCE = 5.0  # seconds for which threads spin after sleeping did not help
TRIAL = 10.0  # seconds of sleeping after which spinning is tried again


class Waits:
    """How long this process's threads wait for a core, in the nanoseconds that Linux counts.

    Covers the threads that exist now. Keeps a file open for each, so `close` it.
    """

    def __init__(self, threads: Path = THREADS) -> None:
        self._files: dict[int, int] = {}  # open file → nanoseconds at the last reading
        for thread in threads.iterdir() if threads.is_dir() else ():
            with suppress(OSError):  # a kernel without the counts, or the thread has just ended
                self._files[os.open(thread / "schedstat", os.O_RDONLY)] = 0
        self.known = bool(self._files)
        self.longest()

    def longest(self) -> float:
        """Seconds that one thread waited since the last call: the thread that waited longest.

        0.0 where the system does not count them.
        """
        most = 0
        for file, before in list(self._files.items()):
            try:
                # nanoseconds on a core, nanoseconds of waiting for one, turns
                now = int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError, ValueError):  # the thread has ended
                os.close(file)
                del self._files[file]
                continue
            most = max(most, now - before)
            self._files[file] = now
        return most * 1e-9

    def close(self) -> None:
        """Close the files; all later waits are 0.0."""
        for file in self._files:
            os.close(file)
        self._files.clear()


class SharedCores:
    """Lets OpenMP's threads sleep while other processes want the cores, and spin otherwise.

    Results do not change, because the same threads do the same work. Call `done` between steps.
    Threads sleep once one of them had to wait for a core for a tenth of an interval. They spin
    again when the cores are free, for five seconds if sleeping made the steps slower, and every ten
    seconds for an interval, to compare.
    """

    def __init__(
        self,
        open_waits: Callable[[], Waits] = Waits,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._open_waits, self._clock = open_waits, clock
        self._waits: Waits | None = None
        self._sleep: _Sleep | None = None
        self._spinning = 0.0  # steps a second before threads slept; 0 once compared
        self._spin_until, self._sleep_until = -1.0, 0.0
        self._began, self._steps = 0.0, 0

    @property
    def sleeping(self) -> bool:
        """Whether threads without work sleep now."""
        return self._sleep is not None

    def done(self, steps: int = 1) -> None:
        """Count `steps`. After an interval, decide whether threads sleep."""
        self._steps += steps
        if self._waits is None:
            self._begin_interval()
        elapsed = self._clock() - self._began
        if elapsed >= INTERVAL and self._waits is not None and self._waits.known:
            self._decide(self._waits.longest() / elapsed, self._steps / elapsed)
            self._begin_interval()

    def _begin_interval(self) -> None:
        if self._waits is not None:
            self._waits.close()
        self._waits = self._open_waits()  # anew, because threads come and go
        self._began, self._steps = self._clock(), 0

    def _decide(self, share: float, speed: float) -> None:
        now = self._clock()
        if self._sleep is None:
            if share > SHARED and now >= self._spin_until and torch.get_num_threads() > 1:
                self._sleep, self._spinning = _Sleep(), speed
                self._sleep_until = now + TRIAL
            return
        helps = speed >= self._spinning
        self._spinning = 0.0
        if not helps:
            self._spin_until = now + PATIENCE
        if not helps or share < OURS or now >= self._sleep_until:
            self._wake()

    def _wake(self) -> None:
        if self._sleep is not None:
            self._sleep.end()
            self._sleep = None

    def close(self) -> None:
        """Let threads spin, and stop watching."""
        self._wake()
        if self._waits is not None:
            self._waits.close()
            self._waits = None


class _Sleep:
    """Until `end`, OpenMP's threads sleep almost at once when they have no work.

    They do so where there are more of them than cores. Here is a second team, which never works.
    """

    def __init__(self) -> None:
        self._ended, ready = threading.Event(), threading.Event()

        def hold_a_team() -> None:
            torch.ones(1 << 18).add_(1)  # large enough to start a team
            ready.set()
            self._ended.wait()  # its team ends with this thread

        self._thread = threading.Thread(target=hold_a_team, daemon=True)
        self._thread.start()
        ready.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
