"""KL(q(z) ‖ N(0, I)) of an aggregate posterior with one or two latents, by quadrature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The sum over a grid of step h errs by about (2πσ/h)² exp(−2π²σ²/h²) nats for each latent of a
# Gaussian of standard deviation σ: 3e-5 for h = 1.2 σ, 1e-9 for h = 0.9 σ.
STEPS_IN_SIGMA = (1.2, 0.9)
# Beyond so many of its standard deviations a component has 1e-12 of its mass.
REACH = 7.0
MOST_POINTS = 4_096  # of an axis
AGREEMENT = 1e-3  # nats
# Elements of a (points, components) block: 64 MB of float64.
BLOCK = 1 << 23


def kl_by_quadrature(mu: Tensor, logvar: Tensor) -> float:
    """KL(q(z) ‖ N(0, I)) in nats, q(z) = 1/N Σ_n N(z; mu_n, diag exp(logvar_n)), D ≤ 2.

    The integrand is summed over two grids in float64, whose steps are 1.2 and 0.9 times the
    smallest standard deviation of each axis; the finer sum is returned. On a grid each component is
    an outer product of two axes, so q is a matrix product: 50,000 components on 1,800 × 1,800
    points take 3·10¹¹ floating-point operations.

    Args:
        mu, logvar: (N, D), D = 1 or 2, N ≥ 1.

    Raises:
        ValueError: more than two latents, or the narrowest component needs more than 4,096 points
            of an axis.
        ArithmeticError: the two grids disagree by 0.001 nats or more.
    """
    if mu.dim() != 2 or mu.shape[1] not in (1, 2) or mu.shape != logvar.shape or len(mu) == 0:
        raise ValueError(
            "kl_by_quadrature: mu and logvar must have shape (N, 1) or (N, 2) with N ≥ 1, "
            f"got {tuple(mu.shape)} and {tuple(logvar.shape)}"
        )
    mu, sigma = mu.double(), torch.exp(0.5 * logvar.double())
    coarse, fine = (_sum(mu, sigma, step) for step in STEPS_IN_SIGMA)
    if not abs(fine - coarse) < AGREEMENT:
        raise ArithmeticError(
            f"kl_by_quadrature: two grids disagree, {coarse:.4f} and {fine:.4f} nats"
        )
    return fine


def _sum(mu: Tensor, sigma: Tensor, step_in_sigma: float) -> float:
    axes = [_axis(mu[:, j], sigma[:, j], step_in_sigma) for j in range(mu.shape[1])]
    x, y = axes[0], axes[1] if len(axes) == 2 else None
    total = torch.zeros(len(x), 1 if y is None else len(y), dtype=torch.float64, device=mu.device)
    rows = max(1, BLOCK // sum(map(len, axes)))
    for m, s in zip(mu.split(rows), sigma.split(rows), strict=True):
        second = torch.ones_like(m[:, :1]) if y is None else _density(y, m[:, 1:], s[:, 1:])
        total.addmm_(_density(x, m[:, :1], s[:, :1]).T, second)
    q = total.div_(len(mu))
    cell = float(x[1] - x[0]) * (1.0 if y is None else float(y[1] - y[0]))
    log_p = _log_normal(x)[:, None] + (0.0 if y is None else _log_normal(y))
    # Where q underflows to 0 the integrand is 0, its limit.
    return cell * float((torch.special.xlogy(q, q) - q * log_p).sum())


def _axis(mu: Tensor, sigma: Tensor, step_in_sigma: float) -> Tensor:
    low, high = (mu - REACH * sigma).min(), (mu + REACH * sigma).max()
    step = step_in_sigma * float(sigma.min())
    points = math.ceil(float(high - low) / step) + 1
    if points > MOST_POINTS:
        raise ValueError(
            f"kl_by_quadrature: the narrowest of the posteriors, σ = {float(sigma.min()):.2g}, "
            f"needs {points:,} points of an axis, at most {MOST_POINTS:,} are summed"
        )
    return low + step * torch.arange(points, dtype=torch.float64, device=mu.device)


def _density(grid: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    # grid (G,); mu, sigma (n, 1) → (n, G)
    return torch.exp(-0.5 * ((grid - mu) / sigma).square()) / (math.sqrt(2 * math.pi) * sigma)


def _log_normal(grid: Tensor) -> Tensor:
    return -0.5 * (grid.square() + math.log(2 * math.pi))
