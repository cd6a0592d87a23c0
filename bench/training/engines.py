"""The engine of the ordinary VAE, as the training benchmarks time it."""

from __future__ import annotations

import torch
from torch import Tensor

from vaez_fast.model import VAE, Architecture
from vaez_fast.objective import NegativeElbo
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, constant

STEPS = 100_000  # more than the benchmarks take


def ordinary_engine(
    model: str | Architecture,
    images: Tensor,
    batch_size: int,
    precision: torch.dtype,
    kl: str = "analytic",
) -> Engine:
    """Adam on the ELBO of `model` from seed 0; images (N, 784) uint8, binary, on the device."""
    return Engine(
        NegativeElbo(VAE(model).to(images.device), kl),
        Batches(images, batch_size),
        Adam(),
        constant(1e-3, STEPS),
        seed=0,
        precision=precision,
        pixel_scale=1.0,
    )
