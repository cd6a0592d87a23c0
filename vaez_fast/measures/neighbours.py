"""Precision, recall, density and coverage of generated features, from nearest neighbours.

Around each feature lies the ball that reaches its fifth-nearest neighbour in its own set. With the
balls B of N real features x and the balls of M generated features y,

    precision = share of y in a ball of some x       recall = share of x in a ball of some y
    density = Σ_ij 1(y_j in B(x_i)) / (5 M)          coverage = share of x whose ball holds some y

Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019,
equations 1 and 2; Naeem et al., "Reliable fidelity and diversity metrics for generative models",
2020, equations 3 and 4. Generated features of the real law have a density of 1. Precision, recall
and coverage of two equal laws depend on N and M: the scores of other real images are their best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

K = 5
ROWS_AT_ONCE = 250  # 250 × 10,000 squared distances are 10 MB


class Neighbours(NamedTuple):
    """Shares between 0 and 1, but for the density, which is at least 0."""

    precision: float
    recall: float
    density: float
    coverage: float


def squared_radii(features: Tensor) -> Tensor:
    """Squared distance of each feature to its fifth-nearest other one: (n, d) → (n,).

    Raises:
        ValueError: fewer than six features.
    """
    if len(features) <= K:
        raise ValueError(f"features must be at least {K + 1}, got {len(features)}")
    found = []
    for start in range(0, len(features), ROWS_AT_ONCE):
        squares = squared_distances(features[start : start + ROWS_AT_ONCE], features)
        rows = torch.arange(len(squares), device=features.device)
        squares[rows, start + rows] = torch.inf  # a feature is not its own neighbour
        found.append(squares.topk(K, largest=False).values[:, -1])
    return torch.cat(found)


def neighbours(real: Tensor, generated: Tensor, real_radii: Tensor | None = None) -> Neighbours:
    """Scores of generated (M, d) against real (N, d) features; a ball's surface belongs to it.

    Args:
        real, generated: features of one dtype on one device.
        real_radii: `squared_radii(real)`, if they are at hand.

    Raises:
        ValueError: fewer than six features in a set.
    """
    of_real = squared_radii(real) if real_radii is None else real_radii
    of_generated = squared_radii(generated)
    precise, inside = 0, 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    for start in range(0, len(generated), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squares = squared_distances(generated[part], real)
        recalled |= (squares <= of_generated[part, None]).any(0)
        in_ball = squares <= of_real
        covered |= in_ball.any(0)
        precise += int(in_ball.any(1).count_nonzero())
        inside += int(in_ball.count_nonzero())
    count = len(generated)
    return Neighbours(
        precision=precise / count,
        recall=float(recalled.double().mean()),
        density=inside / (K * count),
        coverage=float(covered.double().mean()),
    )


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i − b_j|² of (n, d) and (m, d) → (n, m), from |a|² − 2 aᵀb + |b|²."""
    squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2.0)
    return squares.add_(a.square().sum(1, keepdim=True)).clamp_(min=0)
