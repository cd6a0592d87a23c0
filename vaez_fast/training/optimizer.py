"""Update rules and learning rates, written to be part of a compiled step.

The learning rate and the bias corrections are precomputed, one table row per step. Inductor would
repeat their scalar arithmetic inside the loop over the weights, where two pow and a cos cost more
than the update (0.8 against 0.2 ms for 200,000 weights).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The fraction of all steps over which the learning rate rises. Without this warm-up, 100 of the
# encoder's first 256 units die instead of 20, and log p(x) of static MNIST ends at −96.8 instead of
# −94.9 (reports/README.md, "Warm-up").
WARMUP = 0.05


def rise(t: Tensor, steps: float) -> Tensor:
    """Rises linearly from 0 at t = 0 to 1 at t = `steps`, then stays 1."""
    return (t / max(1.0, steps)).clamp(max=1)


def warmup_cosine(lr: float, steps: int) -> Tensor:
    """(steps,) float64: rates that rise linearly to `lr`, then fall to zero along a cosine."""
    t = torch.arange(steps, dtype=torch.float64)
    return lr * rise(t + 1, WARMUP * steps) * 0.5 * (1 + torch.cos(math.pi * t / steps))


def constant(lr: float, steps: int) -> Tensor:
    """(steps,) float64: the same rate throughout."""
    return torch.full((steps,), lr, dtype=torch.float64)


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015, algorithm 1; the defaults are theirs and torch.optim.Adam's.

    A positive `weight_decay` is decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019,
    algorithm 2).
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def moments_of(self, weight: Tensor) -> list[Tensor]:
        """What is kept for a weight at the start: the mean gradient and the mean square, zeros."""
        return [torch.zeros_like(weight), torch.zeros_like(weight)]

    def table(self, rates: Tensor) -> Tensor:
        """(T,) rates → (T, 2) float32: lr_t / (1 − β₁^(t+1)) and 1 / √(1 − β₂^(t+1)).

        With weight decay (T, 3): the last is 1 − lr_t · weight_decay.
        """
        t = torch.arange(1, len(rates) + 1, dtype=torch.float64)
        columns = [rates / (1 - self.beta1**t), (1 - self.beta2**t).rsqrt()]
        if self.weight_decay > 0:
            columns.append(1 - rates * self.weight_decay)
        return torch.stack(columns, 1).float()

    def update(
        self, weight: Tensor, gradient: Tensor, moments: list[Tensor], row: list[Tensor]
    ) -> None:
        """One step in place; gradient float32, `row` the numbers of the step's row of the table."""
        m, v = moments
        step_size, correction, *kept = row
        m.lerp_(gradient, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        for factor in kept:
            weight.mul_(factor)
        weight.sub_(step_size * m / (v.sqrt() * correction + self.epsilon))


@dataclass(frozen=True)
class CenteredRMSprop:
    """Graves 2013 (arXiv:1308.0850), equations 38–41 without momentum, as torch.optim.RMSprop."""

    alpha: float = 0.99
    epsilon: float = 1e-8

    def moments_of(self, weight: Tensor) -> list[Tensor]:
        """What is kept for a weight at the start: the mean square and the mean gradient, zeros."""
        return [torch.zeros_like(weight), torch.zeros_like(weight)]

    def table(self, rates: Tensor) -> Tensor:
        """(T,) rates → (T, 1) float32, the same."""
        return rates[:, None].float()

    def update(
        self, weight: Tensor, gradient: Tensor, moments: list[Tensor], row: list[Tensor]
    ) -> None:
        """One step in place; gradient float32, `row` the numbers of the step's row of the table."""
        square, mean = moments
        square.mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        mean.lerp_(gradient, 1 - self.alpha)
        # Of equal gradients the difference is 0, but rounding can leave it below.
        deviation = (square - mean.square()).clamp(min=0).sqrt() + self.epsilon
        weight.sub_(row[0] * gradient / deviation)


Optimizer = Adam | CenteredRMSprop
