"""Learned priors against torch.distributions and their own definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaez_fast.model import VAE
from vaez_fast.richer.priors import EvenMixture, Flow, Law, Mixture, StandardNormal, Vamp
from vaez_kernels import noise_key, normal

D, K, M = 6, 7, 40
NOISE = noise_key(3, "generate", 0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def textbook(mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
    choice = torch.distributions.Categorical(torch.ones(len(mu), dtype=torch.float64))
    normals = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    parts = torch.distributions.Independent(normals, 1)
    return torch.distributions.MixtureSameFamily(choice, parts).log_prob(z)


def narrow() -> tuple[Tensor, Tensor, Tensor]:
    """Components with σ down to e⁻⁴, and z of which half lie in one."""
    mu, logvar = 2.0 * drawn(K, D), -8.0 * torch.rand(K, D, generator=torch.Generator())
    inside = mu[torch.arange(M // 2) % K] + torch.exp(
        0.5 * logvar[torch.arange(M // 2) % K]
    ) * drawn(M // 2, D, seed=1)
    return mu, logvar, torch.cat((inside, drawn(M // 2, D, seed=2)))


@pytest.mark.parametrize("training", [True, False])
def test_a_mixtures_density_is_pytorchs_in_training_and_without_gradients(training: bool) -> None:
    mu, logvar, z = narrow()
    with torch.set_grad_enabled(training):
        ours = EvenMixture(mu, logvar).log_prob(z.view(2, M // 2, D))
    wanted = textbook(mu.double(), logvar.double(), z.double())
    # The bound of `mixture_log_prob`: σ = e⁻⁴ makes log q of the far z as large as −1e5.
    assert ours.shape == (2, M // 2)
    torch.testing.assert_close(ours.flatten().double(), wanted, rtol=3e-7, atol=1e-4)


def test_gradients_of_a_mixture_reach_z_and_every_component() -> None:
    mu, logvar, z = narrow()
    z = z[: M // 2]
    ours = [t.clone().requires_grad_() for t in (z, mu, logvar)]
    EvenMixture(ours[1], ours[2]).log_prob(ours[0]).sum().backward()
    truth = [t.double().requires_grad_() for t in (z, mu, logvar)]
    textbook(truth[1], truth[2], truth[0]).sum().backward()
    for a, b in zip(ours, truth, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        # Summed in float64, rounded to float32 once.
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5)


def test_draws_of_a_mixture_are_its_components_in_equal_parts() -> None:
    mu = torch.tensor([[-100.0, 0.0], [0.0, 100.0], [100.0, 0.0]])
    logvar = torch.tensor([[0.0, 2.0], [-2.0, 0.0], [1.0, 1.0]])
    law, n = EvenMixture(mu, logvar), 30_000
    z = law.draw(NOISE, n)
    assert torch.equal(z[:100], law.draw(NOISE, 100))
    component = torch.cdist(z, mu).argmin(1)
    for k in range(3):
        rows = z[component == k]
        # 4 standard errors of a share of a third, of a mean, and of a standard deviation
        assert len(rows) / n == pytest.approx(1 / 3, abs=4 * (2 / 9 / n) ** 0.5)
        sigma, error = torch.exp(0.5 * logvar[k]), 4 / 10_000**0.5
        assert bool(((rows.mean(0) - mu[k]).abs() < error * sigma).all())
        assert bool(((rows.std(0) / sigma - 1).abs() < error).all())


def no_encoder(x: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("this prior reads no encoder")


def log_standard_normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)


def test_the_standard_normal_and_a_new_flow_are_the_same_law() -> None:
    z = drawn(2, M, D)
    laws: list[Law] = [p.law(no_encoder) for p in (StandardNormal(D), Flow(D, seed=1))]
    for law in laws:
        torch.testing.assert_close(law.log_prob(z), log_standard_normal(z))
        torch.testing.assert_close(law.draw(NOISE, M), normal(NOISE, 1, M, D)[0])


def test_a_flows_density_is_that_of_its_draws() -> None:
    prior = Flow(D, seed=1)
    with torch.no_grad():
        for i, p in enumerate(prior.parameters()):
            p.add_(0.3 * drawn(*p.shape, seed=i))
    law, eps = prior.law(no_encoder), normal(NOISE, 1, 1, D)[0, 0]
    z = law.draw(NOISE, 1)
    assert not torch.allclose(z[0], eps)
    flow = prior.flow
    jacobian = torch.autograd.functional.jacobian(lambda e: flow.transform(e[None])[0], eps)
    wanted = log_standard_normal(eps) - torch.linalg.slogdet(jacobian).logabsdet
    # float32, through eight layers and back
    torch.testing.assert_close(law.log_prob(z)[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_new_mixture_is_spread_around_the_origin() -> None:
    torch.manual_seed(0)
    law = Mixture(D).law(no_encoder)
    assert isinstance(law, EvenMixture)
    assert law.mu.shape == law.logvar.shape == (100, D)
    assert len(law.mu.unique(dim=0)) == 100  # equal components would stay equal
    assert bool((law.logvar == 0).all())


def test_vamps_components_are_the_posteriors_of_its_pseudo_inputs() -> None:
    vae = VAE("lyeoni", 1)
    prior = Vamp(pseudo_inputs=5)
    law = prior.law(vae.encode)
    assert isinstance(law, EvenMixture)
    mu, logvar = vae.encode(1 / (1 + torch.exp(-prior.logits[0])))
    torch.testing.assert_close(law.mu, mu)
    torch.testing.assert_close(law.logvar, logvar)
    law.log_prob(drawn(3, 2)).sum().backward()
    assert prior.logits.grad is not None
    assert bool((prior.logits.grad[0].abs().amax(1) > 0).all())
    assert vae.encoder[0].weight.grad is not None  # the prior trains the encoder too


def test_pseudo_inputs_start_near_images_in_turn() -> None:
    prior = Vamp(pseudo_inputs=5)
    x = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))
    prior.start_at(x)
    pixels = torch.sigmoid(prior.logits[0])
    torch.testing.assert_close(pixels, 0.1 + 0.8 * x[[0, 1, 2, 0, 1]])
