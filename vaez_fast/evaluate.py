"""Held-out ELBO, rate, distortion and importance-sampled log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vaez_kernels import bernoulli_log_prob, kl_standard_normal, normal

from .graph import compile_graph
from .model import VAE

SAMPLES_AT_ONCE = 8
# Images times samples decoded at once. 1,000 × 784 logits stay in a CPU's cache; a GPU wants more.
DECODED_AT_ONCE = {"cpu": 1_000, "cuda": 100_000}


@dataclass(frozen=True)
class Metrics:
    """Means over a split, in nats per image; elbo = −(rate + distortion)."""

    elbo: float
    rate: float  # analytic KL(q(z|x) ‖ N(0, I))
    distortion: float  # −E_q log p(x|z), over log_px_samples samples
    log_px: float  # log 1/S Σ_s p(x, z_s)/q(z_s|x): Burda et al. 2016, equation 8
    log_px_samples: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Evaluator:
    """Evaluates models of one architecture on one split; compiled once, reused every epoch.

    Memory does not grow with the number of samples. Noise is indexed by image and sample: the first
    64 samples of 5,000 are the 64, whatever the chunks.

    Args:
        pixels: (N, 784) uint8 on the device.
        pixel_scale: what turns them into x in [0, 1].
        noise: (2,) int64 on the device, from `noise_key(seed, "evaluate", …)`.
    """

    def __init__(self, pixels: Tensor, pixel_scale: float, noise: Tensor) -> None:
        self.pixels, self.pixel_scale, self.noise = pixels, pixel_scale, noise
        self._graphs: dict[tuple[int, ...], Callable[..., tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, vae: VAE, num_samples: int) -> Metrics:
        """Evaluate `vae` (float32, on the device) with `num_samples` ≥ 1 samples an image."""
        samples = min(num_samples, SAMPLES_AT_ONCE)
        rows = DECODED_AT_ONCE[self.pixels.device.type] // samples
        sums = torch.zeros(3, dtype=torch.float64, device=self.pixels.device)
        for first in range(0, len(self.pixels), rows):
            x = self.pixels[first : first + rows].float() * self.pixel_scale
            for i, value in enumerate(self._rows(vae, x, first, num_samples, samples)):
                sums[i] += value.sum(dtype=torch.float64)
        rate, distortion, log_px = (sums / len(self.pixels)).tolist()
        return Metrics(-(rate + distortion), rate, distortion, log_px, num_samples)

    def _rows(
        self, vae: VAE, x: Tensor, first: int, num_samples: int, samples: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # x (B, P), the images from index `first` on → rate, distortion, log p(x), each (B,)
        mu, logvar = vae.encode(x)
        distortion = torch.zeros_like(mu[:, 0])
        log_sum = torch.full_like(distortion, -math.inf)
        for s in range(0, num_samples, samples):
            shape = (min(samples, num_samples - s), *mu.shape)
            eps = normal(self.noise, *shape, row_offset=first, sample_offset=s)
            log_prob, log_ratio = self._log_probs(vae.decoder, mu, logvar, eps, x)
            distortion -= log_prob.sum(0) / num_samples
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_prob - log_ratio, 0))
        return kl_standard_normal(mu, logvar), distortion, log_sum - math.log(num_samples)

    def _log_probs(
        self, decoder: nn.Module, mu: Tensor, logvar: Tensor, eps: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        # mu, logvar (B, D), eps (S, B, D) → log p(x|z), log q(z|x) − log p(z), each (S, B)

        names = [name for name, _ in decoder.named_parameters()]

        def log_probs(
            mu: Tensor, logvar: Tensor, eps: Tensor, x: Tensor, *parameters: Tensor
        ) -> tuple[Tensor, Tensor]:
            z = mu + torch.exp(0.5 * logvar) * eps
            named = dict(zip(names, parameters, strict=True))
            logits = functional_call(decoder, named, (z,))
            log_ratio = (0.5 * (z - eps) * (z + eps) - 0.5 * logvar).sum(2)
            return bernoulli_log_prob(logits, x), log_ratio

        # Contiguous, since the compiled graph takes one layout, and a model may have any.
        parameters = [p.detach().contiguous() for p in decoder.parameters()]
        tensors = (mu.contiguous(), logvar.contiguous(), eps, x, *parameters)
        if eps.shape not in self._graphs:
            self._graphs[eps.shape] = compile_graph(log_probs, *tensors, device=x.device)
        return self._graphs[eps.shape](*tensors)
