"""A RealNVP flow, fitted to codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import uniform

from ..flows import RealNVP
from ..streams import FLOW_FIT
from .densities import Density
from .fitting import BATCH, maximize, mean_and_scale, steps_for

LAYERS, HIDDEN = 8, 64
LEARNING_RATE = 4e-3


@dataclass(frozen=True, eq=False)
class Flow(Density):
    """z = mean + scale · f(eps) with a RealNVP f over at least two dimensions."""

    net: RealNVP
    mean: Tensor  # (D,) float32
    scale: Tensor  # (D,) float32

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """See `Density`; computed in float32."""
        unit = (z.to(self.mean) - self.mean) / self.scale
        return self.net.log_prob(unit).double() - self.scale.double().log().sum()

    @torch.no_grad()
    def transform(self, eps: Tensor, u: Tensor) -> Tensor:
        """See `Density`; computed in float32."""
        return (self.mean + self.scale * self.net.transform(eps.to(self.mean))).double()


def fit_flow(z: Tensor, validation_z: Tensor, seed: int) -> Flow:
    """A flow by maximum likelihood: the state of the highest mean log density of validation codes.

    Adam takes 30 epochs' steps of 500 codes, at most 3,000, and its rate falls linearly to zero.
    The codes are standardised first.

    Args:
        z: (N, d) codes, d ≥ 2 because a coupling layer needs two halves, N ≥ 2.
        validation_z: (V, d).
        seed: of the initial weights and of the order in which the codes are visited.

    Raises:
        ValueError: one latent, or fewer than two codes.
    """
    mean, scale = mean_and_scale("fit_flow", z)
    net = RealNVP(z.shape[1], LAYERS, HIDDEN, seed).to(z.device)
    unit, watched = ((part.float() - mean) / scale for part in (z, validation_z))
    u = uniform(FLOW_FIT.key(seed, device=z.device), steps_for(len(z)), BATCH, 1)[:, :, 0]
    maximize(net, lambda codes, _: net.log_prob(codes), unit, watched, u, LEARNING_RATE)
    return Flow(net, mean, scale)
