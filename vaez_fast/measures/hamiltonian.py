"""One step of Hamiltonian Monte Carlo for many chains at once (Neal 2011, "MCMC using Hamiltonian
dynamics", section 3.2), on a geometric path from N(0, I) to a target:

    log f_t(u) = (1 − t)·log N(u; 0, I) + t·log target(u).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..flows import log_standard_normal

# u (C, B, D) → its unnormalised log density in nats, (C, B); differentiable
LogDensity = Callable[[Tensor], Tensor]


class Point(NamedTuple):
    """Where the chains are, with the target's value and slope there, which every t can use."""

    u: Tensor  # (C, B, D)
    log_target: Tensor  # (C, B)
    slope: Tensor  # ∂log_target/∂u, (C, B, D)

    @property
    def log_ratio(self) -> Tensor:
        """log target(u) − log N(u; 0, I), in nats: (C, B)."""
        return self.log_target - log_standard_normal(self.u)


def at(u: Tensor, log_target: LogDensity) -> Point:
    """The point of the chains at u (C, B, D)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = log_target(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
    return Point(u.detach(), value.detach(), slope)


def transition(
    point: Point,
    log_target: LogDensity,
    t: float,
    step: Tensor,
    leapfrogs: int,
    momentum: Tensor,
    uniform: Tensor,
) -> tuple[Point, Tensor]:
    """A move that leaves f_t unchanged and is reversible.

    Args:
        point: where the chains are.
        log_target: evaluated `leapfrogs` times.
        t: the temperature, in [0, 1].
        step: the leapfrog's step size for each image, (B,).
        leapfrogs: steps of one trajectory.
        momentum: standard normal draws, (C, B, D).
        uniform: uniform draws that decide acceptance, (C, B).

    Returns:
        The next point, and the probability with which each chain accepted: (C, B).
    """
    size = step[:, None]
    moved, p = point, momentum
    p = p + 0.5 * size * _force(moved, t)
    for i in range(leapfrogs):
        moved = at(moved.u + size * p, log_target)
        p = p + (size if i < leapfrogs - 1 else 0.5 * size) * _force(moved, t)
    energy = _energy(moved, t, p) - _energy(point, t, momentum)
    accept = torch.exp(-energy).clamp(max=1.0).nan_to_num(0.0)  # a diverged trajectory: rejected
    taken = uniform < accept
    chosen = (
        torch.where(taken if old.dim() == 2 else taken[..., None], new, old)
        for new, old in zip(moved, point, strict=True)
    )
    return Point(*chosen), accept


def _force(point: Point, t: float) -> Tensor:
    """∂log f_t/∂u."""
    return t * point.slope - (1.0 - t) * point.u


def _energy(point: Point, t: float, momentum: Tensor) -> Tensor:
    """−log f_t(u) − log N(momentum; 0, I), in nats: (C, B)."""
    log_f = log_standard_normal(point.u) + t * point.log_ratio
    return -log_f - log_standard_normal(momentum)
