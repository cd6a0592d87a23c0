"""log p(x) of single images from both sides, by bidirectional Monte Carlo through the decoder.

Importance sampling gives a lower bound, and does not tell how loose it is. Annealed importance
sampling (Neal 2001; Wu et al. 2017, "On the quantitative analysis of decoder-based generative
models") from q(z|x) to p(z|x) gives a tighter one. The same chains reversed, from draws of p(z|x)
to q(z|x), give an upper bound (Grosse et al. 2015):

    E[lower] ≤ log p(x) ≤ E[upper].

The upper bound needs an exact draw of p(z|x). Only an image that the model itself made has one: the
z that it was made from. For real images, the reversed chains start from the ends of forward chains,
which are resampled in proportion to their weights, then moved by 50 more steps at temperature 1.
These are draws of p(z|x) only if the forward chains have found all of it. So measure simulated
images, too: where both bounds meet there, with the same number of temperatures, the forward chains
do find it.

Chains move in u = (z − mu)/sigma, where q(z|x) is N(0, I), by Hamiltonian Monte Carlo.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import normal, uniform

from ..flows import log_standard_normal
from ..model import VAE
from ..objective import log_likelihood
from ..streams import ANNEALED
from .chains import Draws, Ladder, Run, backward, forward, log_mean_exp, tuned
from .hamiltonian import LogDensity, at, transition

CHAINS, TEMPERATURES, LEAPFROGS = 16, 200, 5
TUNING_CHAINS = 4
REFINEMENTS = 50  # moves at temperature 1 before a chain from a real image turns back

# Indices of the stream ANNEALED. Each run of chains has three: its starts, momenta, acceptances.
TUNING, FORWARD, REFINING, BACKWARD = 0, 3, 6, 9
SIMULATED_Z, SIMULATED_X = 12, 13


@dataclass(frozen=True, eq=False)
class Annealed:
    """Bounds of log p(x) in nats, one for each image: (B,) float64."""

    lower: Tensor
    upper: Tensor
    rigorous: bool  # whether the upper bound's chains started from exact draws of p(z|x)
    effective_chains: Tensor  # (Σ w)²/Σ w² of the forward weights, at most the number of chains
    acceptance: Tensor  # mean over the moves of both directions


def bidirectional(
    vae: VAE,
    x: Tensor,
    seed: int,
    *,
    z: Tensor | None = None,
    chains: int = CHAINS,
    temperatures: int = TEMPERATURES,
    row_offset: int = 0,
) -> Annealed:
    """Stochastic lower and upper bounds of log p(x).

    They take 10·T passes of C chains through the decoder, 5·T of four chains to tune, and for real
    images 250 more.

    All images and chains move together: memory grows with B·C.

    Args:
        vae: a model with a Gaussian q(z|x), on x's device, float32.
        x: (B, 784) in [0, 1].
        seed: of all random numbers (see `streams.ANNEALED`).
        z: (B, D), if x was drawn from p(x|z) with z from N(0, I) (`simulate`): makes the upper
            bound rigorous. None for real images.
        chains: C ≥ 1 in each direction. More of them tighten both bounds.
        temperatures: T ≥ 1 of the path; more of them tighten both bounds faster, at the same cost.
        row_offset: the index of the first image. An image's random numbers depend on its index
            alone, so a data set may be measured in parts.

    Raises:
        ValueError: no chain or no temperature, or z without one row for each image.
    """
    if chains < 1 or temperatures < 1:
        raise ValueError(
            f"bidirectional: chains and temperatures must be at least 1, got {chains} and "
            f"{temperatures}"
        )
    with torch.no_grad():
        mu, logvar = vae.encode(x)
    if z is not None and z.shape != mu.shape:
        raise ValueError(
            f"bidirectional: z must have shape {tuple(mu.shape)}, got {tuple(z.shape)}"
        )
    log_target = log_joint(vae, x, mu, logvar)
    path = tuple(i / temperatures for i in range(temperatures + 1))
    noise = Noise(seed, row_offset, mu.shape, mu.device)
    ladder = tuned(
        *(noise.starts(TUNING, TUNING_CHAINS), log_target, path, LEAPFROGS),
        noise.draws(TUNING, TUNING_CHAINS),
    )
    starts = noise.starts(FORWARD, chains)
    there = forward(starts, log_target, ladder, noise.draws(FORWARD, chains))
    if z is None:
        ends = refined(there, log_target, ladder, noise)
    else:
        ends = ((z - mu) * torch.exp(-0.5 * logvar)).expand(chains, -1, -1)
    back = backward(ends, log_target, ladder, noise.draws(BACKWARD, chains))
    return Annealed(
        lower=log_mean_exp(there.log_weight),
        upper=-log_mean_exp(-back.log_weight),
        rigorous=z is not None,
        effective_chains=1.0 / torch.softmax(there.log_weight, 0).square().sum(0),
        acceptance=0.5 * (there.acceptance + back.acceptance),
    )


@torch.no_grad()
def simulate(vae: VAE, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of the model and the z that they were made from: (count, 784) of 0 and 1, (count, D).

    Given such an x, its z is an exact draw of p(z|x).
    """
    device = next(vae.parameters()).device
    z = normal(ANNEALED.key(seed, SIMULATED_Z, device=device), 1, count, vae.architecture.latent)[0]
    means = torch.sigmoid(vae.decode(z))
    key = ANNEALED.key(seed, SIMULATED_X, device=device)
    return (uniform(key, 1, *means.shape)[0] < means).float(), z


def log_joint(vae: VAE, x: Tensor, mu: Tensor, logvar: Tensor) -> LogDensity:
    """log p(x, z) + ln |det ∂z/∂u| for z = mu + sigma·u: its normaliser over u is p(x)."""
    sigma, log_det = torch.exp(0.5 * logvar), 0.5 * logvar.sum(-1)

    def log_target(u: Tensor) -> Tensor:
        z = mu + sigma * u
        return log_likelihood(vae, z, x) + log_standard_normal(z) + log_det

    return log_target


def refined(there: Run, log_target: LogDensity, ladder: Ladder, noise: Noise) -> Tensor:
    """Approximate draws of p(z|x) from the ends of forward chains, as u: (C, B, D).

    They are drawn again with probabilities in proportion to their weights, and then moved on.
    """
    chains = len(there.log_weight)
    edges = torch.softmax(there.log_weight, 0).cumsum(0)  # (C, B)
    chosen = torch.searchsorted(
        edges.T.contiguous(), noise.uniform(REFINING, chains).double().T.contiguous(), right=True
    )
    rows = chosen.clamp(max=chains - 1).T[..., None].expand_as(there.point.u)
    point, draws = at(there.point.u.gather(0, rows), log_target), noise.draws(REFINING, chains)
    for i in range(REFINEMENTS):
        point, _ = transition(
            *(point, log_target, 1.0, ladder.steps[-1], ladder.leapfrogs),
            *(draws.momentum(i), draws.uniform(i)),
        )
    return point.u


@dataclass(frozen=True)
class Noise:
    """The random numbers of the chains of B images with D latents."""

    seed: int
    first: int  # index of the first image
    shape: torch.Size  # (B, D)
    device: torch.device

    def starts(self, run: int, chains: int) -> Tensor:
        """Standard normal u: (C, B, D)."""
        return self._normal(run, chains, 0)

    def uniform(self, run: int, chains: int) -> Tensor:
        """(C, B)."""
        return self._uniform(run, chains, 0)

    def draws(self, run: int, chains: int) -> Draws:
        """Momenta and acceptances: those of the i-th move are the samples from i·C on."""
        return Draws(
            lambda i: self._normal(run + 1, chains, i * chains),
            lambda i: self._uniform(run + 2, chains, i * chains),
        )

    def _normal(self, index: int, chains: int, offset: int) -> Tensor:
        key = ANNEALED.key(self.seed, index, device=self.device)
        return normal(key, chains, *self.shape, sample_offset=offset, row_offset=self.first)

    def _uniform(self, index: int, chains: int, offset: int) -> Tensor:
        key = ANNEALED.key(self.seed, index, device=self.device)
        drawn = uniform(key, chains, self.shape[0], 1, sample_offset=offset, row_offset=self.first)
        return drawn[..., 0]
