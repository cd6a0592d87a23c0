"""The two summands of the KL, KL(N(mu, sigma²) ‖ N(0, 1)) = F(mu) + G(sigma), and their zeros.

F = ½mu² and G = ½(sigma² − 1 − ln sigma²). Neither is negative, and each is zero at one point
only: their derivatives mu and sigma − 1/sigma increase everywhere, so F and G are convex. (0, 1)
is therefore the KL's only minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .flow import PLANE_MU, PLANE_SIGMA, Array, gradient, kl, zeros


def F(mu: Array) -> Array:
    """½mu²: what the mean contributes to the KL, in nats."""
    return 0.5 * mu * mu


def G(sigma: Array) -> Array:
    """½(sigma² − 1 − ln sigma²): what the standard deviation contributes to the KL, in nats."""
    return kl(np.zeros_like(sigma), sigma)


def slope_of_F(mu: Array) -> Array:
    """dF/dmu = mu."""
    return gradient(np.stack((mu, np.ones_like(mu))))[0]


def slope_of_G(sigma: Array) -> Array:
    """dG/dsigma = sigma − 1/sigma."""
    return gradient(np.stack((np.zeros_like(sigma), sigma)))[1]


def summands() -> dict[str, Any]:
    """F and G, their derivatives, and their zeros: the zeros of a derivative where F or G is 0."""
    wide_mu, wide_sigma = np.linspace(-1e3, 1e3, 100_000), np.logspace(-3.0, 3.0, 100_000)
    mu, sigma = np.linspace(-3.0, 3.0, 121), np.linspace(0.05, 3.0, 119)
    flat = {"F": zeros(slope_of_F, wide_mu), "G": zeros(slope_of_G, wide_sigma)}
    plane_mu, plane_sigma = np.meshgrid(PLANE_MU, PLANE_SIGMA)
    off = F(plane_mu) + G(plane_sigma) - kl(plane_mu, plane_sigma)
    return {
        "mu": mu.tolist(),
        "F": F(mu).tolist(),
        "slope_of_F": slope_of_F(mu).tolist(),
        "sigma": sigma.tolist(),
        "G": G(sigma).tolist(),
        "slope_of_G": slope_of_G(sigma).tolist(),
        "zeros_of_F": [x for x in flat["F"] if F(np.array(x)) < 1e-12],
        "zeros_of_G": [x for x in flat["G"] if G(np.array(x)) < 1e-12],
        "zeros_of_slopes": flat,
        "least": {"F": float(F(wide_mu).min()), "G": float(G(wide_sigma).min())},
        "searched": {"mu": [-1e3, 1e3], "sigma": [1e-3, 1e3], "points": 100_000},
        "least_curvature": {
            "F": float(np.min(np.diff(slope_of_F(wide_mu)) / np.diff(wide_mu))),
            "G": float(np.min(np.diff(slope_of_G(wide_sigma)) / np.diff(wide_sigma))),
        },
        "sum_off_kl": float(np.abs(off).max()),
    }
