"""Held-out ELBO, rate, distortion and importance-sampled log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import importance_estimates, kl_standard_normal

from ..config import TrainConfig
from ..data import Dataset, Pixels
from ..model import VAE
from ..richer.vae import RicherVAE
from ..streams import EVALUATION
from ..system.world import ALONE, World
from . import importance

# Images encoded at once; their memory stays below 16 MiB in every model.
IMAGES_AT_ONCE = 2_000


@dataclass(frozen=True)
class Metrics:
    """Means over a split, in nats per image; elbo = −(rate + distortion)."""

    elbo: float
    # KL(q(z|x) ‖ p(z)): analytic for a diagonal Gaussian and N(0, I), else over log_px_samples
    # samples
    rate: float
    distortion: float  # −E_q log p(x|z), over log_px_samples samples
    log_px: float  # log 1/S Σ_s p(x, z_s)/q(z_s|x): Burda et al. 2016, equation 8
    log_px_standard_error: float  # of that mean, from its spread over the images
    log_px_samples: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(eq=False)
class Evaluator:
    """Evaluates models on one split.

    Memory does not grow with the number of samples. Noise is indexed by image and sample: the first
    64 of 5,000 samples are the same as 64 samples, whatever the chunks.

    Args:
        pixels: (N, 784) uint8 on the device, N ≥ 2.
        pixel_scale: the factor that turns them into x in [0, 1].
        noise: (2,) int64 on the device, from `noise_key(seed, "evaluate", …)`.
        precision: of the decoder's matrix products, as for `importance_log_likelihood`; those of a
            `RicherVAE` are float32.
        world: the ranks that share the images; all must call, and each gets the whole's metrics.
    """

    pixels: Tensor
    pixel_scale: float
    noise: Tensor
    precision: str = "auto"
    world: World = ALONE

    @torch.no_grad()
    def __call__(self, vae: VAE, num_samples: int) -> Metrics:
        """Evaluate `vae` (float32, on the device) with `num_samples` ≥ 1 samples an image."""
        parts = [
            torch.stack(self._estimates(vae, first, x, parameters, num_samples))
            for first, x, *parameters in self._encoded(vae)
        ]
        rows = self.world.gather(torch.cat(parts, 1).double(), len(self.pixels))  # (3, N)
        rate, distortion, log_px = rows.mean(1).tolist()
        standard_error = float(rows[2].std()) / math.sqrt(len(self.pixels))
        return Metrics(-(rate + distortion), rate, distortion, log_px, standard_error, num_samples)

    def _estimates(
        self,
        vae: VAE,
        first: int,
        x: Tensor,
        parameters: Sequence[Tensor],
        num_samples: int,
        done: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # → rate, distortion and log p(x) of images from index `first` on, each (B,), with the
        # samples after the first `done`
        if isinstance(vae, RicherVAE):
            richer = importance.importance_estimates(
                *(vae, tuple(parameters), x, self.noise, num_samples),
                row_offset=first,
                sample_offset=done,
            )
            return richer.rate, -richer.log_prob, richer.log_likelihood
        mu, logvar = parameters
        log_px, log_prob = importance_estimates(
            *(vae.decoder, mu, logvar, x, self.noise, num_samples, self.precision),
            row_offset=first,
            sample_offset=done,
        )
        return kl_standard_normal(mu, logvar), -log_prob, log_px

    @torch.no_grad()
    def log_px_curve(self, vae: VAE, counts: Sequence[int]) -> Tensor:
        """log p(x) in nats, (len(counts), N) float64, for strictly rising numbers of samples.

        One pass over the largest number: smaller ones use the first of its samples.
        """
        images = []
        for first, x, *parameters in self._encoded(vae):
            log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
            curve, done = [], 0
            for count in counts:
                log_mean = self._estimates(vae, first, x, parameters, count - done, done)[2]
                log_sum = torch.logaddexp(log_sum, log_mean.double() + math.log(count - done))
                done = count
                curve.append(log_sum - math.log(count))
            images.append(torch.stack(curve))
        return self.world.gather(torch.cat(images, 1), len(self.pixels))

    def _encoded(self, vae: VAE) -> Iterator[tuple[Any, ...]]:
        # → the first image's index, x (B, 784), and the parameters of q(z|x): mu, logvar (B, D)
        # and, of a `RicherVAE`, its family's own
        share = self.world.share(len(self.pixels))
        for first in share[::IMAGES_AT_ONCE]:
            pixels = self.pixels[first : min(first + IMAGES_AT_ONCE, share.stop)]
            x = pixels.float() * self.pixel_scale
            # Binary uint8 pixels serve as targets directly, with a quarter of the memory.
            parameters = vae.parameters_of(x) if isinstance(vae, RicherVAE) else vae.encode(x)
            yield first, pixels if self.pixel_scale == 1.0 else x, *parameters


def kind_of_rate(config: TrainConfig, num_samples: int) -> str:
    """How the rate of a run's metrics was computed, for a table."""
    if (config.posterior, config.prior) == ("diagonal", "standard-normal"):
        return "mean analytic KL(q(z|x) ‖ N(0, I))"
    prior = "N(0, I)" if config.prior == "standard-normal" else "p(z)"
    return f"Monte Carlo KL(q(z|x) ‖ {prior}), {num_samples} samples"


def evaluator(config: TrainConfig, dataset: Dataset, split: str, world: World = ALONE) -> Evaluator:
    """The evaluation on "validation" or "test" that a run of `config` does, with its noise."""
    pixels = Pixels(dataset, config.binarize, config.seed)
    noise = EVALUATION[split].key(config.seed, device=dataset.test.images.device)
    images = pixels.test if split == "test" else pixels.validation
    return Evaluator(images, pixels.scale, noise, config.precision, world)
