"""Densities r(z) that are fitted to codes: where the law of z is measured, and where z is drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import normal, uniform
from vaez_kernels.checks import check_choice

from ..flows import LOG_2PI, log_standard_normal

# Elements of a (rows, components, d) block: 32 MB of float64.
BLOCK = 1 << 22


class Density(ABC):
    """A density over R^D that is a transform of standard normal and uniform noise."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """D."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log r(z) in nats: z (N, D) → (N,) float64."""

    @abstractmethod
    def transform(self, eps: Tensor, u: Tensor) -> Tensor:
        """Standard normal eps (n, D) float64 and uniform u (n,) float64 → draws (n, D) float64."""

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """z (n, D) float32 on the noise's device; see `vaez_fast.measures.samplers.Sampler`."""
        eps = normal(noise, 1, n, self.dimensions)[0].double()
        u = uniform(noise, 1, n, 1, sample_offset=1).flatten().double()
        return self.transform(eps, u).float()


@dataclass(frozen=True, eq=False)
class GaussianMixture(Density):
    """Σ_k weight_k N(mean_k, L_k L_kᵀ); one component is a Gaussian."""

    weights: Tensor  # (K,) float64
    means: Tensor  # (K, D) float64
    factors: Tensor  # (K, D, D) float64, lower triangular

    @property
    def dimensions(self) -> int:
        return self.means.shape[1]

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Density`. Squares are of whitened differences: narrow components lose no digits."""
        K, D = self.means.shape
        eye = torch.eye(D).to(self.factors).expand(K, D, D)
        whiten = torch.linalg.solve_triangular(self.factors, eye, upper=False)  # (K, D, D)
        columns = whiten.reshape(K * D, D).T
        shift = (whiten @ self.means[:, :, None]).flatten()
        log_det = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.weights.log() - log_det - 0.5 * D * LOG_2PI
        parts = []
        for rows in z.to(self.means).split(max(1, BLOCK // (K * D))):
            squares = (rows @ columns - shift).square_().view(-1, K, D).sum(2)
            parts.append(torch.logsumexp(constant - 0.5 * squares, 1))
        return torch.cat(parts)

    def transform(self, eps: Tensor, u: Tensor) -> Tensor:
        """See `Density`: z = mean_k + L_k eps, k by inversion of the cumulative weights."""
        edges = self.weights.cumsum(0).to(u)
        # Rounding may leave the last edge below 1.
        component = torch.searchsorted(edges, u, right=True).clamp(max=len(edges) - 1)
        z = torch.empty_like(eps)
        for k in range(len(edges)):
            rows = component == k
            z[rows] = self.means[k].to(z) + eps[rows] @ self.factors[k].to(z).T
        return z


@dataclass(frozen=True, eq=False)
class Embedded(Density):
    """A density over some latents; the others are N(0, 1), independent of these and each other.

    A draw's base noise is `normal(noise, 1, n, D)` over all D latents, so a latent's noise is the
    same under every density.
    """

    density: Density  # over d latents
    latents: Tensor  # (d,) int64: which ones
    D: int

    @property
    def dimensions(self) -> int:
        return self.D

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Density`."""
        others = torch.ones(self.D, dtype=torch.bool, device=z.device)
        others[self.latents] = False
        log_others = log_standard_normal(z[:, others].double())
        return self.density.log_prob(z[:, self.latents]) + log_others

    def transform(self, eps: Tensor, u: Tensor) -> Tensor:
        """See `Density`."""
        z = eps.clone()
        z[:, self.latents] = self.density.transform(eps[:, self.latents], u)
        return z


def standard_normal(D: int, device: torch.device) -> GaussianMixture:
    """N(0, I) over R^D."""
    eye = torch.eye(D, dtype=torch.float64, device=device)
    return _gaussian(torch.zeros_like(eye[0]), eye)


def fit_gaussian(z: Tensor, covariance: str = "full") -> GaussianMixture:
    """The maximum-likelihood Gaussian of codes z (N, D): their mean and biased covariance.

    Args:
        covariance: "diagonal" or "full".

    Raises:
        ValueError: another name, a constant latent, or too few codes: a diagonal Gaussian needs 2,
            a full covariance D + 1.
        torch.linalg.LinAlgError: the covariance is singular.
    """
    check_choice("fit_gaussian", "covariance", covariance, ("diagonal", "full"))
    if z.dim() != 2:
        raise ValueError(f"fit_gaussian: z must have shape (N, D), got {tuple(z.shape)}")
    N, D = z.shape
    needed = 2 if covariance == "diagonal" else D + 1
    if needed > N:
        raise ValueError(
            f"fit_gaussian: a {covariance} covariance in {D} dimensions needs {needed} draws, "
            f"got {N}"
        )
    z = z.double()
    mean = z.mean(0)
    if covariance == "diagonal":
        scale = z.std(0, correction=0)
        if not bool((scale > 0).all()):
            raise ValueError("fit_gaussian: a latent of z is constant")
        return _gaussian(mean, torch.diag(scale))
    return _gaussian(mean, torch.linalg.cholesky((z - mean).T @ (z - mean) / N))


def _gaussian(mean: Tensor, factor: Tensor) -> GaussianMixture:
    return GaussianMixture(torch.ones_like(mean[:1]), mean[None], factor[None])
