"""Intervals of medians and of their ratios, from the rounds of a run.

The rounds of a run are not independent: other processes come and go and slow many rounds in a row
(the autocorrelation of neighbouring rounds reaches 0.9 in committed runs). So they are resampled in
blocks of √n neighbouring rounds, where the first round follows the last (circular block bootstrap:
Politis & Romano 1992). The rows of one group were timed in turn, round by round. They are resampled
by the same rounds, so that a disturbance of two rows cancels in their ratio.

Rounds do not show what differs from one process to the next, such as the placement of memory and
the busy cores. This can be larger than all the noise of the rounds (Kalibera & Jones 2013);
`widened` adds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_ROUNDS = 8  # with fewer, resampled medians take only a handful of values


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, which is NaN if there were too few rounds."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def text(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class LogMedian:
    """The logarithm of a median, and those of the medians of resampled rounds, (1000,) or empty."""

    value: float
    draws: NDArray[np.float64]

    def __sub__(self, other: LogMedian) -> LogMedian:
        if not (self.draws.size and other.draws.size):
            return LogMedian(self.value - other.value, np.empty(0))
        return LogMedian(self.value - other.value, self.draws - other.draws)

    def widened(self, spread: float, freedom: float) -> LogMedian:
        """The same with an added spread of the logarithm.

        Draws of Student's t with `freedom` degrees of freedom, times `spread`, are added to the
        draws of the rounds.
        """
        t = np.random.default_rng(0).standard_t(freedom, size=self.draws.size)
        return LogMedian(self.value, self.draws + spread * t)

    def estimate(self) -> Estimate:
        """The median, or after a subtraction the ratio of two medians, with its interval."""
        if not self.draws.size:
            return Estimate(math.exp(self.value))
        tail = 50 * (1 - LEVEL)
        low, high = np.exp(np.percentile(self.draws, [tail, 100 - tail]))
        return Estimate(math.exp(self.value), float(low), float(high))


def log_median(seconds: Sequence[float], run: int = 0) -> LogMedian:
    """Resample a row's rounds.

    Args:
        seconds: of each round, in the order they were taken.
        run: rows of the same run with equally many rounds share their resampled rounds; rows of
            different runs do not.
    """
    rounds = np.asarray(seconds, dtype=np.float64)
    value = math.log(float(np.median(rounds)))
    if rounds.size < FEWEST_ROUNDS:
        return LogMedian(value, np.empty(0))
    return LogMedian(value, np.log(np.median(rounds[_resampled(rounds.size, run)], axis=1)))


@lru_cache(maxsize=16)
def _resampled(count: int, run: int) -> NDArray[np.int64]:
    # (RESAMPLES, count) indices of rounds, in blocks
    generator = np.random.default_rng([count, run])
    length = math.ceil(math.sqrt(count))
    starts = generator.integers(count, size=(RESAMPLES, math.ceil(count / length), 1))
    blocks = (starts + np.arange(length)) % count
    return blocks.reshape(RESAMPLES, -1)[:, :count]
