"""What a study and the theory say about each rule: a statistic with its tests, and facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from ..measures.intervals import Interval, inside_p, interval, outside_p
from ..theory.sampling import WITHIN_95, fit_kl_sd
from .readings import QUANTITIES, SEPARATE, SIMULTANEOUS, Results, shape_gain, values
from .rules import Rule


@dataclass(frozen=True)
class Evidence:
    """The evidence on one rule.

    Attributes:
        mean: of the statistic.
        statistic: its mean and interval, as the report shows them.
        inside_p: p-value of the null that the expectation is outside the rule's range.
        outside_p: p-value of the null that it is inside.
        words: further numbers for the rule's sentence, by their name in it.
    """

    mean: float
    statistic: str
    inside_p: float
    outside_p: float
    words: dict[str, str] = field(default_factory=dict)


def evidence(rule: Rule, results: Results, theory: dict[str, Any]) -> Evidence:
    """The evidence that a rule asks for.

    Args:
        results: the content of a study's results.json.
        theory: the record of `vaez_fast.theory.record.compute`.

    Raises:
        ValueError: a rule that names an unknown quantity or test.
    """
    if rule.test == "expectation":
        return _of_expectation(rule, theory)
    if rule.test != "seeds" or rule.quantity not in QUANTITIES:
        raise ValueError(f"rule {rule.name!r}: unknown test or quantity")
    return _of_seeds(rule, results)


def _of_seeds(rule: Rule, results: Results) -> Evidence:
    first = values(results, rule.arm, QUANTITIES[rule.quantity])
    second = [0.0] * len(first)
    if rule.minus or rule.minus_quantity:
        read = QUANTITIES[rule.minus_quantity or rule.quantity]
        second = values(results, rule.minus or rule.arm, read)
    unit = _null_spread(results) if rule.unit == "null-spread" else 1.0
    differences = [(a - b) / unit for a, b in zip(first, second, strict=True)]
    found = interval(differences)
    return Evidence(
        found.mean,
        found.text(),
        inside_p(differences, rule.low, rule.high),
        outside_p(differences, rule.low, rule.high),
        {
            "first": interval(first).text(),
            "second": interval(second).text(),
            "shape_gain": interval(values(results, rule.arm, shape_gain)).text(),
        },
    )


def _null_spread(results: Results) -> float:
    beside = results["beside"]
    return float(fit_kl_sd(np.array([float(beside["n"])]), beside["latent"])[0])


def _of_expectation(rule: Rule, theory: dict[str, Any]) -> Evidence:
    """z-tests at every point: inside only if inside at all of them (intersection–union).

    The p-value against "inside" is the smallest one over the points, times their number.
    """
    found = theory["monte_carlo_kl"]
    off = np.array(found["off"])
    errors = np.array(found["half_interval"]) / WITHIN_95
    points = [
        _z_test(value, error, rule.low, rule.high)
        for value, error in zip(off.tolist(), errors.tolist(), strict=True)
    ]
    worst = int(np.abs(off).argmax())
    return Evidence(
        float(off[worst]),
        Interval(float(abs(off[worst])), float(found["half_interval"][worst]), 2).text(),
        max(inside for inside, _ in points),
        min(1.0, len(points) * min(outside for _, outside in points)),
        {"points": str(found["points"])},
    )


def _z_test(value: float, error: float, low: float, high: float) -> tuple[float, float]:
    # p-values of "outside" and of "inside" [low, high] as nulls
    if error == 0.0:
        inside = low <= value <= high
        return (0.0, 1.0) if inside else (1.0, 0.0)
    above, below = _upper_tail((value - low) / error), _upper_tail((high - value) / error)
    outside = 2.0 * min(_upper_tail((low - value) / error), _upper_tail((value - high) / error))
    return max(above, below), min(1.0, outside)


def _upper_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def only_stable_minimum(results: Results, theory: dict[str, Any]) -> tuple[bool, str]:
    """Whether the KL's derivatives vanish at (0, 1) alone, and its flow decays without turning."""
    zeros = theory["derivatives"]
    mu, sigma = zeros["zeros_of_F"], zeros["zeros_of_G"]
    eigenvalues = theory["spiral"]["flow_eigenvalues"]  # (real, imaginary) each
    unique = len(mu) == len(sigma) == 1 and abs(mu[0]) < 1e-6 and abs(sigma[0] - 1) < 1e-6
    stable = all(real < 0 and imaginary == 0 for real, imaginary in eigenvalues)
    return unique and stable, (
        f"its derivatives vanish at mu = {', '.join(f'{x:g}' for x in mu)} and sigma = "
        f"{', '.join(f'{x:g}' for x in sigma)}; eigenvalues of the flow "
        f"{', '.join(f'{real:g}' for real, _ in eigenvalues)}"
    )


def same_encoder(results: Results, theory: dict[str, Any]) -> tuple[bool, str]:
    """Whether encoders beside which a decoder trains are those of separate training."""

    def fingerprints(arm: str) -> list[list[float]]:
        return [
            [*run["latents"]["kl_per_dimension"], run["latents"]["sample_kl"]]
            for run in results["runs"]
            if run["arm"] == arm
        ]

    same = fingerprints(SEPARATE) == fingerprints(SIMULTANEOUS)
    how = "equal to the last bit" if same else "differs"
    return same, f"every latent's KL on the test split {how}"


def same_gradient(results: Results, theory: dict[str, Any]) -> tuple[bool, str]:
    """Whether the mean Monte Carlo gradients are the analytic ones, by a z-test of all at 5 %."""
    found = theory["estimators"]
    largest, count = found["largest_z_of_mean"], found["compared"]
    limit = NormalDist().inv_cdf(1.0 - 0.025 / count)  # Bonferroni
    return largest < limit, (
        f"the largest z-score of {count} mean gradients is {largest:.2f} (limit {limit:.2f})"
    )


Fact = Callable[[Results, dict[str, Any]], tuple[bool, str]]
FACTS: dict[str, Fact] = {
    "only-stable-minimum": only_stable_minimum,
    "same-encoder": same_encoder,
    "same-gradient": same_gradient,
}
