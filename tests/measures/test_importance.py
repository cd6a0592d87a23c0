"""log p(x) of models with their own posterior and prior: by quadrature, and as the fused op's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vaez_fast.measures.evaluate import Evaluator
from vaez_fast.measures.importance import importance_estimates
from vaez_fast.model import VAE
from vaez_fast.richer.vae import RicherVAE
from vaez_kernels import noise_key

NOISE = noise_key(1, "evaluate", 1)
IMAGES = 53  # more than the 50 of one product
ARMS = [
    ("diagonal", "mixture"),
    ("diagonal", "vamp"),
    ("full-covariance", "flow"),
    ("iaf", "standard-normal"),
    ("iaf", "mixture"),
]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(IMAGES, 784, generator=generator) < 0.2).to(torch.uint8)


def made(posterior: str, prior: str) -> RicherVAE:
    """A model of two latents whose parts all matter."""
    vae = RicherVAE("lyeoni", posterior, prior, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in vae.named_parameters():
            if not name.startswith(("encoder", "prior.logits")):
                p.add_(0.2 / p.shape[-1] ** 0.5 * torch.randn(p.shape, generator=generator))
    return vae.requires_grad_(False)


def by_quadrature(vae: RicherVAE, pixels: Tensor) -> Tensor:
    """log ∫ p(z) p(x|z) dz of each image, (N,) float64."""
    width = 0.1
    axis = torch.arange(-7.0, 7.0, width)
    z = torch.cartesian_prod(axis, axis)
    logits = vae.decode(z).double()
    log_px_z = logits @ pixels.double().T - torch.nn.functional.softplus(logits).sum(1)[:, None]
    log_p = vae.law().log_prob(z).double()
    # The density is whole within the square, so its sum is one.
    assert float(torch.logsumexp(log_p, 0)) + 2 * math.log(width) == pytest.approx(0.0, abs=0.01)
    return torch.logsumexp(log_p[:, None] + log_px_z, 0) + 2 * math.log(width)


@pytest.mark.parametrize(("posterior", "prior"), ARMS)
def test_log_px_is_that_of_quadrature(posterior: str, prior: str, pixels: Tensor) -> None:
    vae = made(posterior, prior)
    truth = by_quadrature(vae, pixels)
    few, many = (Evaluator(pixels, 1.0, NOISE)(vae, count) for count in (1, 400))
    # One sample's bound is the ELBO: 0.05 nats and more below. The spread of 400 samples' mean
    # weight over 53 images is below 0.01.
    assert many.log_px == pytest.approx(float(truth.mean()), abs=0.02)
    assert few.log_px == pytest.approx(few.elbo, abs=1e-3)
    assert many.elbo < many.log_px


def test_with_the_usual_posterior_and_prior_the_numbers_are_the_fused_ops(pixels: Tensor) -> None:
    vae, richer = VAE("lyeoni", 2), RicherVAE("lyeoni", seed=2)
    richer.load_state_dict(vae.state_dict())
    for scaled in (vae, richer):
        for p in scaled.parameters():
            p.data.mul_(2.0)
    fused, ours = (Evaluator(pixels, 1.0, NOISE, "float32")(m, 64) for m in (vae, richer))
    # The same samples; sums of 784 float32 terms, near 600 nats.
    assert ours.log_px == pytest.approx(fused.log_px, abs=2e-3)
    assert ours.distortion == pytest.approx(fused.distortion, abs=2e-3)
    # The rate is Monte Carlo here: 4 standard errors of 53 · 64 terms with a spread below 1.
    assert ours.rate != fused.rate
    assert ours.rate == pytest.approx(fused.rate, abs=4 / (53 * 64) ** 0.5)


def test_samples_and_images_have_noise_of_their_own(pixels: Tensor) -> None:
    vae = made("full-covariance", "mixture")
    parameters = vae.parameters_of(pixels.float())

    def estimated(rows: slice, samples: int, first: int = 0) -> Tensor:
        estimates = importance_estimates(
            *(vae, tuple(p[rows] for p in parameters), pixels[rows], NOISE, samples),
            row_offset=rows.start,
            sample_offset=first,
        )
        return torch.stack((estimates.log_likelihood, estimates.rate, estimates.log_prob))

    whole = estimated(slice(0, IMAGES), 40)
    first, rest = estimated(slice(0, IMAGES), 24), estimated(slice(0, IMAGES), 16, 24)
    log_px = torch.logaddexp(first[0] + math.log(24), rest[0] + math.log(16)) - math.log(40)
    # float32 products of other sizes round differently: 600 nats to 1e-4.
    torch.testing.assert_close(whole[0], log_px, rtol=0, atol=1e-3)
    torch.testing.assert_close(whole[1:], (24 * first + 16 * rest)[1:] / 40, rtol=0, atol=1e-3)
    torch.testing.assert_close(estimated(slice(51, 53), 40), whole[:, 51:], rtol=0, atol=1e-3)


def test_the_curve_over_samples_ends_at_the_metric(pixels: Tensor) -> None:
    vae, evaluator = made("iaf", "mixture"), Evaluator(pixels, 1.0, NOISE)
    curve = evaluator.log_px_curve(vae, (1, 16, 48))
    assert curve.shape == (3, IMAGES)
    assert float(curve[2].mean()) == pytest.approx(evaluator(vae, 48).log_px, abs=1e-3)
    assert float(curve[0].mean()) == pytest.approx(evaluator(vae, 1).log_px, abs=1e-3)
