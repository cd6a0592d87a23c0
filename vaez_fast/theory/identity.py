"""log p(x) = ELBO(x, q) + KL(q ‖ p(z|x)), for every q: checked where all three are closed forms.

In the linear VAE the posterior, the likelihood and the ELBO of any Gaussian q are known (see
`linear`), so the identity can be checked to rounding. The gap of a trained VAE is estimated with
it: log p(x) by importance sampling, minus the ELBO.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vaez_kernels import normal, use_backend

from ..streams import IDENTITY
from .gaussians import kl
from .linear import LinearVAE

SEED = 0
CASES, PIXELS, LATENTS = 200, 6, 3
NOISE = 0.3


def identity() -> dict[str, Any]:
    """Both sides for one random decoder, random x and random full-covariance q."""
    P, D = PIXELS, LATENTS
    with use_backend("torch"):
        drawn = normal(IDENTITY.key(SEED), 1, CASES + 1, max(P * D, P + D + D * D))[0]
    numbers = drawn.double().numpy()
    vae = LinearVAE(numbers[0, : P * D].reshape(P, D), NOISE)
    x, mean, factor = np.split(numbers[1:, : P + D + D * D], [P, P + D], axis=1)
    factor = factor.reshape(CASES, D, D)
    covariance = factor @ np.swapaxes(factor, 1, 2) + 0.1 * np.eye(D)
    posterior_mean, posterior_covariance = vae.posterior(x)
    elbo = -vae.rate(mean, covariance) - vae.distortion(x, mean, covariance)
    gap = kl(mean, covariance, posterior_mean, posterior_covariance)
    log_px = vae.log_px(x)
    at_posterior = vae.rate(posterior_mean, posterior_covariance) + vae.distortion(
        x, posterior_mean, posterior_covariance
    )
    return {
        "cases": CASES,
        "off": float((np.abs(log_px - elbo - gap) / np.abs(elbo)).max()),
        "smallest_gap": float(gap.min()),
        "largest_gap": float(gap.max()),
        "off_at_posterior": float(np.abs(log_px + at_posterior).max()),
    }
