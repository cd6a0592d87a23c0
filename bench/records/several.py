"""The change of each row between two sides of several runs: see bench.records.compare.

Every run is a process of its own. The logarithm of a row's median is set against its group's
controls (code that this project does not change) in the same run: against the median of how far
each of them is from its mean over all runs. The rest differs by the noise from one process to the
next. Its variance, pooled over both sides, is uncertain with few runs, so it is combined with the
variances of all other rows (Smyth 2004, *Linear models and empirical Bayes methods for assessing
differential expression in microarray experiments*, section 6.2). The intervals hold for all rows of
ours at once with 95 % (Bonferroni), so that unchanged code is called slower or faster in at most
one comparison of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median, variance
from typing import NamedTuple

from bench.records.bootstrap import LEVEL, Estimate
from bench.records.changes import Change, accuracy, judge, unlike
from bench.records.records import Record, Row

FEWEST_RUNS = 2  # of a side, in which a row was not disturbed
MOST_FREEDOM = 1e6  # of the prior, if the variances of rows differ by chance alone

Key = tuple[str, str]  # group and provider


class Moved(NamedTuple):
    """How far a row moved: the logarithm of NEW over OLD, and what it is known from."""

    value: float
    variance: float  # from run to run
    freedom: int  # degrees of freedom of `variance`
    factor: float  # one over the number of OLD's runs, plus one over NEW's


def changes(old: Sequence[Record], new: Sequence[Record], band: float) -> list[Change]:
    """Every row of any run, in their order.

    Args:
        old, new: at least two runs each.
        band: the change in per cent that counts as none.
    """
    heights = _heights([*old, *new])
    found, moved = [], {}
    for key in dict.fromkeys((row.group, row.provider) for run in (*old, *new) for row in run.rows):
        change = _unjudged(_rows(old, key), _rows(new, key))
        sides = [
            [of_run[key] for of_run in side if key in of_run]
            for side in (heights[: len(old)], heights[len(old) :])
        ]
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


def _heights(runs: Sequence[Record]) -> list[dict[Key, float]]:
    """Of each run: the logarithms of its undisturbed rows' medians, less their controls'."""
    logs = [
        {(row.group, row.provider): math.log(row.median) for row in run.rows if not row.disturbed}
        for run in runs
    ]
    controls = {(row.group, row.provider) for run in runs for row in run.rows if not row.ours}
    means = {
        c: fmean(of_run[c] for of_run in logs if c in of_run)
        for c in controls
        if any(c in of_run for of_run in logs)
    }
    return [
        {
            key: height - _level(key, {c: of_run[c] - means[c] for c in controls if c in of_run})
            for key, height in of_run.items()
        }
        for of_run in logs
    ]


def _level(key: Key, controls: Mapping[Key, float]) -> float:
    """How slow a run was for a row, by its group's other controls, or else by all others."""
    others = {control: height for control, height in controls.items() if control != key}
    of_group = [height for (group, _), height in others.items() if group == key[0]]
    return median(of_group or others.values()) if others else 0.0


def _moved(old: list[float], new: list[float]) -> Moved:
    freedom = len(old) + len(new) - 2
    squares = (len(old) - 1) * variance(old) + (len(new) - 1) * variance(new)
    return Moved(fmean(new) - fmean(old), squares / freedom, freedom, 1 / len(old) + 1 / len(new))


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
        change, verdict=judge(ratio, band), judged="time over the controls'", ratio=ratio
    )
