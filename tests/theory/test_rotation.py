"""KLs of full-covariance Gaussians, their rotation, and the identity of likelihood and ELBO."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import ortho_group
from torch.distributions import MultivariateNormal, kl_divergence

from vaez_fast.theory import gaussians, rotation, summands
from vaez_fast.theory.flow import Array

ROUNDING = 1e-11  # relative, of a few dozen terms in float64


def covariances(count: int, D: int, seed: int) -> Array:
    factor = np.random.default_rng(seed).standard_normal((count, D, D))
    return np.asarray(factor @ factor.transpose(0, 2, 1) + 0.2 * np.eye(D))


def test_the_kl_of_two_gaussians_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    mean, other_mean = rng.standard_normal((2, 30, 4))
    covariance, other = covariances(30, 4, 1), covariances(30, 4, 2)
    q, p = (
        MultivariateNormal(torch.from_numpy(m), torch.from_numpy(c))
        for m, c in ((mean, covariance), (other_mean, other))
    )
    expected = kl_divergence(q, p).numpy()
    ours = gaussians.kl(mean, covariance, other_mean, other)
    np.testing.assert_allclose(ours, expected, rtol=ROUNDING)


def test_the_kl_to_a_standard_normal_is_the_same_under_every_rotation() -> None:
    mean = np.array((0.5, -1.0, 2.0, 0.0))
    diagonal = np.diag((0.1, 0.5, 1.0, 3.0))
    zero, one = np.zeros(4), np.eye(4)
    expected = gaussians.kl(mean, diagonal, zero, one)
    for seed in range(20):
        Q = ortho_group.rvs(4, random_state=seed)
        full = gaussians.rotated(diagonal, Q)
        np.testing.assert_allclose(full, Q @ diagonal @ Q.T, rtol=1e-12, atol=1e-14)
        assert gaussians.kl(Q @ mean, full, zero, one) == pytest.approx(expected, rel=ROUNDING)
        # Another prior is not invariant: the check above can fail.
        other = np.diag((2.0, 1.0, 1.0, 1.0))
        turned = gaussians.kl(Q @ mean, full, zero, other)
        assert abs(turned - gaussians.kl(mean, diagonal, zero, other)) > 1e-3


def test_rotations_are_orthogonal_and_favour_no_sign() -> None:
    Q = rotation.rotations(np.random.default_rng(3).standard_normal((2_000, 3, 3)))
    np.testing.assert_allclose(
        Q @ Q.transpose(0, 2, 1), np.broadcast_to(np.eye(3), Q.shape), atol=1e-13
    )
    # Each entry of a Haar-distributed matrix has mean 0 and variance 1/3.
    assert np.abs(Q.mean(0)).max() < 5.0 / math.sqrt(3 * 2_000)
    assert np.abs(Q.var(0) - 1 / 3).max() < 5.0 / math.sqrt(2_000)


def test_the_gap_of_a_diagonal_q_is_the_smallest_of_all_diagonal_q() -> None:
    for covariance in covariances(3, 3, 4):
        ours = rotation.diagonal_gap(np.linalg.inv(covariance))

        def gap(log_variance: Array, posterior: Array = covariance) -> float:
            zero = np.zeros(3)
            return float(gaussians.kl(zero, np.diag(np.exp(log_variance)), zero, posterior))

        found = minimize(gap, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
        assert ours == pytest.approx(found.fun, rel=1e-6)
        assert ours > 0.0
    assert rotation.diagonal_gap(np.diag((0.3, 4.0))) == pytest.approx(0.0, abs=1e-15)


def test_the_summands_have_the_stated_values() -> None:
    assert summands.F(np.array((-2.0, 0.0, 1.0))).tolist() == [2.0, 0.0, 0.5]
    G = summands.G(np.array((1.0, 2.0, 0.5)))
    expected = [0.0, 0.5 * (3.0 - math.log(4.0)), 0.5 * (-0.75 + math.log(4.0))]
    np.testing.assert_allclose(G, expected, rtol=1e-14)
    assert summands.slope_of_F(np.array((-2.0, 0.5))).tolist() == [-2.0, 0.5]
    np.testing.assert_allclose(summands.slope_of_G(np.array((2.0, 0.5))), (1.5, -1.5))
