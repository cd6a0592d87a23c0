"""Small models of several kinds, and the data that they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vaez_fast.likelihoods import Bernoulli, Gaussian, NegativeBinomial
from vaez_fast.trainer import FullGaussian

ROWS, BATCH = 64, 16


def numbers(rows: int = ROWS, columns: int = 12) -> Tensor:
    """Rows near a plane of three dimensions."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 3, generator=generator)
    return z @ torch.randn(3, columns, generator=generator) + 0.1 * torch.randn(
        rows, columns, generator=generator
    )


def counts(rows: int = ROWS, genes: int = 10) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.exp(torch.randn(rows, genes, generator=generator)), generator)
    return {"counts": x, "library": x.sum(1) + 1.0}


def pictures(rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(rows, 1, 8, 8, generator=generator) < 0.3).to(torch.uint8)


class Table(nn.Module):
    """Perceptrons on rows of numbers, whose hidden layer is made of the given modules."""

    def __init__(self, *hidden: nn.Module, columns: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(columns, 16), *hidden, nn.Linear(16, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, columns))
        self.logvar = nn.Parameter(torch.zeros(columns))

    def encode(self, x: Tensor) -> Gaussian:
        return Gaussian(*self.encoder(x).chunk(2, -1))

    def decode(self, z: Tensor) -> Gaussian:
        return Gaussian(self.decoder(z), self.logvar)


class Cells(nn.Module):
    """The issue of single-cell counts: negative binomial with library sizes (Lopez et al. 2018)."""

    def __init__(self, genes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(genes, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 6)
        )
        self.head = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, genes))
        self.log_dispersion = nn.Parameter(torch.zeros(genes))

    def encode(self, batch: dict[str, Tensor]) -> Gaussian:
        return Gaussian(*self.net(batch["counts"].log1p()).chunk(2, -1))

    def decode(self, z: Tensor, batch: dict[str, Tensor]) -> NegativeBinomial:
        return NegativeBinomial(self.head(z), self.log_dispersion, library=batch["library"])


class Pictures(nn.Module):
    """Convolutions on 8 × 8 binary pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(64, 6)
        self.up = nn.Sequential(
            nn.Linear(3, 64),
            nn.Unflatten(1, (4, 4, 4)),
            nn.GELU(),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
        )

    def encode(self, x: Tensor) -> Gaussian:
        return Gaussian(*self.head(self.down(x.float())).chunk(2, 1))

    def decode(self, z: Tensor) -> Bernoulli:
        return Bernoulli(self.up(z))


class Correlated(Table):
    """A Gaussian posterior with full covariance."""

    def __init__(self) -> None:
        super().__init__(nn.Tanh())
        self.posterior = FullGaussian(3, 16)

    def encode(self, x: Tensor) -> Any:
        hidden = self.encoder[:-1](x)
        return self.posterior(*self.encoder[-1](hidden).chunk(2, -1), hidden)


# Name → a new model with its initial weights, and data for it.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "table": (lambda: Table(nn.Tanh()), numbers),
    "counts": (Cells, counts),
    "pictures": (Pictures, pictures),
    "full covariance": (Correlated, numbers),
}
