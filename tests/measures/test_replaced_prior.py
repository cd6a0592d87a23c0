"""The gain of another prior, against plain PyTorch in float64 and where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from vaez_fast.measures import replaced_prior
from vaez_fast.measures.densities import GaussianMixture, fit_gaussian, standard_normal
from vaez_fast.measures.law import lower_bound
from vaez_fast.measures.replaced_prior import log_px_gain
from vaez_fast.model import VAE
from vaez_kernels import noise_key, reference, rsample

NOISE = noise_key(0, "evaluate", 18)
SAMPLES = 20


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(30, 784, generator=generator) < 0.3).float()


@pytest.fixture(scope="module")
def vae() -> VAE:
    vae = VAE("lyeoni")
    with torch.no_grad():
        for layer in (vae.encoder[-1], vae.decoder[-1]):
            layer.weight.mul_(8.0)  # type: ignore[operator]
    return vae


@pytest.fixture(scope="module")
def density() -> GaussianMixture:
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.8]], dtype=torch.float64)
    mean = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    return GaussianMixture(mean[0, :1] * 0 + 1, mean, torch.linalg.cholesky(covariance)[None])


@torch.no_grad()
def expected(vae: VAE, density: GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's gains, every term from torch.distributions."""
    mu, logvar = (part.double() for part in vae.encode(x))
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * reference.normal(NOISE, SAMPLES, *mu.shape)
    logits = vae.decode(z.float()).double()
    log_px_z = Bernoulli(logits=logits).log_prob(x.double()).sum(2)
    log_p = Normal(0.0, 1.0).log_prob(z).sum(2)
    log_r = MultivariateNormal(density.means[0], scale_tril=density.factors[0]).log_prob(z)
    log_q = Normal(mu, sigma).log_prob(z).sum(2)
    ours, theirs = (
        (log_px_z + prior - log_q).logsumexp(0) - math.log(SAMPLES) for prior in (log_r, log_p)
    )
    return ours - theirs, (log_r - log_p).mean(0)


def test_gains_are_those_of_the_definition(
    vae: VAE, density: GaussianMixture, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected(vae, density, x)
    for rows in (10_000, 7 * SAMPLES):  # in one part, and seven images at a time
        monkeypatch.setattr(replaced_prior, "ROWS_AT_ONCE", rows)
        found = log_px_gain(vae, density, x, NOISE, SAMPLES)
        assert (found.num_images, found.num_samples) == (30, SAMPLES)
        for estimate, each in zip((found.log_px, found.elbo), wanted, strict=True):
            # Weights of float32 log-likelihoods near −500.
            assert estimate.value == pytest.approx(float(each.mean()), abs=2e-4)
            error = float(each.std()) / math.sqrt(30)
            assert estimate.standard_error == pytest.approx(error, abs=2e-4)


def test_the_old_prior_gains_nothing(vae: VAE, x: Tensor) -> None:
    found = log_px_gain(vae, standard_normal(2, x.device), x, NOISE, SAMPLES)
    for value in (*found.log_px, *found.elbo):
        assert value == pytest.approx(0, abs=1e-9)


@torch.no_grad()
def test_the_gain_in_elbo_is_the_lower_bound_of_the_kl(vae: VAE, x: Tensor) -> None:
    mu, logvar = vae.encode(x)
    z = [rsample(mu, logvar, noise_key(seed, "evaluate"))[0] for seed in (1, 2)]
    r = fit_gaussian(z[0])
    gain, bound = log_px_gain(vae, r, x, NOISE, 200).elbo, lower_bound(r, z[1])
    assert gain.value > 3 * gain.standard_error
    # The images are the same; the bound's own error is that of one z an image.
    assert abs(gain.value - bound.value) <= 5 * bound.standard_error


@torch.no_grad()
def test_a_decoder_that_ignores_z_gains_in_elbo_alone(density: GaussianMixture, x: Tensor) -> None:
    """log p(x) is the same under every prior; only the bound's slack changes."""
    vae = VAE("lyeoni")
    vae.decoder[-1].weight.zero_()  # type: ignore[operator]
    found = log_px_gain(vae, density, x, NOISE, 5_000)
    # q is N(0, I) but for the few percent that an untrained encoder adds.
    assert found.log_px.value == pytest.approx(0, abs=0.05)
    assert abs(found.elbo.value) > 0.3


def test_one_image_or_no_sample_is_refused(vae: VAE, density: GaussianMixture, x: Tensor) -> None:
    with pytest.raises(ValueError, match="two images and one sample are needed, got 1 and 5"):
        log_px_gain(vae, density, x[:1], NOISE, 5)
    with pytest.raises(ValueError, match="got 30 and 0"):
        log_px_gain(vae, density, x, NOISE, 0)
