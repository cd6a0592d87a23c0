"""KLs of one latent dimension by torch.distributions, for autograd in float64."""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = ((0.0, 1.0), (1.0, 0.5), (-2.0, 0.1), (0.3, 2.5), (3.0, 1.001))  # (mu, sigma)


def distance(mu: Tensor, sigma: Tensor) -> Tensor:
    q = torch.distributions.Normal(mu, sigma)
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return torch.distributions.kl_divergence(q, p)


def as_coded(mu: Tensor, sigma: Tensor) -> Tensor:
    # gauss_kl.kl_div_std_gauss_torch of natank1/VAE_Loss, which has σ where σ² belongs
    return 0.5 * (sigma.sum() - len(mu) + mu.norm() ** 2 - sigma.log().sum())


def point(mu: float, sigma: float) -> Tensor:
    return torch.tensor((mu, sigma), dtype=torch.float64, requires_grad=True)
