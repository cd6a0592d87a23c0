"""The change of each row between two sides of several runs: see bench.records.compare.

Every run is a process of its own. A row's logarithmic time differs between runs by the state of the
machine, which its group's controls show (rows of code that this project does not change), and by
the noise of a process. So the two sides are compared by an analysis of covariance: the covariate is
how slow the controls were in the same run, and its slope is fitted within the sides. A slope near
one cancels a drift of the machine; a slope near zero leaves out controls that are noise themselves.
If the controls differ between the sides by more than chance, the machine did, as between runs of
two days that were not taken in turn. Then the slope is one.

A variance is uncertain with few runs, so it is combined with the variances of all other rows (Smyth
2004, *Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments*, section 6.2). The intervals hold for all rows of ours at once with 95 % (Bonferroni),
so that unchanged code is called slower or faster in at most one comparison of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import NamedTuple

from bench.records.bootstrap import LEVEL, Estimate
from bench.records.changes import Change, accuracy, judge, unlike
from bench.records.records import Record, Row

FEWEST_RUNS = 3  # of a side, in which a row was not disturbed
# Standard errors between the means of the controls on both sides; more are no chance.
MACHINE_DIFFERS = 3.0
MOST_FREEDOM = 1e6  # of the prior, if the variances of rows differ by chance alone

Key = tuple[str, str]  # group and provider


class Moved(NamedTuple):
    """How far a row moved: the logarithm of NEW over OLD, and what it is known from."""

    value: float
    variance: float  # from run to run
    freedom: int  # degrees of freedom of `variance`
    factor: float  # of `variance`, in the variance of `value`


class Timed(NamedTuple):
    """A row in a run."""

    row: float  # logarithm of its median
    controls: float  # how slow its controls were: logarithms, from their mean over all runs


def changes(old: Sequence[Record], new: Sequence[Record], band: float) -> list[Change]:
    """Every row of any run, in their order.

    Args:
        old, new: at least three runs each.
        band: the change in per cent that counts as none.
    """
    before, after = _timed(old, [*old, *new]), _timed(new, [*old, *new])
    found, moved = [], {}
    for key in dict.fromkeys((row.group, row.provider) for run in (*old, *new) for row in run.rows):
        change = _unjudged(_rows(old, key), _rows(new, key))
        sides = [[run[key] for run in side if key in run] for side in (before, after)]
        if not change.verdict and min(map(len, sides)) < FEWEST_RUNS:
            change = replace(change, verdict="ambiguous", note="disturbed in too many runs")
        elif not change.verdict:
            moved[key] = _moved(*sides)
        found.append(change)
    judged = sum(change.ours for change in found if not change.verdict)
    ratios = _ratios(moved, judged)
    return [
        _judged(change, ratios[change.group, change.provider], band)
        if not change.verdict
        else change
        for change in found
    ]


def _rows(runs: Sequence[Record], key: Key) -> list[Row]:
    group, provider = key
    found = [run.groups.get(group, {}).get(provider) for run in runs]
    return [row for row in found if row is not None]


def _unjudged(old: list[Row], new: list[Row]) -> Change:
    """A row's medians over the runs; its verdict is still empty if it can be compared."""
    first = (old or new)[0]
    before, after = (median(r.median for r in rows) if rows else None for rows in (old, new))
    change = Change(first.group, first.provider, first.ours, "", before, after)
    if not (old and new):
        return replace(change, verdict="vanished" if old else "appeared")
    reasons = [unlike(old[0], row) or unlike(row, new[0]) for row in (*old, *new)]
    reason = next(filter(None, reasons), "")
    if reason:
        return replace(change, verdict="unlike", note=reason)
    worst = [max(rows, key=lambda row: row.error) for rows in (old, new)]
    return replace(change, note=accuracy(*worst))


def _timed(side: Sequence[Record], runs: Sequence[Record]) -> list[dict[Key, Timed]]:
    """The undisturbed rows of each run of a side, with how slow their controls were in it."""
    means: dict[Key, list[float]] = {}
    for run in runs:
        for row in run.rows:
            if not (row.ours or row.disturbed):
                means.setdefault((row.group, row.provider), []).append(math.log(row.median))
    found = []
    for run in side:
        logs = {(r.group, r.provider): math.log(r.median) for r in run.rows if not r.disturbed}
        slow = {key: logs[key] - fmean(of_runs) for key, of_runs in means.items() if key in logs}
        found.append({key: Timed(height, _level(key, slow)) for key, height in logs.items()})
    return found


def _level(key: Key, controls: Mapping[Key, float]) -> float:
    # by its group's other controls, or else by all others
    others = {control: height for control, height in controls.items() if control != key}
    of_group = [height for (group, _), height in others.items() if group == key[0]]
    return median(of_group or others.values()) if others else 0.0


def _moved(old: list[Timed], new: list[Timed]) -> Moved:
    """An analysis of covariance with two groups and one covariate."""
    means = [
        Timed(fmean(t.row for t in side), fmean(t.controls for t in side)) for side in (old, new)
    ]
    within = [
        (t.row - mean.row, t.controls - mean.controls)
        for side, mean in zip((old, new), means, strict=True)
        for t in side
    ]
    rows, products, controls = (
        sum(product) for product in zip(*((r * r, r * c, c * c) for r, c in within), strict=True)
    )
    by_row, by_controls = (b - a for a, b in zip(*means, strict=True))
    freedom, runs = len(within) - 2, 1 / len(old) + 1 / len(new)
    if by_controls**2 >= MACHINE_DIFFERS**2 * controls / freedom * runs:
        left = rows - 2 * products + controls
        return Moved(by_row - by_controls, max(0.0, left) / freedom, freedom, runs)
    slope, freedom = products / controls, freedom - 1
    left = rows - slope * products
    factor = runs + by_controls**2 / controls
    return Moved(by_row - slope * by_controls, max(0.0, left) / freedom, freedom, factor)


def _ratios(moved: Mapping[Key, Moved], judged: int) -> dict[Key, Estimate]:
    """The ratio of each row, NEW over OLD, with an interval for all judged rows at once."""
    from scipy.stats import t

    prior, prior_freedom = prior_variance(list(moved.values()))
    found = {}
    for key, of_row in moved.items():
        freedom = of_row.freedom + prior_freedom
        pooled = (of_row.freedom * of_row.variance + prior_freedom * prior) / freedom
        tail = (1 - LEVEL) / 2 / max(1, judged)
        half = float(t.isf(tail, freedom)) * math.sqrt(pooled * of_row.factor)
        found[key] = Estimate(*(math.exp(of_row.value + x) for x in (0.0, -half, half)))
    return found


def prior_variance(moved: Sequence[Moved]) -> tuple[float, float]:
    """The variance that rows have around, and how many degrees of freedom it is worth.

    Fits the mean and the variance of the rows' logarithmic variances (Smyth 2004, section 6.2). No
    row counts whose variance is zero.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    rows = [of_row for of_row in moved if of_row.variance > 0]
    if len(rows) < 2:
        return (rows[0].variance, 1.0) if rows else (0.0, 1.0)
    half = np.array([of_row.freedom / 2 for of_row in rows])
    logs = np.log([of_row.variance for of_row in rows]) - digamma(half) + np.log(half)
    excess = float(np.var(logs, ddof=1) - np.mean(polygamma(1, half)))
    if excess <= polygamma(1, MOST_FREEDOM / 2):
        return float(np.exp(np.mean(logs))), MOST_FREEDOM
    freedom = 2 * brentq(lambda x: float(polygamma(1, x)) - excess, 1e-3, MOST_FREEDOM / 2)
    value = float(np.exp(np.mean(logs) + digamma(freedom / 2) - np.log(freedom / 2)))
    return value, freedom


def _judged(change: Change, ratio: Estimate, band: float) -> Change:
    return replace(
        change, verdict=judge(ratio, band), judged="time, given the controls'", ratio=ratio
    )
