"""Held-out metrics against a float64 evaluation that shares no code with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.training.baselines import TextbookVAE
from vaez_fast.measures import evaluate
from vaez_fast.measures.evaluate import Evaluator, Metrics
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
        log_px = torch.logsumexp(log_weight, 0) - math.log(samples)
        prior = torch.distributions.Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
        rate = float(torch.distributions.kl_divergence(q, prior).sum(-1).mean())
        distortion = float(-log_px_z.mean())
    spread = float(log_px.std()) / math.sqrt(len(x))
    return Metrics(-(rate + distortion), rate, distortion, float(log_px.mean()), spread, samples)


@pytest.mark.parametrize("samples", [1, 20])
def test_metrics_agree_with_float64(vae: VAE, pixels: Tensor, samples: int) -> None:
    ours = Evaluator(pixels, 1.0, NOISE, "float32")(vae, samples)
    truth = float64_metrics(vae, pixels, samples)
    assert truth.rate > 1  # the posterior differs from the prior
    for name in ("elbo", "rate", "distortion", "log_px", "log_px_standard_error"):
        # float32 sums of 784 terms, near 600 nats
        assert getattr(ours, name) == pytest.approx(getattr(truth, name), abs=2e-3), name
    assert ours.elbo == pytest.approx(-(ours.rate + ours.distortion), abs=1e-12)
    assert ours.log_px_samples == samples


def test_metrics_do_not_depend_on_the_chunks(
    vae: VAE, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(pixels, 1.0, NOISE, "float32")(vae, 20)
    monkeypatch.setattr(evaluate, "IMAGES_AT_ONCE", 10)
    chunked = Evaluator(pixels, 1.0, NOISE, "float32")(vae, 20)
    assert chunked.log_px == pytest.approx(whole.log_px, abs=1e-3)
    assert chunked.distortion == pytest.approx(whole.distortion, abs=1e-3)


def test_grey_pixels_are_scaled(vae: VAE, pixels: Tensor) -> None:
    # Bytes of 0 and 255 times 1/255 are the pixels 0 and 1, which take another path to float.
    one = Evaluator(pixels, 1.0, NOISE, "float32")(vae, 4)
    other = Evaluator(255 * pixels, 1 / 255, NOISE, "float32")(vae, 4)
    assert other.log_px == pytest.approx(one.log_px, abs=1e-3)


def test_a_curve_is_made_of_the_same_samples_as_its_points(vae: VAE, pixels: Tensor) -> None:
    evaluator = Evaluator(pixels, 1.0, NOISE, "float32")
    counts = (1, 5, 20)
    curve = evaluator.log_px_curve(vae, counts).mean(1).tolist()
    # float32 sums near 600 nats
    assert curve == pytest.approx([evaluator(vae, k).log_px for k in counts], abs=1e-3)


def test_bfloat16_moves_the_mean_little(vae: VAE, pixels: Tensor) -> None:
    exact, rounded = (Evaluator(pixels, 1.0, NOISE, p)(vae, 20) for p in ("float32", "bfloat16"))
    # The mean of 37 images near −600 nats, each with an error of about 0.05 of either sign.
    assert rounded.log_px == pytest.approx(exact.log_px, abs=0.1)
    assert rounded.log_px != exact.log_px


def test_log_px_is_above_the_elbo_and_grows_with_the_samples(vae: VAE, pixels: Tensor) -> None:
    evaluator = Evaluator(pixels, 1.0, NOISE, "float32")
    few, many = evaluator(vae, 2), evaluator(vae, 64)
    assert few.elbo < few.log_px < many.log_px


def test_importance_sampling_finds_the_integral_that_quadrature_finds() -> None:
    """log p(x) = log ∫ N(z; 0, I) p(x|z) dz over lyeoni's two latents, on a grid in float64."""
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
    found = Evaluator(x, 1.0, NOISE, "float32")(vae, k).log_px
    # q is far from the posterior here, so weights vary by a few times their mean: a relative error
    # of 3/√k for each of three images; five times that is allowed.
    assert found == pytest.approx(float(wanted), abs=5 * 3 / math.sqrt(3 * k))
    assert abs(Evaluator(x, 1.0, NOISE, "float32")(vae, 1).log_px - float(wanted)) > 0.2


def test_a_curve_does_not_depend_on_the_chunks(
    vae: VAE, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(pixels, 1.0, NOISE, "float32").log_px_curve(vae, (1, 5))
    monkeypatch.setattr(evaluate, "IMAGES_AT_ONCE", 10)
    chunked = Evaluator(pixels, 1.0, NOISE, "float32").log_px_curve(vae, (1, 5))
    # float32 sums near 600 nats, compared by image
    torch.testing.assert_close(chunked, whole, rtol=0, atol=5e-3)
