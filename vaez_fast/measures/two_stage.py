"""The second stage of a two-stage VAE: another VAE, fitted to the codes of the first.

(Dai & Wipf, "Diagnosing and enhancing VAE models", 2019, section 4.) It has as many latents u as z
has, its p(z|u) is a Gaussian of one learned variance, and p(z) = ∫ p(z|u) N(u; 0, I) du takes the
place of N(0, I) when images are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaez_kernels import normal, uniform

from ..flows import LOG_2PI, log_standard_normal
from ..model import Linear
from ..streams import SECOND_STAGE
from .densities import Density
from .fitting import BATCH, maximize, mean_and_scale, steps_for

HIDDEN = 256
LEARNING_RATE = 3e-3
# 128 would raise the mean log p(z) by 0.04 nats (altosaar's VAE after 8 epochs of full MNIST).
SAMPLES = 16
# σ of p(z|u) at the start. At 1 the fit stays where u says nothing: codes whose mean and variance
# are those of N(0, I) make that a saddle. On a thin ring it then misses 1.5 nats, from here 0.4.
SIGMA = math.exp(-2.0)
ROWS_AT_ONCE = 1 << 16


class CodeVAE(nn.Module):
    """q(u|z) and p(z|u) over standardised codes z (…, d); u (…, d), too."""

    def __init__(self, latent: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = _perceptron(latent, 2 * latent)
            self.decoder = _perceptron(latent, latent)
        # of p(z|u), the same for every latent
        self.log_sigma = nn.Parameter(torch.tensor(math.log(SIGMA)))

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, d) → mu and logvar of q(u|z), (N, d) each."""
        mu, logvar = self.encoder(z).chunk(2, -1)
        return mu, logvar

    def log_weight(self, z: Tensor, eps: Tensor) -> Tensor:
        """log p(z|u) p(u) / q(u|z) in nats: z (N, d), eps (S, N, d) → (S, N)."""
        mu, logvar = self.encode(z)
        u = mu + torch.exp(0.5 * logvar) * eps
        error = (z - self.decoder(u)) * torch.exp(-self.log_sigma)
        log_p_z = log_standard_normal(error) - z.shape[-1] * self.log_sigma
        log_q = -0.5 * (eps.square() + logvar + LOG_2PI).sum(-1)
        return log_p_z + log_standard_normal(u) - log_q


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(Linear(inputs, HIDDEN), nn.ReLU(), Linear(HIDDEN, HIDDEN), nn.ReLU()),
        Linear(HIDDEN, outputs),
    )


@dataclass(frozen=True, eq=False)
class SecondStage(Density):
    """p(z) of a `CodeVAE`; z = mean + scale · its standardised codes."""

    net: CodeVAE
    mean: Tensor  # (d,) float32
    scale: Tensor  # (d,) float32
    noise: Tensor  # (2,) int64, of u in `log_prob` and of z given u in `transform`

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """log 1/S Σ_s p(z|u_s) p(u_s) / q(u_s|z) with S = 16, in float32; see `Density`.

        In expectation it is at most log p(z) (Burda et al. 2016, equation 8), so a lower bound that
        is made of it remains one. Row i of every call has noise i.
        """
        unit = (z.to(self.mean) - self.mean) / self.scale
        rows = max(1, ROWS_AT_ONCE // SAMPLES)
        parts = []
        for first in range(0, len(unit), rows):
            part = unit[first : first + rows]
            eps = normal(self.noise, SAMPLES, *part.shape, row_offset=first)
            parts.append(torch.logsumexp(self.net.log_weight(part, eps).double(), 0))
        return torch.cat(parts) - math.log(SAMPLES) - self.scale.double().log().sum()

    @torch.no_grad()
    def transform(self, eps: Tensor, u: Tensor) -> Tensor:
        """See `Density`: eps gives the second stage's u, its own noise z given u."""
        means = self.net.decoder(eps.to(self.mean))
        error = normal(self.noise, 1, *eps.shape, sample_offset=SAMPLES)[0]
        unit = means + torch.exp(self.net.log_sigma) * error
        return (self.mean + self.scale * unit).double()


def fit_second_stage(z: Tensor, validation_z: Tensor, seed: int) -> SecondStage:
    """A second stage by its ELBO: the state of the highest mean bound of validation codes.

    Adam takes as many steps of 500 codes, drawn with replacement, as 30 epochs have, at most 3,000;
    its rate falls linearly to zero. The codes are standardised first.

    Args:
        z: (N, d) codes, N ≥ 2.
        validation_z: (V, d).
        seed: of the initial weights, of the order of the codes and of all noise.

    Raises:
        ValueError: fewer than two codes, or a constant latent.
    """
    mean, scale = mean_and_scale("fit_second_stage", z)
    net = CodeVAE(z.shape[1], seed).to(z.device)
    unit, watched = ((part.float() - mean) / scale for part in (z, validation_z))
    noise = SECOND_STAGE.key(seed, 0, device=z.device)

    def bound(codes: Tensor, step: int) -> Tensor:
        eps = normal(SECOND_STAGE.key(seed, step, device=z.device), 1, *codes.shape)
        return net.log_weight(codes, eps)

    u = uniform(noise, steps_for(len(z)), BATCH, 1, sample_offset=SAMPLES + 1)[:, :, 0]
    maximize(net, bound, unit, watched, u, LEARNING_RATE)
    return SecondStage(net, mean, scale, noise)
