"""The KL of one latent dimension from samples: its estimators, and its null distribution.

With z = mu + sigma·eps, S = 1 and d = sigma − 1/sigma, one draw of log q(z) − log p(z) is
−ln sigma + ½(z² − eps²), and its gradients are

| estimator             | in mu         | variance | in sigma                   | variance        |
| --------------------- | ------------- | -------- | -------------------------- | --------------- |
| analytic              | mu            | 0        | d                          | 0               |
| total derivative      | z             | sigma²   | z·eps − 1/sigma            | mu² + 2·sigma²  |
| sticking the landing  | mu + d·eps    | d²       | (mu + d·eps)·eps           | mu² + 2·d²      |

(eps and eps² − 1 are uncorrelated, with variances 1 and 2). So, for every mu and both coordinates,
sticking the landing (Roeder et al. 2017) varies less if and only if d² < sigma² (sigma > 1/√2);
below, its variance grows as 1/sigma². In logvar, every gradient in sigma is multiplied by sigma/2,
so no ratio changes. This holds for the KL alone: the ELBO adds the likelihood's path derivative,
and sticking the landing has no variance if q is the exact posterior. The draws are those of the
project's ops, in float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from vaez_kernels import kl_standard_normal_mc, normal, use_backend

from ..measures.aggregate import null_sample_kl
from ..streams import KL_GRADIENT, MONTE_CARLO_KL, NULL_FITS
from .flow import LATENTS, PLANE_MU, PLANE_SIGMA, Array, gradient, kl

SEED = 0
ESTIMATORS = ("total-derivative", "sticking-the-landing")
EQUAL_SIGMA = 1.0 / math.sqrt(2.0)  # both estimators' gradients have the same variance

KL_DRAWS = 1 << 17
KL_MUS, KL_SIGMAS = (0.0, 0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0)
GRADIENT_DRAWS = 1 << 18
GRADIENT_POINTS = (
    *((0.0, 1.0), (1.0, 0.5), (0.0, 0.5), (2.0, 1.0)),
    *((0.0, 2.0), (0.5, 0.25), (0.0, EQUAL_SIGMA), (2.0, EQUAL_SIGMA)),
)
FITS = {32: 400, 128: 400, 512: 200, 2048: 100, 8192: 50}  # draws per fit: number of fits
WITHIN_95 = 1.959963984540054


def kl_variance(mu: Array, sigma: Array) -> Array:
    """Variance in nats² of one draw of log q(z) − log p(z): (mu·sigma)² + ½(sigma² − 1)²."""
    return (mu * sigma) ** 2 + 0.5 * (sigma * sigma - 1.0) ** 2


def gradient_variance(mu: Array, sigma: Array, estimator: str) -> Array:
    """(2, ...): variances of one draw of dKL/dmu and dKL/dsigma, from the table above."""
    slope = sigma if estimator == "total-derivative" else sigma - 1.0 / sigma
    return np.stack((slope**2 + 0.0 * mu, mu * mu + 2.0 * slope**2))


def monte_carlo_kl() -> dict[str, Any]:
    """`kl_standard_normal_mc`, one draw per row, against the analytic KL at every point."""
    mu, sigma = (x.ravel() for x in np.meshgrid(KL_MUS, KL_SIGMAS, indexing="ij"))
    rows = [torch.from_numpy(np.repeat(x, KL_DRAWS))[:, None].float() for x in (mu, sigma)]
    with use_backend("torch"):
        noise = MONTE_CARLO_KL.key(SEED)
        drawn = kl_standard_normal_mc(rows[0], 2.0 * rows[1].log(), noise)
    values = drawn.double().numpy().reshape(-1, KL_DRAWS)
    analytic, variance = kl(mu, sigma), kl_variance(mu, sigma)
    off = values.mean(1) - analytic
    varies = variance > 0
    z = off[varies] / np.sqrt(variance[varies] / KL_DRAWS)
    half = WITHIN_95 * values.std(1, ddof=1) / math.sqrt(KL_DRAWS)
    return {
        "draws": KL_DRAWS,
        "mu": mu.tolist(),
        "sigma": sigma.tolist(),
        "analytic": analytic.tolist(),
        "off": off.tolist(),
        "half_interval": half.tolist(),
        "largest_z": float(np.abs(z).max()),
        "chance_of_larger": 1.0 - math.erf(float(np.abs(z).max()) / math.sqrt(2.0)) ** len(z),
        "points": len(mu),
        "intervals_that_hold": int((np.abs(off) <= half).sum()),
        "off_at_minimum": float(np.abs(values[~varies]).max()),
    }


def estimators() -> dict[str, Any]:
    """Variances of the op's gradients against the formulas, and the ratio of the estimators'."""
    mu, sigma = np.array(GRADIENT_POINTS).T
    expected = gradient(np.stack((mu, sigma)))
    points: list[dict[str, Any]] = []
    for estimator in ESTIMATORS:
        variance = gradient_variance(mu, sigma, estimator)
        measured = measured_gradients(mu, sigma, estimator)
        mean = measured.mean(1)
        central = np.square(measured - mean[:, None])
        square, fourth = central.mean(1), np.square(central).mean(1)
        error = np.sqrt((fourth - square**2) / GRADIENT_DRAWS)
        for i, (m, s) in enumerate(GRADIENT_POINTS):
            for j, name in enumerate(("mu", "sigma")):
                row = {"estimator": estimator, "mu": m, "sigma": s, "gradient": name}
                row |= {"variance": float(variance[j, i]), "measured": float(square[j, i])}
                if variance[j, i] > 1e-12:
                    row["z"] = float((square[j, i] - variance[j, i]) / error[j, i])
                    scale = math.sqrt(variance[j, i] / GRADIENT_DRAWS)
                    row["z_of_mean"] = float((mean[j, i] - expected[j, i]) / scale)
                points.append(row)
    plane_mu, plane_sigma = np.meshgrid(PLANE_MU, PLANE_SIGMA)
    total, landing = (gradient_variance(plane_mu, plane_sigma, e) for e in ESTIMATORS)
    return {
        "draws": GRADIENT_DRAWS,
        "points": points,
        "largest_z": max(abs(p["z"]) for p in points if "z" in p),
        "largest_z_of_mean": max(abs(p["z_of_mean"]) for p in points if "z" in p),
        "compared": sum("z" in p for p in points),
        "largest_where_zero": max(p["measured"] for p in points if "z" not in p),
        "equal_sigma": EQUAL_SIGMA,
        "mu": PLANE_MU.tolist(),
        "sigma": PLANE_SIGMA.tolist(),
        "ratio_mu": (landing[0] / total[0])[:, 0].tolist(),  # the same for every mu
        "ratio_sigma": (landing[1] / total[1]).tolist(),
    }


def measured_gradients(mu: Array, sigma: Array, estimator: str) -> Array:
    """(2, draws, points): dKL/dmu and dKL/dsigma of single draws, by the op's backward pass."""
    shape = (GRADIENT_DRAWS, len(mu))
    leaves = [torch.from_numpy(x).float().repeat(shape[0], 1) for x in (mu, 2.0 * np.log(sigma))]
    for leaf in leaves:
        leaf.requires_grad_()
    with use_backend("torch"):
        noise = KL_GRADIENT.key(SEED)
        value = kl_standard_normal_mc(leaves[0], leaves[1], noise, estimator=estimator)
        grads = torch.autograd.grad(value.sum(), leaves)
    in_mu, in_logvar = (g.double().numpy() for g in grads)
    return np.stack((in_mu, in_logvar * (2.0 / sigma)))


# The null: the KL of a fit if z is standard normal.


def fit_kl_mean(n: Array, latents: int = LATENTS) -> Array:
    """E KL(fit ‖ N(0, I)) in nats, of a diagonal Gaussian fitted to n draws of N(0, I).

    The fit is by maximum likelihood: m ~ N(0, 1/n), n·v ~ χ² with n − 1 degrees of freedom. With
    E m² = 1/n, E v = 1 − 1/n and E ln v = ψ((n − 1)/2) + ln(2/n), the sum ½(m² + v − 1 − ln v) is
    exactly ½(ln(n/2) − ψ((n − 1)/2)) per dimension: 1/n plus terms of order 1/n².
    """
    return np.array([null_sample_kl(count, latents) for count in n.tolist()])


def fit_kl_sd(n: Array, latents: int = LATENTS) -> Array:
    """The exact standard deviation of that KL in nats.

    Var m² = 2/n² and, for v, Var v = 2(n − 1)/n², Var ln v = ψ′((n − 1)/2), Cov(v, ln v) = 2/n;
    m and v are independent.
    """
    trigamma = torch.polygamma(1, torch.from_numpy(0.5 * (n - 1.0))).numpy()
    variance = 2.0 / n**2 + 2.0 * (n - 1.0) / n**2 + trigamma - 4.0 / n
    return np.sqrt(0.25 * latents * variance)


def fitted_kls(n: int, fits: int, index: int) -> Array:
    """(fits,) nats: the KL of a Gaussian fitted to n draws of the stream, `fits` times."""
    noise, at_once = NULL_FITS.key(SEED, index), max(1, (1 << 22) // (n * LATENTS))
    kls = []
    for first in range(0, fits, at_once):
        count = min(at_once, fits - first)
        with use_backend("torch"):
            x = normal(noise, count, n, LATENTS, sample_offset=first).numpy()
        mean = x.mean(1, dtype=np.float64)
        variance = np.square(x - mean[:, None]).mean(1)
        kls.append(kl(mean, np.sqrt(variance)).sum(1))
    return np.concatenate(kls)


def null() -> dict[str, Any]:
    """The fit's KL over a range of n, by formula and simulated."""
    n = np.logspace(math.log10(16.0), math.log10(60_000.0), 60)
    simulated = []
    for index, (draws, fits) in enumerate(FITS.items()):
        kls = fitted_kls(draws, fits, index)
        at = np.array([float(draws)])
        mean, sd = float(fit_kl_mean(at)[0]), float(fit_kl_sd(at)[0])
        simulated.append(
            {
                "n": draws,
                "fits": fits,
                "expected": mean,
                "expected_sd": sd,
                "latents_over_n": LATENTS / draws,
                "mean": float(kls.mean()),
                "sd": float(kls.std(ddof=1)),
                "z": float((kls.mean() - mean) / (sd / math.sqrt(fits))),
                "within_band": float((np.abs(kls - mean) <= WITHIN_95 * sd).mean()),
                "central_95": np.quantile(kls, (0.025, 0.975)).tolist(),
            }
        )
    return {
        "latents": LATENTS,
        "n": n.tolist(),
        "expected": fit_kl_mean(n).tolist(),
        "sd": fit_kl_sd(n).tolist(),
        "simulated": simulated,
        "largest_z": max(abs(s["z"]) for s in simulated),
    }
