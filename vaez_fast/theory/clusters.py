"""What breaks the linear case: the same linear VAE on data in two clusters.

x = ±a + τ·eps along one direction, with variance λ = a² + τ². The linear VAE's optimum depends on
λ alone, so it is that of Gaussian data, and q(z) again has mean 0 and variance 1. But now q(z) is
½N(m, 1 − m²) + ½N(−m, 1 − m²) with m² = (1 − noise/λ)·a²/λ: clusters in the data are clusters in
z. A Gaussian fitted to z finds a KL of 0, whatever m is; the true KL is found by quadrature. The
kurtosis is 3 − 2m⁴: the tails are lighter than a normal's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .flow import Array
from .flow import kl as gaussian_kl

BETWEEN = 0.95  # a²/λ: the share of the variance that lies between the clusters
NOISE = 0.05  # noise/λ
# The densities and all their derivatives vanish at ± 10, so the trapezoidal rule, here a plain sum,
# is exact to rounding (Trefethen & Weideman 2014).
GRID = np.linspace(-10.0, 10.0, 20_001)
STEP = 1e-3


def log_density(z: Array, m: float) -> Array:
    """ln q(z) of ½N(m, 1 − m²) + ½N(−m, 1 − m²), for 0 ≤ m < 1."""
    variance = 1.0 - m * m
    parts = [-0.5 * (z - centre) ** 2 / variance for centre in (m, -m)]
    scale = math.log(2.0) + 0.5 * math.log(2.0 * math.pi * variance)
    return np.asarray(np.logaddexp(*parts) - scale)


def standard_log_density(z: Array) -> Array:
    """ln N(z; 0, 1)."""
    return -0.5 * (z * z + math.log(2.0 * math.pi))


def kl(m: float) -> float:
    """KL(q ‖ N(0, 1)) in nats, by the trapezoidal rule."""
    log_q = log_density(GRID, m)
    return float((np.exp(log_q) * (log_q - standard_log_density(GRID))).sum() * STEP)


def kl_by_hermite(m: float, nodes: int = 150) -> float:
    """The same by Gauss–Hermite quadrature over one component; the other is its mirror image."""
    eps, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z = m + math.sqrt(1.0 - m * m) * eps
    return float(weights @ (log_density(z, m) - standard_log_density(z)) / weights.sum())


def moment(m: float, power: int) -> float:
    """E_q z^power, by the trapezoidal rule."""
    return float((np.exp(log_density(GRID, m)) * GRID**power).sum() * STEP)


def clusters() -> dict[str, Any]:
    """The KL against m, and the density of one case."""
    m = math.sqrt((1.0 - NOISE) * BETWEEN)
    mean, variance = moment(m, 1), moment(m, 2) - moment(m, 1) ** 2
    centres = np.linspace(0.0, 0.99, 100)
    values = [kl(float(c)) for c in centres]
    off = [abs(kl_by_hermite(float(c)) - v) for c, v in zip(centres, values, strict=True)]
    z = np.linspace(-3.5, 3.5, 281)
    return {
        "between": BETWEEN,
        "noise": NOISE,
        "m": m,
        "rate": -0.5 * math.log(NOISE),
        "kl": kl(m),
        "kl_of_gaussian_fit": float(gaussian_kl(np.array(mean), np.array(math.sqrt(variance)))),
        "kurtosis": 3.0 - 2.0 * m**4,
        "kurtosis_by_quadrature": moment(m, 4),
        "off_hermite": max(off),
        "centres": centres.tolist(),
        "kls": values,
        "z": z.tolist(),
        "density": np.exp(log_density(z, m)).tolist(),
        "standard": np.exp(standard_log_density(z)).tolist(),
    }
