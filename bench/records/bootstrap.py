"""Intervals of medians and of their ratios, from the rounds of a run.

Rounds of a run are not independent: a neighbour that comes and goes slows many in a row (their
autocorrelation, one round apart, reaches 0.9 in committed runs). So they are resampled in blocks of
√n neighbouring rounds, taken around the end (circular block bootstrap: Politis & Romano 1992).
Rows of one group were timed in turn, round for round; they are resampled by the same rounds, so
that in a ratio of two of them what slowed both cancels.

Rounds know nothing of what differs from one process to the next, where memory lies and which cores
are busy, and that can be more than all they tell (Kalibera & Jones 2013): `widened` adds it.
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
FEWEST_ROUNDS = 8  # below, resampled medians repeat a handful of values


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, which is NaN where rounds were too few for one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def text(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class LogMedian:
    """The logarithm of a median, and of the medians of resampled rounds, (1000,) or empty."""

    value: float
    draws: NDArray[np.float64]

    def __sub__(self, other: LogMedian) -> LogMedian:
        if not (self.draws.size and other.draws.size):
            return LogMedian(self.value - other.value, np.empty(0))
        return LogMedian(self.value - other.value, self.draws - other.draws)

    def widened(self, spread: float, freedom: float) -> LogMedian:
        """With a spread of the logarithm added that was estimated with so many degrees of freedom.

        Student's t for the spread, convolved with the draws of the rounds.
        """
        t = np.random.default_rng(0).standard_t(freedom, size=self.draws.size)
        return LogMedian(self.value, self.draws + spread * t)

    def estimate(self) -> Estimate:
        """Of the median itself, or of the ratio where two were subtracted."""
        if not self.draws.size:
            return Estimate(math.exp(self.value))
        tail = 50 * (1 - LEVEL)
        low, high = np.exp(np.percentile(self.draws, [tail, 100 - tail]))
        return Estimate(math.exp(self.value), float(low), float(high))


def log_median(seconds: Sequence[float], run: int = 0) -> LogMedian:
    """Resample a row's rounds.

    Args:
        seconds: of each round, in the order they were taken.
        run: rows of the same run and as many rounds share their resampled rounds; those of
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
