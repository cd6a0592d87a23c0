"""Means over seeds with 95 % t-intervals; differences between arms are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """mean ± half is a 95 % t-interval of `count` values."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def text(self, digits: int = 2) -> str:
        mean = round(self.mean, digits) + 0.0  # no −0.00
        return f"{mean:.{digits}f} ± {self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of values, which are taken as independent normal draws.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import t

    count = len(values)
    if count < 2:
        raise ValueError(f"interval: at least two values are needed, got {count}")
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = float(t.ppf(0.5 + LEVEL / 2, count - 1))
    return Interval(mean, quantile * math.sqrt(variance / count), count)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The interval of the differences first − second; arms of one seed share data and noise."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


def one_sided_p(values: Sequence[float], target: float) -> float:
    """p-value of the t-test with the null that the values' expectation is at most `target`.

    Raises:
        ValueError: fewer than two values.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2:
        raise ValueError(f"one_sided_p: at least two values are needed, got {len(values)}")
    return float(ttest_1samp(values, target, alternative="greater").pvalue)
