"""Distributions to draw z from when a decoder generates images: N(0, I), or a fit to q(z).

If z is not standard normal, fit q(z) and sample from the fit (Ghosh et al., "From variational to
deterministic autoencoders", 2020, section 4, with mixtures).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaez_kernels import normal, uniform
from vaez_kernels.checks import check_choice

from ..names import SAMPLERS as SAMPLERS

MIXTURE_COMPONENTS = 10
# The time of expectation-maximisation is proportional to it.
MIXTURE_FITTED_ON = 5_000
MIXTURE_SEED = 0


class Sampler(Protocol):
    def draw(self, noise: Tensor, n: int) -> Tensor:
        """z (n, D) float32 on the noise's device.

        The only randomness is the stream of `noise`, from `noise_key(seed, "generate", …)`: its
        normal numbers of sample 0 for the Gaussian part, its uniforms of sample 1 for the choice of
        a component or image. So row i does not depend on n. With the same key it has the same base
        noise in every sampler and model of the same D, so images can be compared one by one.
        """
        ...


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ_k weight_k N(mean_k, L_k L_kᵀ); one component is a Gaussian."""

    weights: Tensor  # (K,) float64
    means: Tensor  # (K, D) float64
    factors: Tensor  # (K, D, D) float64, lower triangular

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """See `Sampler`: z = mean_k + L_k eps, k by inversion of the cumulative weights."""
        K, D = self.means.shape
        eps = normal(noise, 1, n, D)[0].double()
        edges = self.weights.cumsum(0).to(noise.device)
        u = uniform(noise, 1, n, 1, sample_offset=1).flatten().double()
        # Rounding may leave the last edge below 1.
        component = torch.searchsorted(edges, u, right=True).clamp(max=K - 1)
        z = torch.empty_like(eps)
        for k in range(K):
            rows = component == k
            z[rows] = self.means[k].to(z) + eps[rows] @ self.factors[k].to(z).T
        return z.float()


@dataclass(frozen=True, eq=False)
class Posterior:
    """The aggregate posterior itself: one draw of q(z|x) for each of N images."""

    z: Tensor  # (N, D)

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """See `Sampler`: images in random order; none repeats before each was drawn once."""
        order = uniform(noise, 1, len(self.z), 1, sample_offset=1).flatten().argsort(stable=True)
        rows = order[torch.arange(n, device=noise.device) % len(self.z)]
        return self.z.to(noise.device)[rows].float()


def fit(name: str, z: Tensor) -> Sampler:
    """The sampler `name`, fitted to draws of q(z) by maximum likelihood.

    Args:
        name: one of `SAMPLERS`. "standard-normal" takes only D from z; "posterior" returns rows of
            z; "diagonal" and "full-covariance" are Gaussians with the moments of z; "mixture" is a
            full-covariance mixture of 10 Gaussians by scikit-learn's expectation-maximisation
            (random_state 0) on the first 5,000 rows.
        z: (N, D) float32, one draw of q(z|x) for each training image, not sorted by class.

    Raises:
        ValueError: an unknown name, or too few rows: a diagonal Gaussian needs 2, a full covariance
            D + 1, and the mixture as many as it has components.
    """
    check_choice("fit", "name", name, SAMPLERS)
    if z.dim() != 2 or len(z) == 0:
        raise ValueError(f"fit: z must have shape (N, D) with N ≥ 1, got {tuple(z.shape)}")
    if name == "posterior":
        return Posterior(z)
    if name == "mixture":
        return _fit_mixture(z)
    z = z.double()
    D = z.shape[1]
    if name == "standard-normal":
        return _gaussian(torch.zeros_like(z[0]), torch.eye(D).to(z))
    needed = 2 if name == "diagonal" else D + 1
    if len(z) < needed:
        raise ValueError(f"fit: {name} in {D} dimensions needs {needed} draws, got {len(z)}")
    mean = z.mean(0)
    if name == "diagonal":
        return _gaussian(mean, torch.diag(z.std(0, correction=0)))
    covariance = (z - mean).T @ (z - mean) / len(z)
    return _gaussian(mean, torch.linalg.cholesky(covariance))


def _gaussian(mean: Tensor, factor: Tensor) -> GaussianMixture:
    return GaussianMixture(torch.ones_like(mean[:1]), mean[None], factor[None])


def _fit_mixture(z: Tensor) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Fitted

    points = z[:MIXTURE_FITTED_ON].double().cpu().numpy()
    fitted = Fitted(MIXTURE_COMPONENTS, covariance_type="full", random_state=MIXTURE_SEED)
    with warnings.catch_warnings():
        # After 100 iterations the likelihood still rises slightly; the mixture is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(points)

    def tensor(array: object) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float64, device=z.device)

    factors = torch.linalg.cholesky(tensor(fitted.covariances_))
    return GaussianMixture(tensor(fitted.weights_), tensor(fitted.means_), factors)
