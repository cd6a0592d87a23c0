"""The codes of a trained VAE: q(z|x) of every image, one z for each, and the informative latents.

A latent is informative if its mean KL(q(z_j|x) ‖ N(0, 1)) over the training images exceeds 0.1 nat.
Burda's rule, Var_x E[z_j|x] > 0.01 (Burda et al. 2016, section 5.2), also counts latents of 0.005
nats. Their z are so close to N(0, 1) that they add little to the KL, and they dilute |z|².
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from vaez_kernels import rsample

from ..data import Pixels
from ..model import VAE
from ..streams import LAW_OF_Z, TRAINING_CODES, VALIDATION_CODES
from .aggregate import kl_per_dimension

INFORMATIVE = 0.1  # nats
# Of a model without informative latents, this many of the largest KL are looked at instead.
MEASURED_AT_LEAST = 10
# Images encoded at once; their memory stays below 16 MiB in every model.
IMAGES_AT_ONCE = 2_000


class Encoded(NamedTuple):
    """One split's posteriors and one z of each: (N, D) float32."""

    mu: Tensor
    logvar: Tensor
    z: Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of all splits, on the model's device."""

    train: Encoded
    validation: Encoded
    test: Encoded

    @cached_property
    def kl(self) -> Tensor:
        """KL(q(z_j|x) ‖ N(0, 1)) in nats, mean over the training images: (D,) float64."""
        return kl_per_dimension(self.train.mu, self.train.logvar)

    def informative(self, threshold: float = INFORMATIVE) -> Tensor:
        """The latents of more than `threshold` nats, in ascending order: (d,) int64, d ≥ 0."""
        return (self.kl > threshold).nonzero().flatten()

    def measured(self) -> Tensor:
        """The latents whose law is measured, in ascending order: (d,) int64, d ≥ 1.

        They are the informative ones. A model that has none (an encoder trained on the KL alone) is
        measured on its ten latents of the largest KL.
        """
        informative = self.informative()
        if len(informative):
            return informative
        return self.kl.topk(min(MEASURED_AT_LEAST, len(self.kl))).indices.sort().values


@torch.no_grad()
def encode(vae: VAE, pixels: Pixels, seed: int) -> Codes:
    """The codes of a model with a diagonal Gaussian q(z|x).

    The z of a split have noise of their own; image n's z does not depend on the number of images.

    Args:
        vae: on the pixels' device.
        pixels: the data set as the model was trained on it.
        seed: of the noise of z, the run's own.
    """
    device = pixels.x("test").device

    def encoded(split: str) -> Encoded:
        parts = [vae.encode(x) for x in pixels.x(split).split(IMAGES_AT_ONCE)]
        mu, logvar = (torch.cat(part) for part in zip(*parts, strict=True))
        return Encoded(mu, logvar, rsample(mu, logvar, USES[split].key(seed, device=device))[0])

    return Codes(encoded("train"), encoded("validation"), encoded("test"))


USES = {"train": TRAINING_CODES, "validation": VALIDATION_CODES, "test": LAW_OF_Z}
