"""Why the KL's gradient flow never spirals, and how momentum makes it spiral.

The Jacobian of a gradient flow is −∇²KL. It is symmetric, so its eigenvalues are real, and here mu
and sigma each approach their limit from one side. x'' = −friction·x' − ∇KL has the roots of
λ² + friction·λ + h = 0 for each curvature h; they are complex if friction < 2√h. A path turns
around the minimum only with such momentum, or with steps that are too long.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .flow import Array, Field, flow, gradient, hessian, jacobian, rk4

FRICTION = 0.4
START = (2.0, 0.35)  # (mu, sigma)
OPTIMISER_STEPS = 6000
OPTIMISERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RMSprop", {"lr": 1e-3, "centered": True}),  # the article's
    ("Adam", {"lr": 1e-3}),
    ("Adam", {"lr": 1e-1}),
    ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9}),
)


def heavy_ball(friction: float) -> Field:
    """x'' = −friction·x' − ∇KL, the limit of momentum; the state is (mu, sigma, mu', sigma').

    SGD with learning rate η and momentum β has friction (1 − β)/√η, and a step advances time by √η
    (Polyak 1964).
    """

    def field(x: Array) -> Array:
        return np.concatenate((x[2:], -friction * x[2:] - gradient(x[:2])))

    return field


def crossings(values: Array) -> int:
    """How often a sequence changes its sign."""
    signs = np.sign(values[np.abs(values) > 1e-9])
    return int((signs[1:] != signs[:-1]).sum())


def heavy_ball_eigenvalues(friction: float, curvature: float) -> list[complex]:
    """The roots of λ² + friction·λ + curvature = 0: complex where friction < 2√curvature."""
    root = complex(friction * friction - 4.0 * curvature) ** 0.5
    return [(-friction - root) / 2.0, (-friction + root) / 2.0]


def pairs(values: Any) -> list[list[float]]:
    """Complex numbers as JSON: [real, imaginary], in a fixed order."""
    both = [[complex(v).real + 0.0, complex(v).imag + 0.0] for v in values]
    return sorted(both, key=lambda pair: (round(pair[0], 9), round(pair[1], 9)))


def spiral() -> dict[str, Any]:
    """The flow and the heavy ball from one start: only the ball crosses the minimum's axes."""
    start, step, steps, kept = np.array(START), 2e-3, 12_000, 20
    smooth = rk4(flow, start, step, steps)
    ball = rk4(heavy_ball(FRICTION), np.concatenate((start, np.zeros(2))), step, steps)
    curvatures = np.linalg.eigvalsh(hessian(np.array((0.0, 1.0))))
    linear = jacobian(heavy_ball(FRICTION), np.array((0.0, 1.0, 0.0, 0.0)))
    return {
        "friction": FRICTION,
        "critical_friction": [2.0 * math.sqrt(h) for h in curvatures],
        "flow_eigenvalues": pairs(np.linalg.eigvals(jacobian(flow, np.array((0.0, 1.0))))),
        "heavy_ball_eigenvalues": pairs(
            x for h in curvatures for x in heavy_ball_eigenvalues(FRICTION, float(h))
        ),
        "heavy_ball_eigenvalues_numeric": pairs(np.linalg.eigvals(linear)),
        "start": start.tolist(),
        "t": (np.arange(steps + 1) * step)[::kept].tolist(),
        "flow": smooth[::kept].T.tolist(),
        "heavy_ball": ball[::kept, :2].T.tolist(),
        "flow_crossings": [crossings(smooth[:, 0]), crossings(smooth[:, 1] - 1.0)],
        "heavy_ball_crossings": [crossings(ball[:, 0]), crossings(ball[:, 1] - 1.0)],
        "optimiser_steps": OPTIMISER_STEPS,
        "optimisers": optimisers(),
    }


def optimisers() -> list[dict[str, Any]]:
    """How far torch's optimisers overshoot mu = 0 and sigma = 1 from START, by exact gradients."""
    rows = []
    for name, settings in OPTIMISERS:
        x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
        optimiser = getattr(torch.optim, name)([x], **settings)
        path = []
        for _ in range(OPTIMISER_STEPS):
            at = x.detach().numpy().copy()
            path.append(at)
            x.grad = torch.from_numpy(gradient(at))
            optimiser.step()
        mu, sigma = np.array(path).T
        past = [max(0.0, float(-mu.min())), max(0.0, float(sigma.max()) - 1.0)]
        rows.append({"optimiser": name, "settings": settings, "past": [round(x, 6) for x in past]})
    return rows
