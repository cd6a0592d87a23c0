"""What a training step minimises."""

from __future__ import annotations

from torch import Tensor, nn

from vaez_kernels import rsample_kl

from .model import VAE, bernoulli_log_prob


class NegativeElbo(nn.Module):
    """−ELBO(x) = rate + distortion, in nats (Kingma & Welling 2014, equation 3).

    Args:
        vae: the model.
        kl: how the rate is computed: "analytic", "total-derivative" or "sticking-the-landing".
    """

    def __init__(self, vae: VAE, kl: str) -> None:
        super().__init__()
        self.vae, self.kl = vae, kl

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 784) in [0, 1], noise (2,) → rate (B,), one-sample distortion (B,)."""
        mu, logvar = self.vae.encode(x)
        z, rate = rsample_kl(mu, logvar, noise, kl=self.kl)
        return rate, -bernoulli_log_prob(self.vae.decode(z[0]), x)
