"""Held-out ELBO, rate, distortion and importance-sampled log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vaez_kernels import importance_estimates, importance_log_likelihood, kl_standard_normal

from ..config import TrainConfig
from ..data import Dataset, Pixels
from ..model import VAE
from ..streams import EVALUATION
from ..system.world import ALONE, World

# Images encoded at once; their memory stays below 16 MiB in every model.
IMAGES_AT_ONCE = 2_000


@dataclass(frozen=True)
class Metrics:
    """Means over a split, in nats per image; elbo = −(rate + distortion)."""

    elbo: float
    rate: float  # analytic KL(q(z|x) ‖ N(0, I))
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
        precision: of the decoder's matrix products, as for `importance_log_likelihood`.
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
        parts = []
        for first, x, mu, logvar in self._encoded(vae):
            log_px, log_prob = importance_estimates(
                *(vae.decoder, mu, logvar, x, self.noise, num_samples, self.precision),
                row_offset=first,
            )
            parts.append(torch.stack((kl_standard_normal(mu, logvar), -log_prob, log_px)))
        rows = self.world.gather(torch.cat(parts, 1).double(), len(self.pixels))  # (3, N)
        rate, distortion, log_px = rows.mean(1).tolist()
        standard_error = float(rows[2].std()) / math.sqrt(len(self.pixels))
        return Metrics(-(rate + distortion), rate, distortion, log_px, standard_error, num_samples)

    @torch.no_grad()
    def log_px_curve(self, vae: VAE, counts: Sequence[int]) -> Tensor:
        """log p(x) in nats, (len(counts), N) float64, for strictly rising numbers of samples.

        One pass over the largest number: smaller ones use the first of its samples.
        """
        images = []
        for first, x, mu, logvar in self._encoded(vae):
            log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
            curve, done = [], 0
            for count in counts:
                log_mean = importance_log_likelihood(
                    *(vae.decoder, mu, logvar, x, self.noise, count - done, self.precision),
                    row_offset=first,
                    sample_offset=done,
                )
                log_sum = torch.logaddexp(log_sum, log_mean.double() + math.log(count - done))
                done = count
                curve.append(log_sum - math.log(count))
            images.append(torch.stack(curve))
        return self.world.gather(torch.cat(images, 1), len(self.pixels))

    def _encoded(self, vae: VAE) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        # → the first image's index, x (B, 784), mu and logvar (B, D)
        share = self.world.share(len(self.pixels))
        for first in share[::IMAGES_AT_ONCE]:
            pixels = self.pixels[first : min(first + IMAGES_AT_ONCE, share.stop)]
            x = pixels.float() * self.pixel_scale
            # Binary uint8 pixels serve as targets directly, with a quarter of the memory.
            yield first, pixels if self.pixel_scale == 1.0 else x, *vae.encode(x)


def evaluator(config: TrainConfig, dataset: Dataset, split: str, world: World = ALONE) -> Evaluator:
    """The evaluation on "validation" or "test" that a run of `config` does, with its noise."""
    pixels = Pixels(dataset, config.binarize, config.seed)
    noise = EVALUATION[split].key(config.seed, device=dataset.test.images.device)
    images = pixels.test if split == "test" else pixels.validation
    return Evaluator(images, pixels.scale, noise, config.precision, world)
