"""What a training step minimises, and which half of the model it trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaez_kernels import (
    bernoulli_log_prob,
    kl_standard_normal,
    kl_standard_normal_mc,
    linear_bernoulli_log_prob,
    normal,
    rsample,
    rsample_kl,
)

from .model import VAE, Linear
from .richer.posteriors import FullCovariance
from .richer.vae import RicherVAE

# `row_offset` is the index of x's first row in the batch that all ranks share: each row has its own
# noise.


# From this many bytes on, logits are not stored. At 77 MiB (K = 200, batch 128, two cores) a step
# takes as long without storing them, 0.45 s in bfloat16 and 0.77 in float32, and 87 MiB instead of
# 220; at 19 MiB (K = 50) it takes 1.1 to 1.2 times as long, since backward computes them again.
LARGE = 64 << 20


def log_likelihood(vae: VAE, z: Tensor, x: Tensor) -> Tensor:
    """log p(x|z): z (S, B, D), x (B, 784) in [0, 1] → (S, B) float32, nats."""
    last = vae.decoder[-1] if isinstance(vae.decoder, nn.Sequential) else None
    # A subclass may decode in another way.
    ordinary = type(vae).decode is VAE.decode
    large = 4 * z.shape[0] * x.numel() >= LARGE
    if not (isinstance(last, Linear) and ordinary and large):
        return bernoulli_log_prob(vae.decode(z), x)
    hidden = vae.decoder[:-1](z).to(last.weight.dtype)
    return linear_bernoulli_log_prob(hidden, last.weight, last.bias, x)


class NegativeElbo(nn.Module):
    """β·rate + distortion, in nats; −ELBO for β = 1 (Kingma & Welling 2014, equation 3).

    Args:
        vae: the model.
        kl: how the rate is computed: "analytic", "total-derivative" or "sticking-the-landing".
        beta: the rate's weight (Higgins et al. 2017, equation 4).
        num_samples: K, the samples of z per image over which Monte Carlo terms are means.
        free_bits: λ in nats. If positive, the rate is Σ_j max(λ, KL_j) for every image, KL_j the
            analytic KL of latent j, mean over the batch (Kingma et al. 2016, appendix C.8).
    """

    trains: tuple[str, ...] | None = None

    def __init__(
        self, vae: VAE, kl: str, beta: float = 1.0, num_samples: int = 1, free_bits: float = 0.0
    ) -> None:
        super().__init__()
        self.vae, self.kl, self.beta, self.num_samples = vae, kl, beta, num_samples
        self.free_bits = free_bits

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), distortion (B,)."""
        if isinstance(self.vae, RicherVAE):
            z, rate = self._richer(self.vae, x, noise, row_offset)
        else:
            mu, logvar = self.vae.encode(x)
            z, rate = rsample_kl(
                mu, logvar, noise, self.num_samples, self.kl, row_offset=row_offset
            )
            if self.free_bits > 0:
                rate = free_rate(mu, logvar, self.free_bits)
        return rate, -log_likelihood(self.vae, z, x).mean(0)

    def _richer(
        self, vae: RicherVAE, x: Tensor, noise: Tensor, row_offset: int
    ) -> tuple[Tensor, Tensor]:
        # → z (K, B, D), rate (B,)
        parameters = vae.parameters_of(x)
        shape = (self.num_samples, *parameters[0].shape)
        eps = normal(noise, *shape, row_offset=row_offset)
        z, log_q = vae.posterior.transform(eps, *parameters)
        if self.kl == "analytic":
            assert isinstance(vae.posterior, FullCovariance)
            return z, vae.posterior.kl_standard_normal(*parameters)
        return z, (log_q - vae.law().log_prob(z)).mean(0)


def free_rate(mu: Tensor, logvar: Tensor, free_bits: float) -> Tensor:
    """Σ_j max(λ, mean over the batch of KL_j) in nats: mu, logvar (B, D) → (B,), all equal."""
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).mean(0)
    return kl.clamp(min=free_bits).sum().expand(len(mu))


class ImportanceWeightedBound(nn.Module):
    """−L_K = −log 1/K Σ_k w_k, w_k = p(x, z_k)/q(z_k|x), in nats (Burda et al. 2016, equation 8).

    Both gradients are unbiased. The decoder's is Σ_k w̃_k ∂log w_k, with w̃_k = w_k / Σ_j w_j.

    Args:
        vae: the model.
        kl: the encoder's gradient. "total-derivative": Σ_k w̃_k ∂log w_k, the gradient of L_K itself
            (Burda et al. 2016, equation 13). "doubly-reparameterised": Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k,
            whose signal-to-noise ratio does not fall as K grows (Tucker et al. 2018, equation 8);
            for K = 1 it is sticking the landing.
        num_samples: K.
    """

    trains: tuple[str, ...] | None = None
    beta = 1.0

    def __init__(self, vae: VAE, kl: str, num_samples: int) -> None:
        super().__init__()
        self.vae, self.kl, self.num_samples = vae, kl, num_samples

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), distortion (B,), whose sum is −L_K.

        The distortion is the mean over the samples of −log p(x|z). The rate is −L_K minus the
        distortion, at most the Monte Carlo KL of these samples. Only the rate carries a gradient:
        that of −L_K.
        """
        mu, logvar = self.vae.encode(x)
        eps = normal(noise, self.num_samples, *mu.shape, row_offset=row_offset)
        z = mu + torch.exp(0.5 * logvar) * eps  # (K, B, D)
        if self.kl == "doubly-reparameterised":
            # q's parameters are constants, and eps = (z − mu)/sigma depends on z. Its value is the
            # one that was drawn, because z − mu has lost digits.
            logvar = logvar.detach()
            eps = eps + torch.exp(-0.5 * logvar) * (z - z.detach())
        log_ratio = (0.5 * (z - eps) * (z + eps) - 0.5 * logvar).sum(2)  # log q(z|x) − log p(z)
        log_px_z = log_likelihood(self.vae, z, x)
        log_weight = log_px_z - log_ratio  # (K, B)
        if self.kl == "doubly-reparameterised" and z.requires_grad:
            share = torch.softmax(log_weight.detach(), 0)[..., None]
            z.register_hook(lambda gradient: share * gradient)
        bound = torch.logsumexp(log_weight, 0) - math.log(self.num_samples)
        distortion = -log_px_z.detach().mean(0)
        return -bound - distortion, distortion


class Rate(nn.Module):
    """The KL term alone, for the encoder: the article's encoder-only training.

    Args:
        vae: the model.
        kl: as for `NegativeElbo`, or "as-published": ½ Σ (σ − 1 + mu² − ln σ). That is the
            article's code, which has σ where σ² belongs; its minimum is the same.
    """

    trains: tuple[str, ...] | None = ("encoder",)
    beta = 1.0

    def __init__(self, vae: VAE, kl: str) -> None:
        super().__init__()
        self.vae, self.kl = vae, kl

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784), noise (2,) → the term to minimise (B,), zeros (B,)."""
        mu, logvar = self.vae.encode(x)
        if self.kl == "analytic":
            rate = kl_standard_normal(mu, logvar)
        elif self.kl == "as-published":
            sigma = torch.exp(0.5 * logvar)
            rate = 0.5 * (sigma - 1 + mu.square() - 0.5 * logvar).sum(1)
        else:
            rate = kl_standard_normal_mc(
                mu, logvar, noise, estimator=self.kl, row_offset=row_offset
            )
        return rate, torch.zeros_like(rate)


class Distortion(nn.Module):
    """−log p(x|z), for the decoder; no gradient reaches z.

    Args:
        vae: the model.
        source: where z comes from: "encoder" is the current q(z|x); "randn" is N(0, I) for every x.
    """

    trains: tuple[str, ...] | None = ("decoder",)
    beta = 1.0

    def __init__(self, vae: VAE, source: str) -> None:
        super().__init__()
        self.vae, self.source = vae, source

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784), noise (2,) → zeros (B,), distortion (B,)."""
        if self.source == "encoder":
            with torch.no_grad():
                z = rsample(*self.vae.encode(x), noise, row_offset=row_offset)
        else:
            z = normal(noise, 1, len(x), self.vae.architecture.latent, row_offset=row_offset)
        distortion = -log_likelihood(self.vae, z, x)[0]
        return torch.zeros_like(distortion), distortion


Objective = NegativeElbo | ImportanceWeightedBound | Rate | Distortion
