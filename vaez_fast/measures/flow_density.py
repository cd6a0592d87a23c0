"""A RealNVP flow, fitted to codes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import uniform

from ..flows import RealNVP
from ..streams import FLOW_FIT
from .densities import Density

LAYERS, HIDDEN = 8, 64
BATCH = 500
LEARNING_RATE = 4e-3
# 50,000 codes get 3,000 steps, which take one core half a minute.
EPOCHS, MOST_STEPS = 30, 3_000
LOOK_EVERY = 100  # steps


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


@torch.enable_grad()
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
    if z.dim() != 2 or len(z) < 2:
        raise ValueError(f"fit_flow: z must have shape (N, d) with N ≥ 2, got {tuple(z.shape)}")
    mean, scale = z.float().mean(0), z.float().std(0, correction=0)
    if not bool((scale > 0).all()):
        raise ValueError("fit_flow: a latent of z is constant")
    net = RealNVP(z.shape[1], LAYERS, HIDDEN, seed).to(z.device)
    unit, watched = ((part.float() - mean) / scale for part in (z, validation_z))
    steps = min(MOST_STEPS, -(-EPOCHS * len(z) // BATCH))
    u = uniform(FLOW_FIT.key(seed, device=z.device), steps, BATCH, 1)[:, :, 0]
    batches = (u * len(z)).long().clamp(max=len(z) - 1)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    best, state = -torch.inf, copy.deepcopy(net.state_dict())
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        (-net.log_prob(unit[rows]).mean()).backward()
        optimizer.step()
        decay.step()
        if step % LOOK_EVERY == 0 or step == steps:
            with torch.no_grad():
                now = float(net.log_prob(watched).mean())
            if now > best:
                best, state = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(state)
    return Flow(net.requires_grad_(False), mean, scale)
