"""Tests of normality: their statistics by brute force, their false alarms, and what each sees."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vaez_fast import streams
from vaez_fast.measures import normality
from vaez_fast.measures.normality import NormalityTest, normality_tests
from vaez_kernels import noise_key, normal

GENERAL = {"squared-norm", "mardia-skewness", "mardia-kurtosis", "energy-distance", "classifier"}


def draws(n: int, d: int, step: int = 0) -> Tensor:
    """Exact normals of no other use."""
    return normal(noise_key(0, "generate", 1000 + step), 1, n, d)[0]


def shell(n: int, d: int, width: float = 0.7) -> Tensor:
    """|z|² of mean d and `width`² times the variance of χ²; directions are uniform."""
    z = draws(n, d, 1)
    squares = d + width * (z.square().sum(1, keepdim=True) - d)
    return z / z.norm(dim=1, keepdim=True) * squares.clamp(min=0).sqrt()


def heavy_tails(n: int, d: int) -> Tensor:
    """Student's t with five degrees of freedom and variance 1, by coordinate."""
    u = stats.norm.cdf(draws(n, d, 2).double().numpy())
    return torch.from_numpy(stats.t.ppf(u, 5) * math.sqrt(3 / 5)).float()


def shifted(n: int, d: int) -> Tensor:
    return draws(n, d, 3) + torch.tensor([0.3] + [0.0] * (d - 1))


def correlated(n: int, d: int) -> Tensor:
    """Latents 0 and 1 have the correlation 0.6 and are N(0, 1) each."""
    z = draws(n, d, 4)
    z[:, 1] = 0.6 * z[:, 0] + 0.8 * z[:, 1]
    return z


def skewed(n: int, d: int) -> Tensor:
    """Exponential coordinates of mean 0 and variance 1."""
    return -torch.log(torch.special.ndtr(draws(n, d, 5))) - 1


@functools.cache
def calibration() -> list[dict[str, NormalityTest]]:
    """Thirty calls on exact normals; each has two families, z and its control."""
    return [normality_tests(draws(200, 2, 100 + seed), seed, [0, 1]) for seed in range(30)]


def test_the_names_are_those_of_the_latents_and_of_the_general_tests() -> None:
    z = draws(200, 9)
    found = normality_tests(z, 0, torch.tensor([2, 7]))  # type: ignore[arg-type]
    marginals = {f"kolmogorov-smirnov/{j}": z[:, j].double().numpy() for j in (2, 7)}
    assert set(found) == set(marginals) | GENERAL
    for name, values in marginals.items():
        own = stats.kstest(values, "norm")
        assert found[name].statistic == pytest.approx(own.statistic, rel=1e-9)
        assert found[name].p == pytest.approx(own.pvalue, rel=1e-9)
    squares = z[:, [2, 7]].double().square().sum(1).numpy()
    assert found["squared-norm"].p == pytest.approx(stats.kstest(squares, "chi2", (2,)).pvalue)


def test_the_controls_are_the_streams_exact_normals_of_the_same_size() -> None:
    found = normality_tests(heavy_tails(300, 3), 5, [0, 1, 2])
    exact = normal(streams.EXACT_NORMALS.key(5), 1, 300, 3)[0]
    control = normality_tests(exact, 5, [0, 1, 2])
    for name, test in found.items():
        assert test.p_of_exact_normals == control[name].p == control[name].p_of_exact_normals
        assert test.false_alarm == control[name].rejected == control[name].false_alarm


def test_mardia_is_that_of_all_pairs() -> None:
    z = skewed(60, 3).double() @ torch.tensor([[1.0, 2, 0], [0, 1, 0.5], [0, 0, 3]]).double()
    n, d = z.shape
    centred = (z - z.mean(0)).numpy()
    m = centred @ np.linalg.inv(np.cov(z.T.numpy(), bias=True)) @ centred.T
    b1 = (m**3).mean()
    skewness, _ = normality.mardia(z)
    small = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6))
    assert skewness.statistic == pytest.approx(small * n * b1 / 6, rel=1e-9)
    assert skewness.p == pytest.approx(stats.chi2(10).sf(small * n * b1 / 6), rel=1e-6)
    z = heavy_tails(6000, 3).double()
    whole = z - z.mean(0)
    b2 = float(torch.einsum("ni,ij,nj->n", whole, z.T.cov().inverse(), whole).square().mean())
    _, kurtosis = normality.mardia(z)
    # To first order in 1/n the mean is d (d + 2) and the variance 8 d (d + 2) / n.
    assert kurtosis.statistic == pytest.approx((b2 - 15) / math.sqrt(120 / 6000), rel=0.01)
    scores = [normality.mardia(draws(50, 2, 3000 + i).double())[1] for i in range(10)]
    assert min(score for score, *_ in scores) < 0 < max(score for score, *_ in scores)
    for score, p, _ in scores:
        assert p == pytest.approx(2 * stats.norm.sf(abs(score)), rel=1e-9)


def test_mardias_statistics_have_their_moments_at_small_n() -> None:
    found = [normality.mardia(draws(40, 4, 2000 + i).double()) for i in range(600)]
    skewness, kurtosis = (
        np.array([test.statistic for test in tests]) for tests in zip(*found, strict=True)
    )
    # The mean of χ² with 20 degrees is exact with the correction (without it, 10 % lower).
    assert abs(skewness.mean() - 20) < 4 * skewness.std() / math.sqrt(600)
    # Mean and variance of the score are exact; its variance over 600 has a deviation of 0.09.
    assert abs(kurtosis.mean()) < 4 / math.sqrt(600)
    assert abs(kurtosis.var() - 1) < 0.36


def test_the_energy_distance_is_the_mean_over_pairs_and_p_a_rank() -> None:
    z = shifted(80, 2).double()
    found = normality.energy_distance(z, 3, 199)
    e = normal(streams.NORMALITY.key(3, normality.ENERGY_NORMALS), 1, 80, 2)[0].double()

    def mean(a: Tensor, b: Tensor) -> float:
        return float((a[:, None] - b).square().sum(2).sqrt().mean())

    own = 2 * mean(z, e) - mean(z, z) - mean(e, e)
    assert found.statistic == pytest.approx(own, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    both, larger = torch.cat([z, e]), 0
    for _ in range(400):
        order = torch.randperm(160, generator=generator)
        a, b = both[order[:80]], both[order[80:]]
        larger += 2 * mean(a, b) - mean(a, a) - mean(b, b) >= own
    # Two estimates of one p of about 0.1, from 199 and 400 permutations.
    p = larger / 400
    assert 0.01 < p < 0.4
    assert found.p == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) * (1 / 199 + 1 / 400)))
    assert (found.p * 200) % 1 == pytest.approx(0, abs=1e-9)


def test_the_classifiers_accuracy_is_that_of_the_best_rule_and_its_p_binomial() -> None:
    n, shift = 4000, 1.0
    found = normality.classifier(draws(n, 1, 6).double() + shift, 0)
    best = stats.norm.cdf(shift / 2)
    # Below the best rule by at most 0.03 of fitting, and four standard errors of 4,000 answers.
    assert best - 0.03 - 0.03 < found.statistic < best + 0.03
    small = normality.classifier(shifted(200, 2).double(), 0)
    right = round(200 * small.statistic)
    assert small.p == pytest.approx(stats.binomtest(right, 200, alternative="greater").pvalue)
    # Accuracy is of draws that were not fitted: of no difference, it is a half.
    none = normality.classifier(draws(n, 3, 7).double(), 0)
    assert abs(none.statistic - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_the_classifier_sees_a_shell_in_many_dimensions_with_few_draws() -> None:
    # Trees that do not see |z|² have an accuracy of 0.50 here, with it 0.72.
    assert normality.classifier(shell(600, 12, 0.3).double(), 0).statistic > 0.65


def test_a_sorted_data_set_has_the_same_law() -> None:
    z = draws(2400, 2, 8)
    found = normality_tests(z[z[:, 0].argsort()], 0, [0, 1])
    assert not any(test.rejected for test in found.values())


def test_expensive_tests_say_how_many_draws_they_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normality, "ENERGY_DRAWS", 150)
    monkeypatch.setattr(normality, "CLASSIFIED_DRAWS", 170)
    found = normality_tests(draws(300, 2), 0, [0, 1])
    used = {name: test.draws for name, test in found.items()}
    assert (used.pop("energy-distance"), used.pop("classifier")) == (150, 170)
    assert set(used.values()) == {300}


def test_a_permutation_test_can_be_rejected_among_many() -> None:
    # Holm compares the smallest of 65 p with 0.05 / 65, which 999 permutations cannot reach.
    found = normality_tests(2 * draws(600, 60), 0, range(60))
    assert found["energy-distance"].p < 1 / 1000
    assert found["energy-distance"].rejected


def test_exact_normals_are_rejected_as_seldom_as_promised() -> None:
    families = [
        any(getattr(test, what) for test in tests.values())
        for tests in calibration()
        for what in ("rejected", "false_alarm")
    ]
    # At most 5 %; nine or more of 60 families would have a probability of 0.3 %.
    assert sum(families) < 9


def test_every_p_is_as_often_small_as_it_says() -> None:
    found = calibration()
    for name in found[0]:
        p = [value for tests in found for value in (tests[name].p, tests[name].p_of_exact_normals)]
        # Of 60 p-values 20 % are at most 0.2: 12, with a deviation of 3.1. The classifier's are
        # larger, because counts of right answers are few.
        small = sum(value <= 0.2 for value in p)
        assert small < 12 + 3 * 3.1, name
        assert name == "classifier" or small > 12 - 3 * 3.1, name


@pytest.mark.parametrize(
    ("z", "seen", "unseen"),
    [
        (shell, {"squared-norm", "mardia-kurtosis", "classifier"}, {"mardia-skewness"}),
        (heavy_tails, {"squared-norm", "mardia-kurtosis"}, set()),
        (skewed, {"mardia-skewness", "kolmogorov-smirnov/0", "energy-distance"}, set()),
        (
            shifted,
            {"kolmogorov-smirnov/0", "energy-distance"},
            {"kolmogorov-smirnov/1", "mardia-skewness", "mardia-kurtosis"},
        ),
        (
            correlated,
            {"energy-distance", "classifier"},
            {"kolmogorov-smirnov/0", "kolmogorov-smirnov/1", "mardia-skewness", "mardia-kurtosis"},
        ),
    ],
)
def test_each_departure_is_seen_by_the_tests_that_should_see_it(
    z: object, seen: set[str], unseen: set[str]
) -> None:
    found = normality_tests(z(2000, 4), 0, range(4))  # type: ignore[operator]
    rejected = {name for name, test in found.items() if test.rejected}
    assert seen <= rejected
    assert not unseen & rejected
    assert not any(test.false_alarm for test in found.values())


def test_what_cannot_be_tested_is_refused() -> None:
    z = draws(200, 30)
    with pytest.raises(ValueError, match="at least 200 draws to test 2 dimensions, got 199"):
        normality_tests(z[1:], 0, [0, 1])
    with pytest.raises(ValueError, match="at least 210 draws to test 21 dimensions, got 200"):
        normality_tests(z, 0, range(21))
    for wrong in ([], [1, 1]):
        with pytest.raises(ValueError, match="must name each latent once"):
            normality_tests(z, 0, wrong)
    for wrong in ([-1], [30]):
        with pytest.raises(ValueError, match=r"must be of z \(200, 30\)"):
            normality_tests(z, 0, wrong)
    z[0, 3] = math.nan
    with pytest.raises(ValueError, match="z must be finite"):
        normality_tests(z, 0, [3])
    normality_tests(z, 0, [4])
    z[:, 3] = z[:, 4]
    with pytest.raises(ValueError, match="a covariance that is not singular"):
        normality_tests(z, 0, [3, 4])
