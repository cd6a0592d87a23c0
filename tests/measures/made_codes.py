"""Codes of models that exist on paper only, whose q(z) is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaez_fast.measures.codes import Codes, Encoded
from vaez_kernels import noise_key, normal


def encoded(mu: Tensor, sigma: Tensor | float, seed: int) -> Encoded:
    """Posteriors N(mu, sigma²) and a z of each, (N, D)."""
    spread = torch.as_tensor(sigma, dtype=torch.float32).expand_as(mu)
    eps = normal(noise_key(seed, "evaluate"), 1, *mu.shape)[0]
    return Encoded(mu, 2 * spread.log(), mu + spread * eps)


def gaussian_codes(covariance: Tensor, sigma: float, sizes: tuple[int, int, int]) -> Codes:
    """mu ~ N(0, covariance), one σ: q(z) of the population is N(0, covariance + σ² I)."""
    factor = torch.linalg.cholesky(covariance.double())
    parts = []
    for seed, size in enumerate(sizes):
        eps = normal(noise_key(100 + seed, "evaluate"), 1, size, len(factor))[0].double()
        parts.append(encoded((eps @ factor.T).float(), sigma, seed))
    return Codes(*parts)


def clustered_codes(sizes: tuple[int, int, int], sigma: float = 0.3) -> Codes:
    """q(z) is `CENTRES` in equal shares, each N(centre, (0.2² + σ²) I)."""
    parts = []
    for seed, size in enumerate(sizes):
        eps = 0.2 * normal(noise_key(200 + seed, "evaluate"), 1, size, 2)[0]
        parts.append(encoded(CENTRES[torch.arange(size) % len(CENTRES)] + eps, sigma, seed))
    return Codes(*parts)


CENTRES = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]])


def gaussian_kl(covariance: Tensor) -> float:
    """KL(N(0, covariance) ‖ N(0, I)) in nats."""
    C = covariance.double()
    return 0.5 * float(C.trace() - len(C) - torch.logdet(C))


def grid_kl(q: torch.distributions.Distribution, reach: float = 9.0, points: int = 601) -> float:
    """KL(q ‖ N(0, I)) of a density over the plane, as a Riemann sum."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    log_q = q.log_prob(z)
    log_p = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    return float((log_q.exp() * (log_q - log_p)).sum() * (line[1] - line[0]) ** 2)
