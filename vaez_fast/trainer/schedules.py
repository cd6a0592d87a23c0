"""Learning rates and KL weights as functions of the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..training.optimizer import constant as constant_rates
from ..training.optimizer import rise, warmup_cosine

Schedule = Callable[[int], Tensor]  # the number of all steps T → (T,), one value for each


def cosine(peak: float) -> Schedule:
    """Rises linearly to `peak` over the first 5 % of all steps, then falls to 0 along a cosine."""
    return lambda steps: warmup_cosine(peak, steps)


def warmup(steps: int, to: float = 1.0) -> Schedule:
    """Rises linearly from 0 to `to` over the first `steps` steps, then stays."""
    first = steps
    return lambda steps: to * rise(torch.arange(steps, dtype=torch.float64), first)


def constant(value: float) -> Schedule:
    """The same value throughout."""
    return lambda steps: constant_rates(value, steps)


def values(name: str, schedule: float | Schedule, steps: int) -> Tensor:
    """(steps,) float64: what a number or a schedule gives.

    Raises:
        TypeError, ValueError: neither, or values that are negative, not finite or of another shape.
    """
    if isinstance(schedule, (int, float)) and not isinstance(schedule, bool):
        schedule = constant(float(schedule))
    if not callable(schedule):
        raise TypeError(f"{name} must be a number or a function of the number of steps")
    found = torch.as_tensor(schedule(steps), dtype=torch.float64)
    if found.shape != (steps,) or not bool((found.isfinite() & (found >= 0)).all()):
        raise ValueError(
            f"{name} must give {steps} finite values of at least 0, one for each step, got shape "
            f"{tuple(found.shape)}"
        )
    return found
