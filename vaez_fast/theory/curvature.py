"""The whole ELBO's curvature at (mu, sigma) = (0, 1): a maximum or a saddle?

The smallest linear VAE: data along one direction with variance `eigenvalue`, decoder
p(x|z) = N(w·x_direction·z, noise), encoder q(z|x) = N(v·x, s²). At w = v = 0, s = 1 every q(z|x)
is N(0, 1) and the ELBO is stationary. The KL alone has its minimum there, but the Hessian of the
mean ELBO in (w, v) is

    [ −1/noise            eigenvalue/noise ]
    [ eigenvalue/noise    −eigenvalue      ]

with the determinant eigenvalue·(noise − eigenvalue)/noise². So (0, 1) is a maximum of the ELBO if
the data's variance is below the decoder's noise, and a saddle if it is above (Lucas et al., "Don't
blame the ELBO! A linear VAE perspective on posterior collapse", 2019, section 4).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .flow import Array, jacobian

NOISE = 1.0
EIGENVALUES = (0.5, 4.0)  # one on each side of the noise
COLLAPSED = np.array((0.0, 0.0, 1.0))  # (w, v, s)


def elbo(x: Array, eigenvalue: float, noise: float) -> Array:
    """Mean ELBO over the data in nats, without the collapsed model's: zero at (0, 0, 1).

    x = (w, v, s) is (3, ...). Rate ½(v²λ + s² − 1 − ln s²), and the squared error's expectation
    is λ − 2wvλ + w²(v²λ + s²), for λ = `eigenvalue`.
    """
    w, v, s = x
    second_moment = v * v * eigenvalue + s * s  # of z
    rate = 0.5 * (second_moment - 1.0 - np.log(s * s))
    return -rate + (w * v * eigenvalue - 0.5 * w * w * second_moment) / noise


def gradient(x: Array, eigenvalue: float, noise: float) -> Array:
    """∂elbo/∂(w, v, s): (3, ...)."""
    w, v, s = x
    in_w = (v * eigenvalue - w * (v * v * eigenvalue + s * s)) / noise
    in_v = -v * eigenvalue + (w - w * w * v) * eigenvalue / noise
    in_s = 1.0 / s - s - w * w * s / noise
    return np.stack((in_w, in_v, in_s))


def hessian(eigenvalue: float, noise: float) -> Array:
    """∇²elbo at the collapsed point w = v = 0, s = 1: (3, 3)."""
    cross = eigenvalue / noise
    return np.array(((-1.0 / noise, cross, 0.0), (cross, -eigenvalue, 0.0), (0.0, 0.0, -2.0)))


def optimum(eigenvalue: float, noise: float) -> Array:
    """The (w, v, s) of largest ELBO, with w ≥ 0: Tipping & Bishop 1999, equation 7."""
    if eigenvalue <= noise:
        return COLLAPSED
    w = math.sqrt(eigenvalue - noise)
    return np.array((w, w / eigenvalue, math.sqrt(noise / eigenvalue)))


def curvature() -> dict[str, Any]:
    """The Hessian's eigenvalues on both sides of the noise, and the ELBO over (w, v)."""
    w, v = np.linspace(-3.0, 3.0, 61), np.linspace(-1.2, 1.2, 61)
    plane = np.meshgrid(w, v)
    best_s = 1.0 / np.sqrt(1.0 + plane[0] ** 2 / NOISE)  # the best s for a decoder w
    cases = []
    for eigenvalue in EIGENVALUES:
        matrix = hessian(eigenvalue, NOISE)
        values = np.linalg.eigvalsh(matrix)
        at = optimum(eigenvalue, NOISE)
        numeric = jacobian(partial(gradient, eigenvalue=eigenvalue, noise=NOISE), COLLAPSED)
        cases.append(
            {
                "eigenvalue": eigenvalue,
                "hessian_eigenvalues": values.tolist(),
                "kind": "maximum" if values.max() < 0 else "saddle",
                "hessian_off_differences": float(np.abs(numeric - matrix).max()),
                "optimum": at.tolist(),
                "elbo_at_optimum": float(elbo(at, eigenvalue, NOISE)),
                "slope_at_optimum": float(np.abs(gradient(at, eigenvalue, NOISE)).max()),
                "elbo": elbo(np.stack((*plane, best_s)), eigenvalue, NOISE).tolist(),
            }
        )
    return {"noise": NOISE, "w": w.tolist(), "v": v.tolist(), "cases": cases}
