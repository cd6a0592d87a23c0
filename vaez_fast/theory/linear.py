"""The linear VAE on Gaussian data, in closed form: q(z) is N(0, I) although no q(z|x) is.

p(z) = N(0, I), p(x|z) = N(Wz, noise·I), x ~ N(0, S): probabilistic PCA (Tipping & Bishop 1999).
With S's eigenvalues λ_1 ≥ λ_2 ≥ … and its eigenvectors u_j, the optimum has the columns
√(λ_j − noise)·u_j (equation 7) where λ_j > noise, else 0; the encoder of the ELBO's optimum is the
exact posterior (Lucas et al. 2019, section 4), here

    q(z_j|x) = N(√(λ_j − noise)/λ_j · u_jᵀx, noise/λ_j).

Over the data, its mean has the variance 1 − noise/λ_j, so the aggregate is exactly N(0, I). The
rate is Σ_j ½ ln(λ_j/noise): all of it is information about x, and none of it distance of q(z) from
the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaez_kernels import normal, use_backend

from ..streams import LINEAR_CODES
from .flow import Array
from .gaussians import kl

SEED = 0
EIGENVALUES = (8.0, 3.0, 0.5, 0.5, 0.5, 0.5)  # of the data's covariance
LATENTS = 4
DRAWS = 1 << 16
SHOWN = 12  # posteriors in the figure


@dataclass(frozen=True, eq=False)
class LinearVAE:
    """p(z) = N(0, I), p(x|z) = N(weight·z, noise·I), for data of mean zero."""

    weight: Array  # (P, D)
    noise: float

    @property
    def covariance(self) -> Array:
        """Of p(x): WWᵀ + noise·I, (P, P)."""
        return self.weight @ self.weight.T + self.noise * np.eye(len(self.weight))

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """p(z|x): means (N, D) for x (N, P), and the covariance (D, D) that all x share.

        With M = WᵀW + noise·I: N(M⁻¹Wᵀx, noise·M⁻¹) (Tipping & Bishop 1999, equation 6).
        """
        precision = self.weight.T @ self.weight + self.noise * np.eye(self.weight.shape[1])
        inverse = np.linalg.inv(precision)
        return np.asarray(x @ self.weight @ inverse), np.asarray(
            self.noise * inverse, dtype=np.float64
        )

    def log_px(self, x: Array) -> Array:
        """log p(x) in nats: x (N, P) → (N,)."""
        square = np.einsum("np,np->n", x, np.linalg.solve(self.covariance, x.T).T)
        log_det = np.linalg.slogdet(2.0 * math.pi * self.covariance)[1]
        return np.asarray(-0.5 * (square + log_det))

    def rate(self, mean: Array, covariance: Array) -> Array:
        """KL(q(z|x) ‖ N(0, I)) in nats of q = N(mean, covariance): (N, D), (..., D, D) → (N,)."""
        D = mean.shape[-1]
        return kl(mean, covariance, np.zeros(D), np.eye(D))

    def distortion(self, x: Array, mean: Array, covariance: Array) -> Array:
        """−E_q log p(x|z) in nats, q = N(mean, covariance): (N, P), (N, D), (..., D, D) → (N,)."""
        error = np.square(x - mean @ self.weight.T).sum(-1)
        spread = np.trace(self.weight.T @ self.weight @ covariance, axis1=-2, axis2=-1)
        constant = x.shape[-1] * math.log(2.0 * math.pi * self.noise)
        return np.asarray(0.5 * (constant + (error + spread) / self.noise))


def fitted(eigenvalues: Array, latents: int) -> LinearVAE:
    """The model of largest likelihood, in the basis of the data's principal directions.

    The noise is the mean of the eigenvalues that have no latent (Tipping & Bishop 1999, equation
    8).

    Args:
        eigenvalues: of the data's covariance, (P,), in descending order.
        latents: D < P.
    """
    noise = float(np.mean(eigenvalues[latents:]))
    weight = np.diag(np.sqrt(np.maximum(eigenvalues - noise, 0.0)))[:, :latents]
    return LinearVAE(weight, noise)


def linear() -> dict[str, Any]:
    """The model's rate, distortion and likelihood by formula, and its codes by simulation."""
    eigenvalues = np.array(EIGENVALUES)
    vae = fitted(eigenvalues, LATENTS)
    with use_backend("torch"):
        drawn = normal(LINEAR_CODES.key(SEED), 1, DRAWS, len(eigenvalues) + LATENTS)[0]
    for_x, eps = np.split(drawn.double().numpy(), [len(eigenvalues)], axis=1)
    x = for_x * np.sqrt(eigenvalues)
    mean, covariance = vae.posterior(x)
    z = mean + eps @ np.linalg.cholesky(covariance).T
    rates = vae.rate(mean, covariance)
    distortions = vae.distortion(x, mean, covariance)

    informed = eigenvalues[:LATENTS] / vae.noise
    kl_per_latent = 0.5 * np.log(informed)
    gain = vae.posterior(np.eye(len(eigenvalues)))[0].T  # mean = gain·x
    aggregate = gain @ np.diag(eigenvalues) @ gain.T + covariance
    return {
        "eigenvalues": eigenvalues.tolist(),
        "latents": LATENTS,
        "noise": vae.noise,
        "posterior_sd": np.sqrt(np.diag(covariance)).tolist(),
        "kl_per_latent": kl_per_latent.tolist(),
        "informative": int((kl_per_latent > 0).sum()),
        "rate": float(kl_per_latent.sum()),
        # sd of ½Σ(1 − noise/λ)(χ²₁ − 1): the rate's only part that differs between images
        "rate_sd": float(np.sqrt(0.5 * np.square(1.0 - 1.0 / informed).sum())),
        "distortion": 0.5 * len(eigenvalues) * (math.log(2.0 * math.pi * vae.noise) + 1.0),
        "log_px": -0.5 * float(np.log(2.0 * math.pi * math.e * eigenvalues).sum()),
        "aggregate_off_identity": float(np.abs(aggregate - np.eye(LATENTS)).max()),
        "simulated": {
            "draws": DRAWS,
            "rate": float(rates.mean()),
            "rate_sd": float(rates.std()),
            "distortion": float(distortions.mean()),
            "elbo_off_log_px": float(np.abs(vae.log_px(x) + rates + distortions).max()),
            "largest_z_of_moments": largest_z_of_moments(z),
        },
        "shown": {"mean": mean[:SHOWN, :2].tolist(), "z": z[:2000, :2].tolist()},
    }


def largest_z_of_moments(z: Array) -> float:
    """How many standard errors the means and second moments of z (N, D) are from N(0, I)'s."""
    N, D = z.shape
    means = z.mean(0) * math.sqrt(N)
    moments = z.T @ z / N - np.eye(D)
    errors = np.sqrt((np.eye(D) + 1.0) / N)  # Var z_i² = 2, Var z_i z_j = 1
    return float(max(np.abs(means).max(), np.abs(moments / errors).max()))
