"""How a network's density is fitted to codes: standardised, by Adam, the best state kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

BATCH = 500
# 50,000 codes get 3,000 steps, which take one core half a minute.
EPOCHS, MOST_STEPS = 30, 3_000
LOOK_EVERY = 100  # steps

Score = Callable[[Tensor, int], Tensor]  # codes (B, d) and the step → log densities in nats


def mean_and_scale(who: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of codes z (N, d), each (d,) float32.

    Raises:
        ValueError: fewer than two codes, or a constant latent; the message begins with `who`.
    """
    if z.dim() != 2 or len(z) < 2:
        raise ValueError(f"{who}: z must have shape (N, d) with N ≥ 2, got {tuple(z.shape)}")
    mean, scale = z.float().mean(0), z.float().std(0, correction=0)
    if not bool((scale > 0).all()):
        raise ValueError(f"{who}: a latent of z is constant")
    return mean, scale


def steps_for(count: int) -> int:
    """As many steps of 500 codes as 30 epochs of `count` codes have, at most 3,000."""
    return min(MOST_STEPS, -(-EPOCHS * count // BATCH))


@torch.enable_grad()
def maximize(
    net: nn.Module, score: Score, z: Tensor, validation_z: Tensor, u: Tensor, learning_rate: float
) -> None:
    """Adam on the mean score, whose rate falls linearly to zero; `net` ends in its best state.

    Args:
        net: what is trained; afterwards it needs no gradient.
        score: the log density, or a bound of it, with the current weights. Step 0 is of the
            validation codes, whose mean score selects the state.
        z: (N, d) float32.
        validation_z: (V, d) float32.
        u: (steps, BATCH) in [0, 1), which choose the codes of each step, with replacement.
        learning_rate: at the first step.
    """
    steps = len(u)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    best, state = -torch.inf, copy.deepcopy(net.state_dict())
    batches = (u * len(z)).long().clamp(max=len(z) - 1)
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        (-score(z[rows], step).mean()).backward()
        optimizer.step()
        decay.step()
        if step % LOOK_EVERY == 0 or step == steps:
            with torch.no_grad():
                now = float(score(validation_z, 0).mean())
            if now > best:
                best, state = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(state)
    net.requires_grad_(False)
