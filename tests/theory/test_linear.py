"""The linear VAE compared with torch.distributions, autograd and scipy, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaez_fast.theory import clusters, curvature, linear

EIGENVALUES = np.array((5.0, 2.0, 1.5, 0.7, 0.3))
NATS = 1e-10  # rounding of sums of a few terms near 10, in float64


def random_vae() -> linear.LinearVAE:
    return linear.LinearVAE(np.random.default_rng(0).standard_normal((5, 3)), 0.4)


def test_the_likelihood_is_that_of_the_marginal_gaussian() -> None:
    vae, x = random_vae(), np.random.default_rng(1).standard_normal((20, 5))
    covariance = vae.weight @ vae.weight.T + 0.4 * np.eye(5)
    expected = multivariate_normal(np.zeros(5), covariance).logpdf(x)
    np.testing.assert_allclose(vae.log_px(x), expected, atol=NATS)


def test_the_posterior_is_bayes_rule_in_every_z() -> None:
    vae, rng = random_vae(), np.random.default_rng(2)
    x, z = rng.standard_normal((20, 5)), rng.standard_normal((20, 3))
    mean, covariance = vae.posterior(x)
    log_joint = norm.logpdf(z).sum(1) + norm.logpdf(x, z @ vae.weight.T, math.sqrt(0.4)).sum(1)
    posterior = multivariate_normal(np.zeros(3), covariance).logpdf(z - mean)
    np.testing.assert_allclose(posterior, log_joint - vae.log_px(x), atol=NATS)


def test_rate_and_distortion_are_expectations_under_q() -> None:
    vae, rng = random_vae(), np.random.default_rng(3)
    x, mean = rng.standard_normal((4, 5)), rng.standard_normal((4, 3))
    factor = np.tril(rng.standard_normal((3, 3)), -1) + np.diag((0.5, 1.5, 0.8))
    q = MultivariateNormal(torch.from_numpy(mean), scale_tril=torch.from_numpy(factor))
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    rate = vae.rate(mean, factor @ factor.T)
    np.testing.assert_allclose(rate, kl_divergence(q, prior).numpy(), atol=NATS)
    # The log-likelihood is quadratic in z, so three Gauss–Hermite nodes an axis are exact.
    eps, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.stack(np.meshgrid(eps, eps, eps), -1).reshape(-1, 3)
    weight = np.prod(np.stack(np.meshgrid(weights, weights, weights), -1), -1).ravel()
    z = mean[:, None] + grid @ factor.T
    log_px = norm.logpdf(x[:, None], z @ vae.weight.T, math.sqrt(0.4)).sum(-1)
    expected = -(log_px @ weight) / weight.sum()
    np.testing.assert_allclose(vae.distortion(x, mean, factor @ factor.T), expected, atol=NATS)


def mean_log_px(weight: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Over Gaussian data with the covariance diag(EIGENVALUES)."""
    covariance = weight @ weight.T + noise * torch.eye(5, dtype=torch.float64)
    data = torch.diag(torch.from_numpy(EIGENVALUES))
    trace = torch.linalg.solve(covariance, data).trace()
    return -0.5 * (trace + torch.logdet(2.0 * math.pi * covariance))


def test_the_fitted_model_has_the_largest_likelihood() -> None:
    vae = linear.fitted(EIGENVALUES, 2)
    weight = torch.from_numpy(vae.weight).requires_grad_()
    noise = torch.tensor(vae.noise, dtype=torch.float64, requires_grad=True)
    best = mean_log_px(weight, noise)
    for slope in torch.autograd.grad(best, (weight, noise)):
        assert slope.abs().max() < 1e-12
    rng = np.random.default_rng(4)
    for _ in range(50):
        other = weight + torch.from_numpy(0.3 * rng.standard_normal((5, 2)))
        assert mean_log_px(other, noise * math.exp(0.3 * rng.standard_normal())) < best


def test_no_posterior_is_standard_normal_and_their_mixture_is() -> None:
    vae = linear.fitted(EIGENVALUES, 3)
    mean, covariance = vae.posterior(np.diag(np.sqrt(EIGENVALUES)))
    assert (np.diag(covariance) < 0.5).all()
    # q(z) = ∫ N(gain·x, covariance) N(x; 0, S) dx is Gaussian with this covariance.
    np.testing.assert_allclose(mean.T @ mean + covariance, np.eye(3), atol=1e-14)


def test_a_latent_is_informative_only_if_the_data_vary_more_than_the_noise() -> None:
    noise = float(EIGENVALUES[1:].mean())  # 1.125
    vae = linear.fitted(np.array((5.0, 1.125, noise, noise, noise)), 2)
    assert vae.weight[0, 0] == pytest.approx(math.sqrt(5.0 - noise))
    assert np.count_nonzero(vae.weight) == 1


def test_moments_that_are_off_are_found() -> None:
    z = np.random.default_rng(5).standard_normal((10_000, 3))
    assert linear.largest_z_of_moments(z) < 5.0
    assert linear.largest_z_of_moments(z + np.array((0.0, 0.1, 0.0))) > 5.0
    assert linear.largest_z_of_moments(z * np.array((1.0, 1.0, 1.1))) > 5.0
    z[:, 1] = 0.1 * z[:, 0] + math.sqrt(0.99) * z[:, 1]
    assert linear.largest_z_of_moments(z) > 5.0


# The ELBO's curvature.


def sampled_elbo(parameters: torch.Tensor, eigenvalue: float, noise: float) -> torch.Tensor:
    """Mean ELBO by Gauss–Hermite over x and eps, from torch.distributions."""
    w, v, s = parameters
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)  # exact: the integrand has degree 4
    x = math.sqrt(eigenvalue) * torch.from_numpy(nodes)[:, None]
    q = Normal(v * x, s)
    z = v * x + s * torch.from_numpy(nodes)
    log_px = Independent(Normal(w * z, math.sqrt(noise)), 0).log_prob(x)
    prior = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    weight = torch.from_numpy(weights / weights.sum())
    return weight @ (log_px @ weight) - weight @ kl_divergence(q, prior)[:, 0]


@pytest.mark.parametrize(("eigenvalue", "noise"), [(0.5, 1.0), (4.0, 1.0), (0.3, 0.2)])
def test_the_elbo_its_gradient_and_its_hessian_are_those_of_autograd(
    eigenvalue: float, noise: float
) -> None:
    def collapsed() -> torch.Tensor:
        return torch.tensor((0.0, 0.0, 1.0), dtype=torch.float64)

    base = sampled_elbo(collapsed(), eigenvalue, noise)
    for at in ((0.7, 0.3, 0.8), (-1.1, 0.4, 1.3)):
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = sampled_elbo(x, eigenvalue, noise)
        (slope,) = torch.autograd.grad(value, x)
        ours = float(curvature.elbo(np.array(at), eigenvalue, noise))
        assert ours == pytest.approx(float((value - base).detach()), abs=NATS)
        np.testing.assert_allclose(
            curvature.gradient(np.array(at), eigenvalue, noise), slope.numpy(), atol=NATS
        )
    second = torch.autograd.functional.hessian(
        lambda x: sampled_elbo(x, eigenvalue, noise), collapsed()
    )
    np.testing.assert_allclose(curvature.hessian(eigenvalue, noise), second.numpy(), atol=NATS)


def test_the_sign_of_variance_minus_noise_decides() -> None:
    for eigenvalue in (0.2, 0.9, 0.999, 1.001, 1.1, 7.0):
        largest = np.linalg.eigvalsh(curvature.hessian(eigenvalue, 1.0)).max()
        assert (largest > 0) == (eigenvalue > 1.0)


@pytest.mark.parametrize("eigenvalue", [0.5, 1.0, 2.0, 9.0])
def test_the_optimum_is_above_all_around_it(eigenvalue: float) -> None:
    at = curvature.optimum(eigenvalue, 1.0)
    assert np.abs(curvature.gradient(at, eigenvalue, 1.0)).max() < 1e-12
    other = at[:, None] + 0.5 * np.random.default_rng(6).standard_normal((3, 500))
    other[2] = np.abs(other[2])
    best = curvature.elbo(at, eigenvalue, 1.0)
    assert (curvature.elbo(other, eigenvalue, 1.0) < best).all()


# Data in clusters.


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9, 0.99])
def test_the_kl_of_clusters_is_that_of_scipys_quadrature(m: float) -> None:
    sd = math.sqrt(1.0 - m * m)

    def integrand(z: float) -> float:
        q = 0.5 * (norm.pdf(z, m, sd) + norm.pdf(z, -m, sd))
        return float(q * (np.log(q) - norm.logpdf(z))) if q > 0 else 0.0

    expected = quad(integrand, -9.0, 9.0, points=(-m, 0.0, m), limit=400, epsabs=1e-12)[0]
    assert clusters.kl(m) == pytest.approx(expected, abs=1e-9)
    assert clusters.kl_by_hermite(m) == pytest.approx(expected, abs=1e-7)


def test_clusters_keep_the_variance_and_lose_the_tails() -> None:
    for m in (0.0, 0.6, 0.95):
        assert clusters.moment(m, 0) == pytest.approx(1.0, abs=1e-12)
        assert clusters.moment(m, 1) == pytest.approx(0.0, abs=1e-12)
        assert clusters.moment(m, 2) == pytest.approx(1.0, abs=1e-12)
        assert clusters.moment(m, 4) == pytest.approx(3.0 - 2.0 * m**4, abs=1e-11)
