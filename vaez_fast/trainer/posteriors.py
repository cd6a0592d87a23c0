"""q(z|x) that an encoder can return beside a diagonal `Gaussian`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..richer.posteriors import FullCovariance, InverseAutoregressive


def wide(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Posterior(Protocol):
    """A law q(z|x) of a batch, from standard normal numbers."""

    @property
    def mu(self) -> Tensor:
        """(B, D)."""
        ...

    def transform(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """eps (S, B, D) standard normal → z (S, B, D) and log q(z|x) (S, B) in nats."""
        ...


@dataclass(frozen=True, eq=False)
class FamilyPosterior:
    """A family of `vaez_fast.richer.posteriors` with its parameters for a batch.

    Args:
        family: the module, part of the model so that its own weights train.
        mu, logvar: (B, D).
        hidden: (B, H), from which the family computes its other parameters.
    """

    family: FullCovariance | InverseAutoregressive
    mu: Tensor
    logvar: Tensor
    hidden: Tensor

    def transform(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        return self.family.transform(eps, self.mu, self.logvar, *self.family.added(self.hidden))

    @property
    def has_analytic_kl(self) -> bool:
        """Whether KL(q(z|x) ‖ N(0, I)) has a closed form: for the full covariance."""
        return isinstance(self.family, FullCovariance)

    def kl_standard_normal(self) -> Tensor:
        """KL(q(z|x) ‖ N(0, I)) in nats, (B,), if `has_analytic_kl`."""
        assert isinstance(self.family, FullCovariance)
        added = self.family.added(self.hidden)
        return self.family.kl_standard_normal(self.mu, self.logvar, *added)


class FullGaussian(nn.Module):
    """A Gaussian with full covariance: call it with mu, logvar (B, D) and hidden (B, H).

    Args:
        latent: D.
        hidden: H.
    """

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.family = FullCovariance(latent, hidden)

    def forward(self, mu: Tensor, logvar: Tensor, hidden: Tensor) -> FamilyPosterior:
        """The posterior of a batch."""
        return FamilyPosterior(self.family, wide(mu), wide(logvar), hidden)


class AutoregressiveFlow(nn.Module):
    """Two inverse autoregressive flows (Kingma et al. 2016): call as `FullGaussian`."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.family = InverseAutoregressive(latent, hidden)

    def forward(self, mu: Tensor, logvar: Tensor, hidden: Tensor) -> FamilyPosterior:
        """The posterior of a batch."""
        return FamilyPosterior(self.family, wide(mu), wide(logvar), hidden)
