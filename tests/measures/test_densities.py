"""Densities against torch.distributions, and their draws against their densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from vaez_fast.flows import RealNVP
from vaez_fast.measures import densities, fitting
from vaez_fast.measures.densities import Embedded, GaussianMixture, fit_gaussian, standard_normal
from vaez_fast.measures.flow_density import Flow, fit_flow
from vaez_kernels import noise_key, normal, reference

NOISE = noise_key(0, "generate")


def points(n: int, D: int, seed: int = 7) -> Tensor:
    return normal(noise_key(seed, "evaluate"), 1, n, D)[0]


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    """Three components over R³, the second narrow."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64).tril()
    factors.diagonal(dim1=1, dim2=2).abs_().add_(0.3)
    factors[1] *= 1e-3
    means = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), means, factors)


def textbook(mixture: GaussianMixture) -> MixtureSameFamily:
    components = MultivariateNormal(mixture.means, scale_tril=mixture.factors)
    return MixtureSameFamily(Categorical(mixture.weights), components)


def test_a_mixtures_density_is_torchs(
    mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.cat([points(50, 3), mixture.means.float() + 1e-3 * points(3, 3)])
    expected = textbook(mixture).log_prob(z.double())
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(densities, "BLOCK", 100)  # several blocks of rows
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-10, atol=1e-10)


def test_a_component_of_no_weight_does_not_count(mixture: GaussianMixture) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    only = GaussianMixture(weights, mixture.means, mixture.factors)
    alone = MultivariateNormal(mixture.means[1], scale_tril=mixture.factors[1])
    z = mixture.means[1] + 1e-3 * points(20, 3).double()
    torch.testing.assert_close(only.log_prob(z), alone.log_prob(z), rtol=1e-10, atol=1e-10)


def test_latents_that_a_density_leaves_out_are_standard_normal(mixture: GaussianMixture) -> None:
    r = Embedded(mixture, torch.tensor([4, 0, 2]), 5)
    z = points(30, 5).double()
    others = Normal(0.0, 1.0).log_prob(z[:, [1, 3]]).sum(1)
    expected = textbook(mixture).log_prob(z[:, [4, 0, 2]]) + others
    torch.testing.assert_close(r.log_prob(z), expected, rtol=1e-10, atol=1e-10)


def test_an_embedded_draw_moves_its_latents_and_leaves_the_others_to_the_noise() -> None:
    scale = torch.diag(torch.tensor([2.0, 3.0], dtype=torch.float64))
    inner = GaussianMixture(
        torch.ones(1).double(), torch.tensor([[5.0, -5.0]]).double(), scale[None]
    )
    eps = reference.normal(NOISE, 1, 40, 4)[0]
    expected = eps.clone()
    expected[:, 3], expected[:, 1] = 5 + 2 * eps[:, 3], -5 + 3 * eps[:, 1]
    drawn = Embedded(inner, torch.tensor([3, 1]), 4).draw(NOISE, 40)
    torch.testing.assert_close(drawn, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_gaussian_has_the_highest_likelihood_of_its_family(covariance: str) -> None:
    z = points(300, 3).double() @ torch.tensor([[1.0, 0.8, 0], [0, 0.5, 0.3], [0, 0, 2]]).double()
    C = torch.cov(z.T, correction=0)
    C = torch.diag(C.diagonal()) if covariance == "diagonal" else C
    fitted = fit_gaussian(z, covariance)
    expected = MultivariateNormal(z.mean(0), C).log_prob(z)
    torch.testing.assert_close(fitted.log_prob(z), expected, rtol=1e-10, atol=1e-10)


def test_the_standard_normal_has_its_density() -> None:
    z = points(20, 4).double()
    expected = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(standard_normal(4, z.device).log_prob(z), expected)


def flow(D: int = 3) -> Flow:
    """A flow with weights that do something."""
    net = RealNVP(D, layers=4, hidden=8)
    with torch.no_grad():
        for n, weight in enumerate(net.parameters()):
            weight.copy_(0.3 * points(weight.numel(), 1, seed=n).view_as(weight))
    mean, scale = torch.tensor([1.0, -2.0, 0.5])[:D], torch.tensor([0.5, 2.0, 1.0])[:D]
    return Flow(net, mean, scale)


def test_a_flows_density_is_that_of_its_draws() -> None:
    """log r(z) = log N(eps) − log |det ∂z/∂eps|, the determinant by autograd."""
    r = flow()
    eps = points(5, 3)

    def transform(eps: Tensor) -> Tensor:
        return r.mean + r.scale * r.net.transform(eps)

    z = r.transform(eps.double(), torch.zeros(5))
    jacobians = [torch.autograd.functional.jacobian(transform, row) for row in eps]
    log_det = torch.stack([torch.linalg.slogdet(j.double())[1] for j in jacobians])
    expected = Normal(0.0, 1.0).log_prob(eps.double()).sum(1) - log_det
    torch.testing.assert_close(r.log_prob(z), expected, rtol=0, atol=1e-4)  # float32


def test_a_flow_bends_what_a_gaussian_cannot() -> None:
    """z = (a, a² + noise): a flow's log density comes near the true one, a Gaussian's does not."""

    def banana(seed: int, n: int) -> Tensor:
        a, b = points(n, 2, seed).T
        return torch.stack([3 * a + 10, 5 * (a.square() + 0.3 * b)], 1)

    train, validation, test = banana(1, 2_000), banana(2, 1_000), banana(3, 2_000)
    fitted = fit_flow(train, validation, seed=0)
    a = (test[:, 0] - 10) / 3
    truth = Normal(0.0, 1.0).log_prob(a) - math.log(3)
    truth = truth + Normal(5 * a.square(), 1.5).log_prob(test[:, 1])
    gap = truth - fitted.log_prob(test)
    # The gaps have a mean of 0.1 here; a Gaussian's is 0.9. Standard errors are below 0.03.
    assert -0.05 < float(gap.mean()) < 0.2
    assert float((truth - fit_gaussian(train).log_prob(test)).mean()) > 0.5
    again = fit_flow(train[:600], validation, seed=0).log_prob(test)
    assert torch.equal(again, fit_flow(train[:600], validation, seed=0).log_prob(test))
    assert not torch.equal(again, fit_flow(train[:600], validation, seed=1).log_prob(test))


def test_a_flow_keeps_the_state_that_validation_codes_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation codes that are standard normal, training codes that are far from it."""
    monkeypatch.setattr(fitting, "LOOK_EVERY", 5)
    near = torch.cat([points(400, 2), torch.tensor([[8.0, 8.0]]).expand(400, 2)])
    best = fit_flow(near, points(500, 2, 8), seed=0)
    other = fit_flow(near, near, seed=0)
    held_out = points(500, 2, 9)
    assert best.log_prob(held_out).mean() > other.log_prob(held_out).mean()


def test_fits_of_too_few_codes_or_other_names_are_refused() -> None:
    z = points(5, 3)
    with pytest.raises(ValueError, match="a full covariance in 3 dimensions needs 4 draws, got 3"):
        fit_gaussian(z[:3])
    with pytest.raises(ValueError, match="a diagonal covariance in 3 dimensions needs 2 draws"):
        fit_gaussian(z[:1], "diagonal")
    with pytest.raises(ValueError, match="covariance must be one of diagonal, full"):
        fit_gaussian(z, "spherical")
    with pytest.raises(ValueError, match="z must have shape"):
        fit_gaussian(z[0])
    with pytest.raises(ValueError, match="N ≥ 2"):
        fit_flow(z[:1], z, seed=0)
    with pytest.raises(ValueError, match="latent and layers must be at least 2"):
        fit_flow(z[:, :1], z[:, :1], seed=0)
