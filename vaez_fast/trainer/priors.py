"""p(z) of a model: N(0, I), or a law that is learned with the model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..flows import log_standard_normal
from ..richer.priors import Flow, Mixture


class LearnedPrior(Protocol):
    """A module whose `log_prob` takes z (…, D) and gives log p(z) in nats, (…)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """z (…, D) → (…)."""
        ...


class StandardNormal(nn.Module):
    """N(0, I), for latents of any size."""

    def log_prob(self, z: Tensor) -> Tensor:
        """z (…, D) → log p(z) in nats, (…)."""
        return log_standard_normal(z)


class MixturePrior(nn.Module):
    """A learned mixture of diagonal Gaussians (Tomczak and Welling 2018).

    Args:
        latent: D.
        components: K.
        seed: fixes its start, near N(0, I).
    """

    def __init__(self, latent: int, components: int = 100, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.mixture = Mixture(latent, components)

    def log_prob(self, z: Tensor) -> Tensor:
        """z (…, D) → log p(z) in nats, (…)."""
        return self.mixture.law(_no_encoder).log_prob(z)


class FlowPrior(nn.Module):
    """A RealNVP that is learned with the model, N(0, I) at the start.

    Args:
        latent: D.
        seed: fixes its initial weights.
    """

    def __init__(self, latent: int, seed: int = 0) -> None:
        super().__init__()
        self.flow = Flow(latent, seed)

    def log_prob(self, z: Tensor) -> Tensor:
        """z (…, D) → log p(z) in nats, (…)."""
        return self.flow.law(_no_encoder).log_prob(z)


def _no_encoder(x: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("this prior reads no data")
