"""What a density r of codes gains as a prior in place of N(0, I), without training anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import bernoulli_log_prob, rsample

from ..flows import log_standard_normal
from ..model import VAE
from .aggregate import Estimate, log_gaussian, mean_of_draws
from .densities import Density

# Decoded at once: 16,384 × 784 logits take 51 MB.
ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Gain:
    """Means over images and their standard errors, in nats; positive where r is the better prior.

    `elbo` is E_q[log r(z) − log p(z)]: the gain in ELBO, which is the lower bound of
    KL(q(z) ‖ p(z)) by the same r (`vaez_fast.measures.law.lower_bound`, there with one z an image).
    """

    # The difference of two importance-sampled lower bounds, log p_r(x) − log p(x); not a bound.
    log_px: Estimate
    elbo: Estimate
    num_images: int
    num_samples: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"log_px": self.log_px._asdict(), "elbo": self.elbo._asdict()}


@torch.no_grad()
def log_px_gain(vae: VAE, density: Density, x: Tensor, noise: Tensor, num_samples: int) -> Gain:
    """The gain in importance-sampled log p(x) and in ELBO if r replaces N(0, I).

    Both log p(x) are log 1/S Σ_s p(x|z_s) prior(z_s)/q(z_s|x) (Burda et al. 2016, equation 8) over
    the same samples z_s ~ q(z|x), so their difference has far less noise than either.

    Args:
        vae: on x's device.
        density: r over all D latents, fitted to other images.
        x: (N, 784) float32 in [0, 1], N ≥ 2, from `Pixels.x("test")`.
        noise: (2,) int64 on x's device, from `streams.REPLACED_PRIOR`. Sample s of row n does not
            depend on the number of samples or images.
        num_samples: S ≥ 1.

    Raises:
        ValueError: fewer than two images or no sample.
    """
    if len(x) < 2 or num_samples < 1:
        raise ValueError(
            "log_px_gain: at least two images and one sample are needed, "
            f"got {len(x)} and {num_samples}"
        )
    images = max(1, ROWS_AT_ONCE // num_samples)
    parts = [
        _gains(vae, density, part, noise, num_samples, row_offset=i * images)
        for i, part in enumerate(x.split(images))
    ]
    log_px, elbo = torch.cat(parts, 1)
    return Gain(mean_of_draws(log_px), mean_of_draws(elbo), len(x), num_samples)


def _gains(
    vae: VAE, density: Density, x: Tensor, noise: Tensor, num_samples: int, row_offset: int
) -> Tensor:
    # → (2, N) float64
    mu, logvar = vae.encode(x)
    z = rsample(mu, logvar, noise, num_samples, row_offset=row_offset)  # (S, N, D)
    flat = z.flatten(0, 1)
    posterior = (part.expand_as(z).flatten(0, 1) for part in (mu, logvar))
    log_p = log_standard_normal(flat.double())
    ratio = (density.log_prob(flat) - log_p).view(z.shape[:2])
    weights = bernoulli_log_prob(vae.decode(z), x).double()
    weights += (log_p - log_gaussian(flat, *posterior)).view(z.shape[:2])
    gain = torch.logsumexp(weights + ratio, 0) - torch.logsumexp(weights, 0)
    return torch.stack([gain, ratio.mean(0)])
