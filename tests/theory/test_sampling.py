"""Variances and the null distribution of a fit, compared with autograd on NumPy's own noise.

A statistic may be 5 of its standard errors off, which gives one false alarm in 1.7 million.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.theory.gaussians import POINTS, distance
from vaez_fast.theory import sampling
from vaez_kernels import reference

SIGMAS = 5.0


def single_draws(mu: float, sigma: float, estimator: str, draws: int) -> tuple[Any, Any]:
    """Values (draws,) and gradients in mu and sigma (2, draws), by autograd on NumPy's noise."""
    eps = torch.from_numpy(np.random.default_rng(3).standard_normal((1, draws, 1)))
    leaves = [
        torch.full((draws, 1), x, dtype=torch.float64, requires_grad=True)
        for x in (mu, 2.0 * math.log(sigma))
    ]
    values = reference.kl_standard_normal_mc(leaves[0], leaves[1], eps, estimator)
    in_mu, in_logvar = torch.autograd.grad(values.sum(), leaves)
    grads = torch.stack((in_mu[:, 0], in_logvar[:, 0] * 2.0 / sigma))
    return values.detach().numpy(), grads.numpy()


def misses_variance(sample: Any, expected: float) -> float:
    """How many standard errors a sample's variance is from the expected one."""
    central = np.square(sample - sample.mean())
    error = math.sqrt(np.square(central).mean() - central.mean() ** 2) / math.sqrt(len(sample))
    return float(abs(central.mean() - expected) / max(error, 1e-12))


@pytest.mark.parametrize("estimator", sampling.ESTIMATORS)
@pytest.mark.parametrize(("mu", "sigma"), POINTS)
def test_the_variance_formulas_hold(mu: float, sigma: float, estimator: str) -> None:
    values, grads = single_draws(mu, sigma, estimator, 100_000)
    at = np.array((mu, sigma))
    assert misses_variance(values, float(sampling.kl_variance(at[0], at[1]))) < SIGMAS
    expected = sampling.gradient_variance(at[0], at[1], estimator)
    for sample, variance in zip(grads, expected, strict=True):
        assert misses_variance(sample, float(variance)) < SIGMAS


def test_known_variances() -> None:
    zero, one, half = np.array(0.0), np.array(1.0), np.array(0.5)
    total, landing = sampling.ESTIMATORS
    assert sampling.gradient_variance(zero, one, total).tolist() == [1.0, 2.0]
    assert sampling.gradient_variance(zero, one, landing).tolist() == [0.0, 0.0]
    assert sampling.gradient_variance(one, half, total).tolist() == [0.25, 1.5]
    assert sampling.gradient_variance(one, half, landing).tolist() == [2.25, 5.5]


def test_sticking_the_landing_varies_less_exactly_above_one_over_root_two() -> None:
    mu, sigma = np.meshgrid(np.linspace(-9.0, 9.0, 61), np.linspace(0.02, 5.0, 500))
    total, landing = (sampling.gradient_variance(mu, sigma, e) for e in sampling.ESTIMATORS)
    above = sigma > sampling.EQUAL_SIGMA
    assert ((landing < total) == above).all()


@pytest.mark.parametrize(("n", "latents"), [(5, 3), (40, 20)])
def test_the_null_of_a_fit_is_exact_also_for_few_draws(n: int, latents: int) -> None:
    fits = 20_000
    x = np.random.default_rng(4).standard_normal((fits, n, latents))
    mean, variance = torch.from_numpy(x.mean(1)), torch.from_numpy(x.var(1))
    kls = distance(mean, variance.sqrt()).sum(1).numpy()
    at = np.array([float(n)])
    sd = float(sampling.fit_kl_sd(at, latents)[0])
    expected = float(sampling.fit_kl_mean(at, latents)[0])
    assert abs(kls.mean() - expected) < SIGMAS * sd / math.sqrt(fits)
    assert misses_variance(kls, sd**2) < SIGMAS


def test_the_null_is_latents_over_draws_for_many() -> None:
    assert sampling.fit_kl_mean(np.array([10_000.0]), 128)[0] == pytest.approx(0.0128, rel=1e-3)
