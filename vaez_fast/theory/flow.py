"""The KL term of one latent dimension as a function of (mu, sigma), and its gradient flow.

q = N(mu, sigma²), p = N(0, 1), KL(q‖p) = ½(mu² + sigma² − 1 − ln sigma²) nats (Kingma & Welling
2014, appendix B). Everything is NumPy in float64. Time t is that of the flow x' = −∇KL: a step of
gradient descent with learning rate η advances t by η.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Field = Callable[[Array], Array]

# On all sides of the minimum, and on both axes through it.
STARTS = (
    *((-2.5, 0.2), (-2.5, 1.0), (-2.5, 2.5), (-1.2, 0.2), (-1.2, 2.5), (0.0, 0.2)),
    *((0.0, 2.5), (1.2, 0.2), (1.2, 2.5), (2.5, 0.2), (2.5, 1.0), (2.5, 2.5)),
)
STEP, STEPS, KEPT = 1e-3, 6000, 40  # the flow to t = 6; every 40th point is kept
PLANE_MU, PLANE_SIGMA = np.linspace(-3.0, 3.0, 61), np.linspace(0.05, 3.0, 60)
LATENTS = 128  # of the article's model (altosaar's)


def kl(mu: Array, sigma: Array) -> Array:
    """KL(N(mu, sigma²) ‖ N(0, 1)) in nats; log1p keeps digits as sigma → 1."""
    excess = (sigma - 1.0) * (sigma + 1.0)
    return 0.5 * (mu * mu + excess - np.log1p(excess))


def gradient(x: Array) -> Array:
    """(F, G) = (dKL/dmu, dKL/dsigma) = (mu, sigma − 1/sigma), nats per unit; x is (2, ...)."""
    return np.stack((x[0], x[1] - 1.0 / x[1]))


def hessian(x: Array) -> Array:
    """∇²KL at x = (mu, sigma): diag(1, 1 + 1/sigma²)."""
    return np.diag((1.0, 1.0 + float(x[1]) ** -2))


def as_published(mu: Array, sigma: Array) -> Array:
    """½(sigma − 1 + mu² − ln sigma): the KL of the article's code (natank1/VAE_Loss, gauss_kl).

    It has the standard deviation in place of the variance, so this is KL(N(mu, sigma) ‖ N(0, 1)).
    """
    return 0.5 * (sigma - 1.0 + mu * mu - np.log(sigma))


def flow(x: Array) -> Array:
    """The gradient flow in (mu, sigma): mu' = −mu, sigma' = 1/sigma − sigma."""
    return -gradient(x)


def flow_logvar(x: Array) -> Array:
    """The gradient flow in (mu, l), l = ln sigma²: l' = −dKL/dl = (1 − e^l)/2."""
    return np.stack((-x[0], -0.5 * np.expm1(x[1])))


def flow_as_published(x: Array) -> Array:
    """The gradient flow of `as_published`: sigma' = (1/sigma − 1)/2."""
    return np.stack((-x[0], 0.5 * (1.0 / x[1] - 1.0)))


def closed_form(start: Array, t: Array) -> Array:
    """(mu, sigma) of the flow: mu₀e^(−t), sigma² = 1 + (sigma₀² − 1)e^(−2t); (T, 2, n)."""
    t = t[:, None]
    sigma = np.sqrt(1.0 + (start[1] ** 2 - 1.0) * np.exp(-2.0 * t))
    return np.stack((start[0] * np.exp(-t), sigma), 1)


def closed_form_logvar(start: Array, t: Array) -> Array:
    """(mu, l) of the flow in logvar: e^l = 1 / (1 + (e^(−l₀) − 1)e^(−t/2)); (T, 2, n)."""
    t = t[:, None]
    logvar = -np.log1p(np.expm1(-start[1]) * np.exp(-0.5 * t))
    return np.stack((start[0] * np.exp(-t), logvar), 1)


def rk4(field: Field, start: Array, step: float, steps: int) -> Array:
    """The classical Runge–Kutta method of order 4: (steps + 1, *start.shape)."""
    path = np.empty((steps + 1, *start.shape))
    path[0] = x = start
    for i in range(steps):
        a = field(x)
        b = field(x + 0.5 * step * a)
        c = field(x + 0.5 * step * b)
        d = field(x + step * c)
        path[i + 1] = x = x + step / 6.0 * (a + 2.0 * b + 2.0 * c + d)
    return path


def zeros(f: Callable[[Array], Array], grid: Array) -> list[float]:
    """Every zero at which `f` changes sign between grid points, by bisection to 1e-12."""
    signs = np.sign(f(grid))
    found = grid[signs == 0].tolist()
    for i in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        low, high = float(grid[i]), float(grid[i + 1])
        while high - low > 1e-13 * max(1.0, abs(high)):
            middle = 0.5 * (low + high)
            below = np.sign(f(np.array([middle])))[0] == signs[i]
            low, high = (middle, high) if below else (low, middle)
        found.append(round(0.5 * (low + high), 12) + 0.0)
    return sorted(found)


def jacobian(field: Field, at: Array, h: float = 1e-5) -> Array:
    """∂field/∂x by central differences."""
    shifts = h * np.eye(len(at))
    return np.stack([(field(at + s) - field(at - s)) / (2.0 * h) for s in shifts], 1)


# The parts of the record, each with the numbers of one figure.


def surface() -> dict[str, Any]:
    """The KL over the plane, and its curvature at the minimum."""
    mu, sigma = np.meshgrid(PLANE_MU, PLANE_SIGMA)
    at = np.array((0.0, 1.0))
    numeric = jacobian(gradient, at)
    return {
        "mu": PLANE_MU.tolist(),
        "sigma": PLANE_SIGMA.tolist(),
        "kl": kl(mu, sigma).tolist(),
        "minimum": [0.0, 1.0],
        "hessian": hessian(at).tolist(),
        "hessian_eigenvalues": np.linalg.eigvalsh(hessian(at)).tolist(),
        "hessian_off_differences": float(np.abs(numeric - hessian(at)).max()),
    }


def flows() -> dict[str, Any]:
    """The flow from every start in both coordinates, and the KL along it."""
    starts = np.array(STARTS).T
    t: Array = np.arange(STEPS + 1, dtype=np.float64) * STEP
    path = rk4(flow, starts, STEP, STEPS)
    in_logvar = np.stack((starts[0], 2.0 * np.log(starts[1])))
    logvar_path = rk4(flow_logvar, in_logvar, STEP, STEPS)

    value = kl(path[:, 0], path[:, 1])
    slope = (value[:-4] - 8.0 * value[1:-3] + 8.0 * value[3:-1] - value[4:]) / (12.0 * STEP)
    predicted = -np.square(np.moveaxis(gradient(np.moveaxis(path, 1, 0)), 0, 1)).sum(1)[2:-2]
    at = np.array((0.0, 1.0))
    return {
        "starts": starts.T.tolist(),
        "t": t[::KEPT].tolist(),
        "mu": path[::KEPT, 0].T.tolist(),
        "sigma": path[::KEPT, 1].T.tolist(),
        "sigma_in_logvar": np.exp(0.5 * logvar_path[::KEPT, 1]).T.tolist(),
        "kl": value[::KEPT].T.tolist(),
        "integrator": {"method": "Runge–Kutta 4", "step": STEP, "steps": STEPS},
        "off_closed_form": float(np.abs(path - closed_form(starts, t)).max()),
        "logvar_off_closed_form": float(
            np.abs(logvar_path - closed_form_logvar(in_logvar, t)).max()
        ),
        "kl_always_falls": bool((np.diff(value, axis=0) < 0).all()),
        "dissipation_off": float(np.abs(slope / predicted - 1.0).max()),
        "rates": _eigenvalues(flow, at),
        "rates_in_logvar": _eigenvalues(flow_logvar, np.zeros(2)),
    }


def _eigenvalues(field: Field, at: Array) -> list[float]:
    matrix = jacobian(field, at)
    assert np.allclose(matrix, matrix.T)  # a gradient flow: symmetric, so real eigenvalues
    return [round(float(x), 6) for x in np.linalg.eigvalsh(0.5 * (matrix + matrix.T))]


def published_code() -> dict[str, Any]:
    """The published code's KL against the true one: value, curvature and relaxation of sigma."""
    zero, one = np.zeros(1), np.ones(1)
    at = np.array((0.0, 1.0))
    initial = np.log1p(one)  # softplus(0), where that encoder starts
    sigma = np.linspace(0.05, 3.0, 119)
    starts, step, steps, kept = np.array(((0.0, 0.0), (0.25, 2.5))), 1e-3, 8000, 40
    t: Array = np.arange(steps + 1, dtype=np.float64) * step
    true = rk4(flow, starts, step, steps)[:, 1]
    coded = rk4(flow_as_published, starts, step, steps)[:, 1]
    # ∫ sigma/(1 − sigma) dsigma = t/2 solves the coded flow, implicitly.
    invariant = coded + np.log(np.abs(coded - 1.0)) + 0.5 * t[:, None]
    mu, plane = np.meshgrid(PLANE_MU, PLANE_SIGMA)
    return {
        "latents": LATENTS,
        "initial_sigma": float(initial[0]),
        "initial_kl": LATENTS * float(kl(zero, initial)[0]),
        "initial_as_published": LATENTS * float(as_published(zero, initial)[0]),
        "rate": -_eigenvalues(flow, at)[0],
        "rate_as_published": min(-x for x in _eigenvalues(flow_as_published, at)),
        "off_kl_at_root_sigma": float(
            np.abs(as_published(mu, plane) - kl(mu, np.sqrt(plane))).max()
        ),
        "off_implicit_solution": float(np.abs(invariant - invariant[0]).max()),
        "sigma": sigma.tolist(),
        "kl": kl(np.zeros_like(sigma), sigma).tolist(),
        "as_published": as_published(np.zeros_like(sigma), sigma).tolist(),
        "starts": starts[1].tolist(),
        "t": t[::kept].tolist(),
        "gap": np.abs(true - 1.0)[::kept].T.tolist(),
        "gap_as_published": np.abs(coded - 1.0)[::kept].T.tolist(),
    }
