"""What a training step minimises, and which half of the model it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaez_kernels import (
    bernoulli_log_prob,
    kl_standard_normal,
    kl_standard_normal_mc,
    normal,
    rsample,
    rsample_kl,
)

from .model import VAE

BOTH = ("encoder", "decoder")

# Each objective's `key` names the graph that it becomes: the same for models of one architecture.


class NegativeElbo(nn.Module):
    """β·rate + distortion, in nats; −ELBO for β = 1 (Kingma & Welling 2014, equation 3).

    Args:
        vae: the model.
        kl: how the rate is computed: "analytic", "total-derivative" or "sticking-the-landing".
        beta: the rate's weight (Higgins et al. 2017, equation 4).
    """

    trains = BOTH

    def __init__(self, vae: VAE, kl: str, beta: float = 1.0) -> None:
        super().__init__()
        self.vae, self.kl, self.beta = vae, kl, beta
        self.key = ("elbo", kl)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), one-sample distortion (B,)."""
        mu, logvar = self.vae.encode(x)
        z, rate = rsample_kl(mu, logvar, noise, kl=self.kl)
        return rate, -bernoulli_log_prob(self.vae.decode(z), x)[0]


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
        self.key = ("kl", kl)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784), noise (2,) → what is minimised (B,), zeros (B,)."""
        mu, logvar = self.vae.encode(x)
        if self.kl == "analytic":
            rate = kl_standard_normal(mu, logvar)
        elif self.kl == "as-published":
            sigma = torch.exp(0.5 * logvar)
            rate = 0.5 * (sigma - 1 + mu.square() - 0.5 * logvar).sum(1)
        else:
            rate = kl_standard_normal_mc(mu, logvar, noise, estimator=self.kl)
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
        self.key = ("distortion", source)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784), noise (2,) → zeros (B,), distortion (B,)."""
        if self.source == "encoder":
            with torch.no_grad():
                z = rsample(*self.vae.encode(x), noise)
        else:
            z = normal(noise, 1, len(x), self.vae.architecture.latent)
        distortion = -bernoulli_log_prob(self.vae.decode(z), x)[0]
        return torch.zeros_like(distortion), distortion


Objective = NegativeElbo | Rate | Distortion
