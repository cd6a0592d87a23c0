"""The KL does not prefer a diagonal covariance; the likelihood with a diagonal q does.

The KL to N(0, I) has the covariance in its trace and its determinant alone, and neither changes
under Σ → QΣQᵀ. N(0, I) itself does not change under z → Qz either, so

    KL(N(mu, QΛQᵀ) ‖ N(0, I)) = KL(N(Qᵀmu, Λ) ‖ N(0, I)).

A decoder that turns with the codes keeps the likelihood, too: with a full covariance the ELBO has
no axes. An encoder restricted to diagonal covariances makes them: its best q misses the posterior
by ½(Σ_j ln P_jj − ln det P) nats, for the posterior's precision P. That is zero only if P is
diagonal, as Hadamard's inequality says, so the ELBO turns the decoder's columns until they are
orthogonal (Lucas et al. 2019, section 4; Rolinek et al. 2019, "Variational autoencoders pursue PCA
directions (by accident)").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vaez_kernels import normal, use_backend

from ..streams import ROTATIONS
from .flow import Array
from .gaussians import kl, rotated
from .linear import EIGENVALUES, LATENTS, LinearVAE, fitted

SEED = 0
CASES, DIMENSIONS = 200, 8


def rotations(noise: Array) -> Array:
    """Orthogonal matrices from standard normal ones, by QR: (N, D, D) → (N, D, D)."""
    Q, R = np.linalg.qr(noise)
    return np.asarray(Q * np.sign(np.diagonal(R, axis1=-2, axis2=-1))[..., None, :])


def turn(angle: float) -> Array:
    """The rotation of the plane by `angle`."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array(((c, -s), (s, c)))


def diagonal_gap(precision: Array) -> float:
    """KL in nats from the best diagonal q to a Gaussian posterior of this precision (D, D).

    Its mean is the posterior's, and its variances are 1/P_jj: the minimum of KL(q ‖ posterior).
    """
    return float(0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]))


def rotation() -> dict[str, Any]:
    """The KL's invariance over random cases, and the ELBO of a turned decoder by angle."""
    D = DIMENSIONS
    with use_backend("torch"):
        drawn = normal(ROTATIONS.key(SEED), 1, CASES, D * D + 2 * D)[0]
    Q = rotations(_float64(drawn[:, : D * D]).reshape(CASES, D, D))
    mu, log_variance = np.split(_float64(drawn[:, D * D :]), 2, axis=1)
    diagonal = np.exp(log_variance)[..., None] * np.eye(D)
    full = rotated(diagonal, Q)
    zero, one = np.zeros(D), np.eye(D)
    turned_back = np.einsum("nij,ni->nj", Q, mu)  # Qᵀmu
    by_rotation = kl(mu, full, zero, one)
    by_axes = kl(turned_back, diagonal, zero, one)
    # The textbook sum over dimensions, which knows no matrices
    by_sum = 0.5 * (turned_back**2 + np.exp(log_variance) - 1.0 - log_variance).sum(1)

    vae = fitted(np.array(EIGENVALUES), LATENTS)
    angles = np.linspace(0.0, 0.5 * np.pi, 91)
    plane = LinearVAE(vae.weight[:, :2], vae.noise)  # its two informative latents
    covariance = plane.posterior(np.eye(len(EIGENVALUES)))[1]
    mean_rate, gaps = [], []
    moments = np.eye(2) - covariance  # of the posteriors' means over the data
    for angle in angles:
        turned = rotated(covariance, turn(float(angle)))
        trace = np.trace(turned) + np.trace(rotated(moments, turn(float(angle))))
        mean_rate.append(float(0.5 * (trace - 2.0 - np.linalg.slogdet(turned)[1])))
        gaps.append(diagonal_gap(np.asarray(np.linalg.inv(turned), dtype=np.float64)))
    return {
        "cases": CASES,
        "dimensions": D,
        "largest_kl": float(by_axes.max()),
        "kl_off": float(np.abs(by_rotation - by_axes).max()),
        "kl_off_sum": float(np.abs(by_axes - by_sum).max()),
        "trace_off": float(np.abs(_traces(full) - _traces(diagonal)).max()),
        "log_det_off": float(
            np.abs(np.linalg.slogdet(full)[1] - np.linalg.slogdet(diagonal)[1]).max()
        ),
        "angle": np.degrees(angles).tolist(),
        "rate": mean_rate,
        "elbo_lost": gaps,
        "largest_loss": max(gaps),
    }


def _float64(drawn: torch.Tensor) -> Array:
    return np.asarray(drawn.double().numpy())


def _traces(matrices: Array) -> Array:
    return np.asarray(np.trace(matrices, axis1=-2, axis2=-1))
