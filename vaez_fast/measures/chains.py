"""Annealed importance sampling from N(0, I) to a target whose normaliser is wanted, and back.

A forward chain starts from N(0, I), moves along f_t for rising t (see `hamiltonian`), and collects
a weight whose expectation is Z = ∫ target (Neal 2001, equation 11). A reversed chain starts from a
draw of the target and collects a weight of which 1/weight has the expectation 1/Z. By Jensen's
inequality the logarithm of the mean of forward weights bounds log Z from below, and minus that of
the mean of 1/weight from above, each in expectation (Grosse, Ghahramani & Adams 2015, "Sandwiching
the marginal likelihood using bidirectional Monte Carlo").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .hamiltonian import LogDensity, Point, at, transition

FIRST_STEP, TARGET_ACCEPTANCE, LEARNING_RATE = 0.3, 0.8, 0.15


class Draws(NamedTuple):
    """The random numbers of one run of chains: functions of the temperature's index."""

    momentum: Callable[[int], Tensor]  # → standard normal, (C, B, D)
    uniform: Callable[[int], Tensor]  # → (C, B)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Temperatures, and the step size of every image at each.

    Chains that choose their own step sizes while they run have no exact weights. So steps are found
    by a run of its own (`tuned`) and then stay as they are.
    """

    temperatures: tuple[float, ...]  # from 0 to 1, rising
    steps: Tensor  # (T + 1, B); the first is not used
    leapfrogs: int


class Run(NamedTuple):
    """What chains found."""

    point: Point  # where they ended
    log_weight: Tensor  # (C, B) float64, nats
    acceptance: Tensor  # mean probability of acceptance, (B,)


def tuned(
    u: Tensor, log_target: LogDensity, temperatures: tuple[float, ...], leapfrogs: int, draws: Draws
) -> Ladder:
    """Step sizes by running forward chains from u (C, B, D), which are standard normal draws.

    After each move an image's step grows if its chains accepted more often than four times in five,
    and shrinks otherwise.
    """
    point, log_step = at(u, log_target), torch.full_like(u[0, :, 0], math.log(FIRST_STEP))
    steps = [log_step.exp()]
    for i, t in enumerate(temperatures[1:], 1):
        steps.append(log_step.exp())
        point, accept = transition(
            point, log_target, t, steps[-1], leapfrogs, draws.momentum(i), draws.uniform(i)
        )
        log_step = log_step + LEARNING_RATE * (accept.mean(0) - TARGET_ACCEPTANCE)
    return Ladder(temperatures, torch.stack(steps), leapfrogs)


def forward(u: Tensor, log_target: LogDensity, ladder: Ladder, draws: Draws) -> Run:
    """Chains from standard normal draws u (C, B, D) to the target: E exp(log_weight) = Z."""
    point, log_weight, accepted = at(u, log_target), u.new_zeros(u.shape[:2]).double(), []
    for i, rise in enumerate(_rises(ladder), 1):
        log_weight += rise * point.log_ratio.double()
        point, accept = _move(point, log_target, i, ladder, draws)
        accepted.append(accept.mean(0))
    return Run(point, log_weight, torch.stack(accepted).mean(0))


def backward(u: Tensor, log_target: LogDensity, ladder: Ladder, draws: Draws) -> Run:
    """Chains from draws u (C, B, D) of the target to N(0, I): E exp(−log_weight) = 1/Z.

    They undo `forward` move by move: HMC is reversible, so its moves are their own reverse.
    """
    point, log_weight, accepted = at(u, log_target), u.new_zeros(u.shape[:2]).double(), []
    for i, rise in reversed(list(enumerate(_rises(ladder), 1))):
        point, accept = _move(point, log_target, i, ladder, draws)
        log_weight += rise * point.log_ratio.double()
        accepted.append(accept.mean(0))
    return Run(point, log_weight, torch.stack(accepted).mean(0))


def _rises(ladder: Ladder) -> list[float]:
    return [t - below for below, t in pairwise(ladder.temperatures)]


def _move(
    point: Point, log_target: LogDensity, i: int, ladder: Ladder, draws: Draws
) -> tuple[Point, Tensor]:
    return transition(
        *(point, log_target, ladder.temperatures[i], ladder.steps[i], ladder.leapfrogs),
        *(draws.momentum(i), draws.uniform(i)),
    )


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Over the chains: (C, B) → (B,)."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))
