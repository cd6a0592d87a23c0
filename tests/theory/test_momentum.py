"""Momentum, compared with numpy.linalg and torch.optim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.theory.gaussians import distance, point
from vaez_fast.theory import momentum
from vaez_fast.theory.flow import rk4


@pytest.mark.parametrize("friction", [0.4, 2.5, 3.0])
def test_momentum_oscillates_below_twice_the_root_of_the_curvature(friction: float) -> None:
    for curvature in (1.0, 2.0):
        matrix = np.array(((0.0, 1.0), (-curvature, -friction)))
        ours = momentum.pairs(momentum.heavy_ball_eigenvalues(friction, curvature))
        assert ours == [pytest.approx(p) for p in momentum.pairs(np.linalg.eigvals(matrix))]
        assert any(imaginary != 0 for _, imaginary in ours) == (friction < 2.0 * curvature**0.5)


def test_the_heavy_ball_is_the_limit_of_sgd_with_momentum() -> None:
    off = []
    for rate in (1e-4, 2.5e-5):  # a step is √rate of time; half of it halves the distance
        step = math.sqrt(rate)
        x = point(2.0, 0.5)
        kept = 1.0 - momentum.FRICTION * step
        optimiser = torch.optim.SGD([x], lr=rate, momentum=kept)
        for _ in range(round(2.0 / step)):
            optimiser.zero_grad()
            distance(x[0], x[1]).backward()
            optimiser.step()
        start = np.array((2.0, 0.5, 0.0, 0.0))
        path = rk4(momentum.heavy_ball(momentum.FRICTION), start, 1e-3, 2000)
        off.append(np.abs(path[-1, :2] - x.detach().numpy()).max())
    assert off[0] < 0.02
    assert 1.8 < off[0] / off[1] < 2.2
