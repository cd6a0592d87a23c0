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

BOTH = ("encoder", "decoder")

# `row_offset` is the number of x's first row in the batch that all ranks share: noise is by row.


# Bytes of logits from which on their memory is saved. At 77 MiB (K = 200, batch 128, two cores) a
# step takes as long without them, 0.45 s in bfloat16 and 0.77 in float32, and 87 MiB instead of
# 220; at 19 MiB (K = 50) it takes 1.1 to 1.2 times as long, since backward computes them again.
LARGE = 64 << 20


def log_likelihood(vae: VAE, z: Tensor, x: Tensor) -> Tensor:
    """log p(x|z): z (S, B, D), x (B, 784) in [0, 1] → (S, B) float32, nats."""
    last = vae.decoder[-1] if isinstance(vae.decoder, nn.Sequential) else None
    # A model of one's own may decode in another way.
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
        num_samples: K, the samples of z an image that Monte Carlo terms are means over.
    """

    trains = BOTH

    def __init__(self, vae: VAE, kl: str, beta: float = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        self.vae, self.kl, self.beta, self.num_samples = vae, kl, beta, num_samples

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), distortion (B,)."""
        mu, logvar = self.vae.encode(x)
        z, rate = rsample_kl(mu, logvar, noise, self.num_samples, self.kl, row_offset=row_offset)
        return rate, -log_likelihood(self.vae, z, x).mean(0)


class ImportanceWeightedBound(nn.Module):
    """−L_K = −log 1/K Σ_k w_k, w_k = p(x, z_k)/q(z_k|x), in nats (Burda et al. 2016, equation 8).

    Both gradients are unbiased. That of the decoder is Σ_k w̃_k ∂log w_k, with w̃_k = w_k / Σ_j w_j.

    Args:
        vae: the model.
        kl: the encoder's gradient. "total-derivative": Σ_k w̃_k ∂log w_k, that of L_K as it stands
            (Burda et al. 2016, equation 13). "doubly-reparameterised": Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k,
            whose signal does not drown in noise as K grows (Tucker et al. 2018, equation 8); for
            K = 1 it is that of sticking the landing.
        num_samples: K.
    """

    trains = BOTH
    beta = 1.0

    def __init__(self, vae: VAE, kl: str, num_samples: int) -> None:
        super().__init__()
        self.vae, self.kl, self.num_samples = vae, kl, num_samples

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), distortion (B,), whose sum is −L_K.

        The distortion is the mean over the samples of −log p(x|z), and the rate what is left of
        −L_K: at most the Monte Carlo KL of these samples. The rate alone has a gradient, that of
        the whole.
        """
        mu, logvar = self.vae.encode(x)
        eps = normal(noise, self.num_samples, *mu.shape, row_offset=row_offset)
        z = mu + torch.exp(0.5 * logvar) * eps  # (K, B, D)
        if self.kl == "doubly-reparameterised":
            # q's parameters stand still, and eps = (z − mu)/sigma moves with z; its value stays the
            # one that was drawn, since z − mu has lost digits.
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
        kl: as for `NegativeElbo`; or "as-published", ½ Σ (σ − 1 + mu² − ln σ), with σ where σ²
            belongs: the defect of the article's own code, whose minimum is the same.
    """

    trains = ("encoder",)
    beta = 1.0

    def __init__(self, vae: VAE, kl: str) -> None:
        super().__init__()
        self.vae, self.kl = vae, kl

    def forward(self, x: Tensor, noise: Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x (B, 784), noise (2,) → what is minimised (B,), zeros (B,)."""
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
    """−log p(x|z), for the decoder, at z that no gradient enters.

    Args:
        vae: the model.
        source: where z is from: "encoder", q(z|x) as it stands; or "randn", N(0, I) whatever x is.
    """

    trains = ("decoder",)
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
