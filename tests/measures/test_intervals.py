"""Tests of means, many tests at once, and how many digits an interval has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from vaez_fast.measures.intervals import Interval, holm, inside_p, outside_p

VALUES = [0.31, -0.12, 0.25, 0.04, 0.18]


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (20.0612, 0.7218, "20.06 ± 0.72"),
        (0.0000414, 0.0000021, "0.0000414 ± 0.0000021"),
        (1234.0, 234.0, "1230 ± 230"),
        (123.44, 23.4, "123 ± 23"),
        (-95.31, 1.04, "-95.3 ± 1.0"),
        (0.004, 5.2, "0.0 ± 5.2"),
        (-0.004, 5.2, "0.0 ± 5.2"),
        (1.5, 0.0996, "1.50 ± 0.10"),  # 0.0996 rounds to 0.10, which has two digits
        (1.5, 9.96, "2 ± 10"),
        (3e-9, 1.2e-9, "0.0000000030 ± 0.0000000012"),
        (0.0000412, 0.0, "0.0000412 ± 0"),
        (12.0, 0.0, "12.0 ± 0"),
        (123456.0, 0.0, "123000 ± 0"),
        (0.0, 0.0, "0.00 ± 0"),
    ],
)
def test_an_interval_has_the_digits_that_it_supports(mean: float, half: float, text: str) -> None:
    assert Interval(mean, half, 5).text() == text


def two_tests(values: list[float], low: float, high: float) -> float:
    above = stats.ttest_1samp(values, low, alternative="greater").pvalue
    below = stats.ttest_1samp(values, high, alternative="less").pvalue
    return float(max(above, below))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.1, 0.4), (-0.2, 0.15), (0.2, 1.0)])
def test_inside_is_the_larger_p_of_two_one_sided_t_tests(low: float, high: float) -> None:
    assert inside_p(VALUES, low, high) == pytest.approx(two_tests(VALUES, low, high), rel=1e-10)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.05), (-0.1, 0.1), (0.25, 1.0), (-1.0, 1.0)])
def test_outside_is_twice_the_smaller_p_of_the_two_sides(low: float, high: float) -> None:
    below = stats.ttest_1samp(VALUES, low, alternative="less").pvalue
    above = stats.ttest_1samp(VALUES, high, alternative="greater").pvalue
    expected = min(1.0, 2 * min(below, above))
    assert outside_p(VALUES, low, high) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("end", [-0.1, 0.1, 0.3])
def test_a_range_with_one_end_needs_one_test(end: float) -> None:
    greater, less = (
        stats.ttest_1samp(VALUES, end, alternative=side).pvalue for side in ("greater", "less")
    )
    assert outside_p(VALUES, -np.inf, end) == pytest.approx(greater, rel=1e-10)
    assert outside_p(VALUES, end, np.inf) == pytest.approx(less, rel=1e-10)
    assert inside_p(VALUES, -np.inf, end) == pytest.approx(less, rel=1e-10)
    assert inside_p(VALUES, end, np.inf) == pytest.approx(greater, rel=1e-10)


def test_equivalence_is_found_and_falsely_found_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 6))
    at_the_margin = np.mean([inside_p(list(row + 3), -3.0, 3.0) <= 0.05 for row in draws])
    assert abs(at_the_margin - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5
    assert np.mean([inside_p(list(row), -3.0, 3.0) <= 0.05 for row in draws]) > 0.95


def test_values_without_spread_are_inside_or_not() -> None:
    assert inside_p([1.0, 1.0, 1.0], 0.5, 1.5) == 0
    assert inside_p([1.0, 1.0, 1.0], 1.0, 1.5) == 1
    assert inside_p([2.0, 2.0, 2.0], 1.0, 1.5) == 1
    assert outside_p([1.0, 1.0, 1.0], 0.5, 1.5) == 1
    assert outside_p([1.0, 1.0, 1.0], 1.0, 1.5) == 1
    assert outside_p([2.0, 2.0, 2.0], 1.0, 1.5) == 0


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inside_p: at least two values are needed, got 1"):
        inside_p([1.0], 0, 2)
    with pytest.raises(ValueError, match="inside_p: low must be below high, got 2 and 2"):
        inside_p(VALUES, 2, 2)
    with pytest.raises(ValueError, match="outside_p: low must be below high, got 2 and 2"):
        outside_p(VALUES, 2, 2)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"holm: p_values must be in 0 … 1, got"):
            holm([0.5, wrong])


def test_holm_multiplies_the_smallest_by_their_number_and_keeps_the_order() -> None:
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # 3 · 0.2, 2 · 0.6 is above 1.
    assert holm([0.9, 0.2, 0.6]) == pytest.approx([1, 0.6, 1])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_what_the_closed_test_of_bonferroni_rejects() -> None:
    # A hypothesis is rejected if every set that holds it has a p ≤ α / its size.
    generator = np.random.default_rng(1)
    for _ in range(200):
        p = list(generator.uniform(0, 0.06, 4))
        sets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        closed = [
            all(min(p[j] for j in s) <= 0.05 / len(s) for s in sets if i in s) for i in range(4)
        ]
        assert [adjusted <= 0.05 for adjusted in holm(p)] == closed
