"""Priors p(z) that are learned with the model, and N(0, I) in the same form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vaez_kernels import mixture_log_prob, normal, uniform

from ..data import PIXELS
from ..flows import LOG_2PI, RealNVP, log_standard_normal

COMPONENTS = 100  # of the mixture
PSEUDO_INPUTS = 500  # Tomczak and Welling's number for MNIST
# Pseudo-inputs start with pixels between these, so that their gradients do not vanish.
DARKEST, BRIGHTEST = 0.1, 0.9

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (B, 784) → mu, logvar (B, D)


class Law(Protocol):
    """p(z) with the current weights."""

    def log_prob(self, z: Tensor) -> Tensor:
        """z (…, D) → log p(z) in nats, (…)."""
        ...

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """z (n, D) float32, with the numbers of the stream of `noise` that a `Sampler` uses."""
        ...


class Prior(Protocol):
    """The interface of the priors, which are modules."""

    def law(self, encode: Encode) -> Law:
        """p(z) with the current weights; `encode` is that of the model."""
        ...


@dataclass(frozen=True, eq=False)
class EvenMixture:
    """1/K Σ_k N(mu_k, diag exp(logvar_k)); mu and logvar (K, D)."""

    mu: Tensor
    logvar: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Law`."""
        flat = z.flatten(0, -2)
        if not torch.is_grad_enabled():
            # The op stores no scores, but gives the components no gradient.
            return mixture_log_prob(flat, self.mu, self.logvar).view(z.shape[:-1])
        # The square is expanded into matrix products, which loses many digits where σ is small,
        # so they are float64. That takes half the time of float32 differences (K = 500).
        flat, mu, logvar = flat.double(), self.mu.double(), self.logvar.double()
        precision = torch.exp(-logvar)
        squares = flat.square() @ precision.T - 2.0 * flat @ (mu * precision).T
        constant = (mu.square() * precision + logvar).sum(-1)
        K, D = mu.shape
        log_p = torch.logsumexp(-0.5 * (squares + constant), 1) - math.log(K) - 0.5 * D * LOG_2PI
        return log_p.to(z.dtype).view(z.shape[:-1])

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """See `Law`."""
        K, D = self.mu.shape
        u = uniform(noise, 1, n, 1, sample_offset=1).flatten()
        component = (u * K).long().clamp(max=K - 1)
        eps = normal(noise, 1, n, D)[0]
        return self.mu[component] + torch.exp(0.5 * self.logvar[component]) * eps


@dataclass(frozen=True, eq=False)
class Transformed:
    """N(0, I_D) if `flow` is None, else the flow's law."""

    latent: int
    flow: RealNVP | None = None

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Law`."""
        return log_standard_normal(z) if self.flow is None else self.flow.log_prob(z)

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """See `Law`."""
        eps = normal(noise, 1, n, self.latent)[0]
        return eps if self.flow is None else self.flow.transform(eps)


class StandardNormal(nn.Module):
    """N(0, I)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def law(self, encode: Encode) -> Law:
        """See `Prior`."""
        return Transformed(self.latent)


class Mixture(nn.Module):
    """A mixture of diagonal Gaussians of equal weights, near N(0, I) at the start.

    (Tomczak and Welling, "VAE with a VampPrior", 2018, the mixture of Gaussians prior.)
    """

    def __init__(self, latent: int, components: int = COMPONENTS) -> None:
        super().__init__()
        # Not a matrix: an engine's bfloat16 copies of matrices are for products.
        start = torch.stack(
            (0.5 * torch.randn(components, latent), torch.zeros(components, latent))
        )
        self.components = nn.Parameter(start)  # (2, K, D): mu and logvar

    def law(self, encode: Encode) -> Law:
        """See `Prior`."""
        mu, logvar = self.components.unbind()
        return EvenMixture(mu, logvar)


class Vamp(nn.Module):
    """1/K Σ_k q(z|u_k), with learned pseudo-inputs u_k (Tomczak and Welling, "VAE with a
    VampPrior", 2018, equation 9).
    """

    def __init__(self, pseudo_inputs: int = PSEUDO_INPUTS) -> None:
        super().__init__()
        # Not a matrix, as in `Mixture`. u = sigmoid(logits).
        self.logits = nn.Parameter(torch.randn(1, pseudo_inputs, PIXELS))

    def __len__(self) -> int:
        """K."""
        return self.logits.shape[1]

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Let the pseudo-inputs start near images x (N, 784) in [0, 1], in turn if N < K."""
        rows = torch.arange(len(self), device=x.device) % len(x)
        self.logits.copy_(torch.logit(DARKEST + (BRIGHTEST - DARKEST) * x[rows])[None])

    def law(self, encode: Encode) -> Law:
        """See `Prior`."""
        return EvenMixture(*encode(torch.sigmoid(self.logits[0])))


class Flow(nn.Module):
    """A RealNVP that is learned with the model, N(0, I) at the start.

    (Chen et al., "Variational lossy autoencoder", 2017, do so with an autoregressive flow.)
    """

    def __init__(self, latent: int, seed: int) -> None:
        super().__init__()
        self.flow = RealNVP(latent, seed=seed)

    def law(self, encode: Encode) -> Law:
        """See `Prior`."""
        return Transformed(self.flow.latent, self.flow)
