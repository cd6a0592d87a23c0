"""The KL between two Gaussians with full covariance matrices, in NumPy and float64."""

from __future__ import annotations

import numpy as np

from .flow import Array


def kl(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> Array:
    """KL(N(mean, covariance) ‖ N(other_mean, other_covariance)) in nats.

    ½(tr(Σ₂⁻¹Σ₁) + (m₂ − m₁)ᵀΣ₂⁻¹(m₂ − m₁) − D + ln det Σ₂ − ln det Σ₁). Means are (..., D),
    covariances (..., D, D) and positive definite; leading dimensions broadcast.
    """
    off = (other_mean - mean)[..., None]
    inside = covariance + off * np.swapaxes(off, -1, -2)
    trace = np.trace(np.linalg.solve(other_covariance, inside), axis1=-2, axis2=-1)
    log_dets = np.linalg.slogdet(other_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return np.asarray(0.5 * (trace - mean.shape[-1] + log_dets))


def rotated(covariance: Array, rotation: Array) -> Array:
    """QΣQᵀ: covariance and rotation are (..., D, D)."""
    return np.asarray(rotation @ covariance @ np.swapaxes(rotation, -1, -2))
