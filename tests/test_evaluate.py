"""Held-out metrics against a float64 evaluation that shares no code with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.baselines import TextbookVAE
from vaez_fast import evaluate
from vaez_fast.evaluate import Evaluator, Metrics
from vaez_fast.model import VAE
from vaez_kernels import noise_key, reference

NOISE = noise_key(1, "evaluate", 1)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return (torch.rand(37, 784, generator=torch.Generator().manual_seed(1)) < 0.2).to(torch.uint8)


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    vae = VAE("altosaar", 2)
    for p in vae.parameters():  # larger than at the start, so that q(z|x) depends on x
        p.data.mul_(2.0)
    return vae


def float64_metrics(vae: VAE, pixels: Tensor, samples: int) -> Metrics:
    textbook = TextbookVAE("altosaar")
    textbook.load_state_dict(vae.state_dict())
    textbook.double()
    x = pixels.double()
    with torch.no_grad():
        q = textbook.posterior(x)
        eps = reference.normal(NOISE, samples, *q.loc.shape)
        z = q.loc + q.scale * eps
        p = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
        log_px_z = torch.distributions.Bernoulli(logits=textbook.decoder(z)).log_prob(x).sum(-1)
        log_weight = log_px_z + p.log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        log_px = float((torch.logsumexp(log_weight, 0) - math.log(samples)).mean())
        prior = torch.distributions.Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
        rate = float(torch.distributions.kl_divergence(q, prior).sum(-1).mean())
        distortion = float(-log_px_z.mean())
    return Metrics(-(rate + distortion), rate, distortion, log_px, samples)


@pytest.mark.parametrize("samples", [1, 20])
def test_metrics_agree_with_float64(vae: VAE, pixels: Tensor, samples: int) -> None:
    ours = Evaluator(pixels, 1.0, NOISE)(vae, samples)
    truth = float64_metrics(vae, pixels, samples)
    assert truth.rate > 1  # the posterior is not the prior
    for name in ("elbo", "rate", "distortion", "log_px"):
        # float32 sums of 784 terms, near 600 nats
        assert getattr(ours, name) == pytest.approx(getattr(truth, name), abs=2e-3), name
    assert ours.elbo == pytest.approx(-(ours.rate + ours.distortion), abs=1e-12)
    assert ours.log_px_samples == samples


def test_metrics_do_not_depend_on_the_chunks(
    vae: VAE, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(pixels, 1.0, NOISE)(vae, 20)
    monkeypatch.setitem(evaluate.DECODED_AT_ONCE, "cpu", 30)
    monkeypatch.setattr(evaluate, "SAMPLES_AT_ONCE", 3)
    chunked = Evaluator(pixels, 1.0, NOISE)(vae, 20)
    assert chunked.log_px == pytest.approx(whole.log_px, abs=1e-3)
    assert chunked.distortion == pytest.approx(whole.distortion, abs=1e-3)


def test_log_px_is_above_the_elbo_and_grows_with_the_samples(vae: VAE, pixels: Tensor) -> None:
    evaluator = Evaluator(pixels, 1.0, NOISE)
    few, many = evaluator(vae, 2), evaluator(vae, 64)
    assert few.elbo < few.log_px < many.log_px


def test_importance_sampling_finds_the_integral_that_quadrature_finds() -> None:
    """log p(x) = log ∫ N(z; 0, I) p(x|z) dz over lyeoni's two latents, by a grid in float64."""
    vae = VAE("lyeoni", 3)
    for p in vae.decoder.parameters():
        p.data.mul_(1.5)  # so that p(x|z) depends on z
    x = (torch.rand(3, 784, generator=torch.Generator().manual_seed(2)) < 0.5).to(torch.uint8)
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = vae.decode(z.float()).double()
        log_joint = torch.stack(
            [
                torch.distributions.Bernoulli(logits=logits).log_prob(row).sum(1)
                for row in x.double()
            ]
        )
    log_joint = log_joint - 0.5 * z.square().sum(1) - math.log(2 * math.pi)
    wanted = (torch.logsumexp(log_joint, 1) + 2 * math.log(float(axis[1] - axis[0]))).mean()
    k = 1 << 14
    found = Evaluator(x, 1.0, NOISE)(vae, k).log_px
    # q is far from the posterior here, so weights vary by a few times their mean: 3/√k relative
    # for each of three images, five times that.
    assert found == pytest.approx(float(wanted), abs=5 * 3 / math.sqrt(3 * k))
    assert abs(Evaluator(x, 1.0, NOISE)(vae, 1).log_px - float(wanted)) > 0.2
