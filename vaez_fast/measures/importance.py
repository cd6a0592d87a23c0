"""Importance-sampled log p(x) of a model with its own posterior and prior, streaming over samples.

`vaez_kernels.importance_log_likelihood` does it in one pass for a diagonal Gaussian and N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import normal

from ..objective import log_likelihood
from ..richer.vae import RicherVAE

# Images and samples of one product, at most; other sizes may round differently.
IMAGES_AT_ONCE, SAMPLES_AT_ONCE = 50, 16


@dataclass(frozen=True, eq=False)
class Estimates:
    """Of B images, each (B,) float64 in nats."""

    log_likelihood: Tensor  # log 1/S Σ_s p(x, z_s)/q(z_s|x): Burda et al. 2016, equation 8
    rate: Tensor  # 1/S Σ_s log q(z_s|x) − log p(z_s), an unbiased estimate of KL(q(z|x) ‖ p(z))
    log_prob: Tensor  # 1/S Σ_s log p(x|z_s), the negative distortion


@torch.no_grad()
def importance_estimates(
    vae: RicherVAE,
    parameters: tuple[Tensor, ...],
    x: Tensor,
    noise: Tensor,
    num_samples: int,
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Estimates:
    """Estimates from `num_samples` z of each image; memory does not grow with them.

    Products are float32. Sample s of image n has the noise of sample s + sample_offset and row
    n + row_offset of the stream, whatever the other arguments.

    Args:
        vae: float32, on the device of all tensors.
        parameters: of q(z|x), `vae.parameters_of(x)`.
        x: (B, 784) in [0, 1], or uint8 of 0 and 1.
        noise: (2,) int64 from `noise_key`.
        num_samples: S ≥ 1.
    """
    law, parts = vae.law(), []
    for first in range(0, len(x), IMAGES_AT_ONCE):
        rows = slice(first, first + IMAGES_AT_ONCE)
        of_rows = tuple(p[rows] for p in parameters)
        shape = (len(x[rows]), vae.architecture.latent)
        zeros = torch.zeros(len(x[rows]), dtype=torch.float64, device=x.device)
        log_sum, rate, log_prob = torch.full_like(zeros, -math.inf), zeros, zeros
        for sample in range(0, num_samples, SAMPLES_AT_ONCE):
            eps = normal(
                *(noise, min(SAMPLES_AT_ONCE, num_samples - sample), *shape),
                row_offset=row_offset + first,
                sample_offset=sample_offset + sample,
            )
            z, log_q = vae.posterior.transform(eps, *of_rows)
            log_px_z = log_likelihood(vae, z, x[rows]).double()
            log_ratio = log_q.double() - law.log_prob(z)
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_px_z - log_ratio, 0))
            rate, log_prob = rate + log_ratio.sum(0), log_prob + log_px_z.sum(0)
        means = rate / num_samples, log_prob / num_samples
        parts.append(torch.stack((log_sum - math.log(num_samples), *means)))
    return Estimates(*torch.cat(parts, 1))
