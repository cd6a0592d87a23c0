"""Tests whether z are draws of N(0, I), each beside the same test of as many exact normals.

The names of the tests, and what each sees:

- kolmogorov-smirnov/J: the marginal of latent J against N(0, 1);
- squared-norm: |z|² against χ² of d degrees, Kolmogorov–Smirnov; a shell, or a heavy tail;
- mardia-skewness, mardia-kurtosis: the third and fourth moments of all directions, against normals
  of any mean and covariance (Mardia 1970), because z are whitened with their own;
- energy-distance: the distance of two samples (Székely & Rizzo 2004), z and draws of N(0, I);
- classifier: whether a classifier tells z from draws of N(0, I) (Lopez-Paz & Oquab 2017).

Holm's correction is over all tests of one call, so that the z of an exact N(0, I) are rejected by
one test or more in 5 % of cases at most.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaez_kernels import normal, uniform

from ..streams import EXACT_NORMALS, NORMALITY
from .codes import Codes
from .intervals import holm

LEVEL = 0.05
LEAST_DRAWS, LEAST_DRAWS_PER_DIMENSION = 200, 10
# 2,000 × 2,000 distances are 32 MB; their sums over 999 permutations take a second.
ENERGY_DRAWS = 1_000
LEAST_PERMUTATIONS = 999
CLASSIFIED_DRAWS = 10_000
CLASSIFIER_SEED = 0
# The steps of `NORMALITY`.
ORDER, ENERGY_NORMALS, PERMUTATIONS, CLASSIFIER_NORMALS = range(4)


@dataclass(frozen=True)
class NormalityTest:
    """One test of z, and of as many exact normals.

    `statistic` is a Kolmogorov–Smirnov distance, a χ² (mardia-skewness), a standard score
    (mardia-kurtosis), an energy distance, or an accuracy on held-out draws (classifier).
    """

    statistic: float
    p: float
    p_of_exact_normals: float
    draws: int  # of z that the test used
    rejected: bool  # N(0, I), at 5 % after Holm's correction
    false_alarm: bool  # exact normals are rejected in the same way


class Outcome(NamedTuple):
    """What a test says of one sample."""

    statistic: float
    p: float
    draws: int


def normality_tests(z: Tensor, seed: int, dimensions: Sequence[int]) -> dict[str, NormalityTest]:
    """All tests of some latents of z, by name.

    Args:
        z: (n, D), one draw an image. Draws that the tests compare with come from the noise stream.
        seed: of these draws, the run's own.
        dimensions: the d latents that are tested; their numbers stand in the tests' names.

    Raises:
        ValueError: fewer than 200 or 10·d draws, no dimension, a dimension twice or not of z, a
            number that is not finite, or latents whose covariance is singular.
    """
    latents = [int(j) for j in dimensions]
    _check(z, latents)
    n, d = len(z), len(latents)
    tested = z[:, latents].double().cpu()
    exact = normal(EXACT_NORMALS.key(seed), 1, n, d)[0].double()
    of_z, of_exact = (_outcomes(x, seed, latents) for x in (tested, exact))
    holm_z, holm_exact = (holm([each.p for each in x.values()]) for x in (of_z, of_exact))
    return {
        name: NormalityTest(
            statistic=outcome.statistic,
            p=outcome.p,
            p_of_exact_normals=of_exact[name].p,
            draws=outcome.draws,
            rejected=p <= LEVEL,
            false_alarm=p_exact <= LEVEL,
        )
        for (name, outcome), p, p_exact in zip(of_z.items(), holm_z, holm_exact, strict=True)
    }


def testable(codes: Codes) -> list[int]:
    """The measured latents that the test images suffice for, in ascending order.

    If there are more than one for ten images, those of the largest KL.
    """
    measured = codes.measured()
    by_kl = measured[codes.kl[measured].argsort(descending=True, stable=True)]
    return sorted(by_kl[: len(codes.test.z) // LEAST_DRAWS_PER_DIMENSION].tolist())


def _check(z: Tensor, latents: list[int]) -> None:
    if not latents or len(set(latents)) < len(latents):
        raise ValueError(f"dimensions must name each latent once, got {latents}")
    if z.ndim != 2 or min(latents) < 0 or max(latents) >= z.shape[1]:
        raise ValueError(f"dimensions must be of z {tuple(z.shape)}, got {latents}")
    least = max(LEAST_DRAWS, LEAST_DRAWS_PER_DIMENSION * len(latents))
    if len(z) < least:
        raise ValueError(
            f"z must have at least {least} draws to test {len(latents)} dimensions, got {len(z)}"
        )
    if not bool(z[:, latents].isfinite().all()):
        raise ValueError("z must be finite")


def _outcomes(z: Tensor, seed: int, latents: list[int]) -> dict[str, Outcome]:
    """All tests of z (n, d) float64."""
    # Data sets may be sorted by class, and some tests use a part of the draws.
    z = z[uniform(NORMALITY.key(seed, ORDER), 1, len(z), 1).flatten().argsort(stable=True)]
    found = {
        f"kolmogorov-smirnov/{latent}": kolmogorov_smirnov(z[:, i], "norm")
        for i, latent in enumerate(latents)
    }
    found["squared-norm"] = kolmogorov_smirnov(z.square().sum(1), "chi2", len(latents))
    found["mardia-skewness"], found["mardia-kurtosis"] = mardia(z)
    # A permutation test of P permutations has p ≥ 1 / (P + 1), and Holm compares the smallest p
    # with LEVEL / tests: this many reach half of it.
    tests = len(found) + 2
    permutations = max(LEAST_PERMUTATIONS, math.ceil(2 * tests / LEVEL) - 1)
    found["energy-distance"] = energy_distance(z, seed, permutations)
    found["classifier"] = classifier(z, seed)
    return found


def kolmogorov_smirnov(values: Tensor, law: str, *parameters: float) -> Outcome:
    """The largest distance of the distribution functions of values (n,) and of a law of scipy."""
    from scipy.stats import kstest

    found = kstest(values.numpy(), law, args=parameters)
    return Outcome(float(found.statistic), float(found.pvalue), len(values))


def mardia(z: Tensor) -> tuple[Outcome, Outcome]:
    """Skewness and kurtosis of z (n, d) float64, whitened with its mean and covariance (1 / n).

    Mardia, "Measures of multivariate skewness and kurtosis with applications", 1970, with the
    moments for finite n of Mardia, "Applications of some measures of multivariate skewness and
    kurtosis in testing normality and robustness studies", 1974:

        b₁ = n⁻² Σ_ik (y_iᵀ y_k)³,  k n b₁ / 6 ~ χ² of d (d + 1) (d + 2) / 6 degrees,
            k = (d + 1) (n + 1) (n + 3) / (n ((n + 1) (d + 1) − 6))
        b₂ = n⁻¹ Σ_i |y_i|⁴, normal with mean d (d + 2) (n − 1) / (n + 1) and variance
            8 d (d + 2) (n − 3) (n − d − 1) (n − d + 1) / ((n + 1)² (n + 3) (n + 5))

    Raises:
        ValueError: the covariance is singular.
    """
    from scipy.stats import chi2, norm

    n, d = z.shape
    centred = z - z.mean(0)
    factor, failed = torch.linalg.cholesky_ex(centred.T @ centred / n)
    if failed:
        raise ValueError("z must have a covariance that is not singular")
    y = torch.linalg.solve_triangular(factor, centred.T, upper=False)  # (d, n)
    # The sum over pairs of draws is the squared length of the tensor of third moments.
    b1 = sum(float(((y * row) @ y.T / n).square().sum()) for row in y)
    correction = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6))
    skewness = correction * n * b1 / 6
    b2 = float(y.square().sum(0).square().mean())
    mean = d * (d + 2) * (n - 1) / (n + 1)
    variance = 8.0 * d * (d + 2) * (n - 3) * (n - d - 1) * (n - d + 1)
    variance /= (n + 1) ** 2 * (n + 3) * (n + 5)
    score = (b2 - mean) / math.sqrt(variance)
    return (
        Outcome(skewness, float(chi2.sf(skewness, d * (d + 1) * (d + 2) / 6)), n),
        Outcome(score, float(2 * norm.sf(abs(score))), n),
    )


def energy_distance(z: Tensor, seed: int, permutations: int) -> Outcome:
    """2 E|z − e| − E|z − z'| − E|e − e'| of at most 1,000 z and as many e ~ N(0, I).

    Székely & Rizzo, "Testing for equal distributions in high dimension", 2004. All pairs count,
    also those of a draw with itself. p is from random permutations of the two samples' labels.
    """
    m = min(len(z), ENERGY_DRAWS)
    e = normal(NORMALITY.key(seed, ENERGY_NORMALS), 1, m, z.shape[1])[0].double()
    both = torch.cat([z[:m], e])
    distances = torch.cdist(both, both)
    labels = uniform(NORMALITY.key(seed, PERMUTATIONS), 1, permutations, 2 * m)[0].argsort(1) < m
    labels = torch.cat([torch.arange(2 * m)[None] < m, labels])
    signs = torch.where(labels, 1.0, -1.0).double() / m  # (1 + permutations, 2m)
    found = -(signs @ distances * signs).sum(1)
    # Two permutations of equal distance may differ by rounding.
    as_large = int((found[1:] >= found[0] * (1 - 1e-9)).sum())
    return Outcome(float(found[0]), (1 + as_large) / (1 + permutations), m)


def classifier(z: Tensor, seed: int) -> Outcome:
    """The accuracy with which a classifier tells z from N(0, I), on draws that did not fit it.

    Lopez-Paz & Oquab, "Revisiting classifier two-sample tests", 2017. Boosted trees see z and |z|²:
    without it, a shell in many dimensions is hard to see with a few hundred draws. Half of at most
    10,000 z and as many normals fit it; p is binomial, of as many right answers by chance.
    """
    from scipy.stats import binom
    from sklearn.ensemble import HistGradientBoostingClassifier

    m = min(len(z), CLASSIFIED_DRAWS)
    e = normal(NORMALITY.key(seed, CLASSIFIER_NORMALS), 1, m, z.shape[1])[0].double()

    def examples(part: slice) -> tuple[Any, Any]:
        x = torch.cat([z[:m][part], e[part]])
        is_z = torch.arange(len(x)) < len(x) // 2
        return torch.cat([x, x.square().sum(1, keepdim=True)], 1).numpy(), is_z.numpy()

    fitted = HistGradientBoostingClassifier(early_stopping=False, random_state=CLASSIFIER_SEED)
    # scikit-learn's threads race for the process's list of warning filters and may leave it empty;
    # from then on each fit would print a page of warnings (1.9.1). So they get a list of their own.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sklearn.utils.parallel", category=UserWarning)
        fitted.fit(*examples(slice(m // 2)))
    x, is_z = examples(slice(m // 2, None))
    right = int((fitted.predict(x) == is_z).sum())
    return Outcome(right / len(x), float(binom.sf(right - 1, len(x), 0.5)), m)
