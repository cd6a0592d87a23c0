"""The preset models: their sizes, the function log_softplus, their seeds."""

from __future__ import annotations

import pytest
import torch

from vaez_fast.model import MODELS, VAE, log_softplus


def test_altosaar_has_the_parameters_of_its_original() -> None:
    assert sum(p.numel() for p in VAE("altosaar").parameters()) == 632_848


@pytest.mark.parametrize("name", MODELS)
def test_encoder_and_decoder_fit_together(name: str) -> None:
    vae = VAE(name)
    mu, logvar = vae.encode(torch.rand(3, 784))
    assert mu.shape == logvar.shape == (3, MODELS[name].latent)
    assert vae.decode(mu).shape == (3, 784)


def test_log_softplus_and_its_gradient_follow_float64_from_the_left_tail_to_the_right() -> None:
    raw = torch.cat((torch.linspace(-80, 80, 4001), torch.tensor([-10.0, -9.999, -10.001])))
    ours = raw.clone().requires_grad_()
    value = log_softplus(ours)
    (gradient,) = torch.autograd.grad(value.sum(), ours)
    wide = raw.double().requires_grad_()
    # ln ln(1 + e^r), which float64 computes to 1e-12 down to r = −25; below that, r − e^r/2.
    truth = torch.where(
        wide > -25,
        torch.log(torch.log1p(torch.exp(wide.clamp(min=-25)))),
        wide - 0.5 * torch.exp(wide),
    )
    (true_gradient,) = torch.autograd.grad(truth.sum(), wide)
    # Near s = 1 the absolute error of ln(s) is that of s: a few roundings of 6e-8.
    assert ((value.double() - truth).abs() <= 3e-7 * truth.abs().clamp(min=1)).all()
    assert (gradient.double() - true_gradient).abs().max() < 2e-6


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = VAE("lyeoni", 3), VAE("lyeoni", 3), VAE("lyeoni", 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="altosaar, lyeoni, burda"):
        VAE("resnet")
