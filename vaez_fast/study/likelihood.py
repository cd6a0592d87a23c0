"""log p(x): of each arm from 5,000 samples; of the ordinary VAE against k and from both sides."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import importance_estimates, kl_standard_normal

from .. import streams
from ..measures.aggregate import Estimate, mean_of_draws
from ..measures.annealed import CHAINS, bidirectional, simulate
from ..measures.evaluate import Evaluator, Metrics
from ..model import VAE

# The numbers of samples and test images for the curve of log p(x).
K_CURVE, K_CURVE_IMAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000), 500
# From 50 to 200 temperatures both bounds move by 0.03 nats, less than their errors over images.
IMAGES, TEMPERATURES, SAMPLES = 100, 50, 5_000
# All 10,000 test images would take two minutes an arm. A tenth takes twelve seconds, and the rise
# from 128 samples differs little from image to image.
SHARE_OF_IMAGES, FEWEST_IMAGES = 10, 100

Record = dict[str, Any]


def log_px_of_many(
    vae: VAE, test: Metrics, pixels: Tensor, scale: float, seed: int, precision: str
) -> Record:
    """log p(x) in nats of all images of `pixels` (N, 784), as 5,000 samples of each would find it.

    `test` has the mean over all images from fewer samples. The `rise` from that many samples to
    5,000 is measured on every tenth image (of few images, on at least 100) and added: two-level
    Monte Carlo (Giles 2008, Multilevel Monte Carlo Path Simulation, section 2). Standard errors are
    over images. The two are added as if their images were others; the second is far smaller.
    """
    samples, rise, some = test.log_px_samples, Estimate(0.0, 0.0), len(pixels)
    if samples < SAMPLES:
        spread = pixels[:: max(1, min(SHARE_OF_IMAGES, len(pixels) // FEWEST_IMAGES))]
        noise = streams.MORE_SAMPLES.key(seed, device=pixels.device)
        few, many = Evaluator(spread, scale, noise, precision).log_px_curve(vae, (samples, SAMPLES))
        samples, rise, some = SAMPLES, mean_of_draws(many - few), len(spread)
    return {
        "value": test.log_px + rise.value,
        "standard_error": math.hypot(test.log_px_standard_error, rise.standard_error),
        "samples": samples,
        "rise": {**rise._asdict(), "images": some},
    }


def k_curve(vae: VAE, pixels: Tensor, scale: float, seed: int, precision: str) -> Record:
    """The mean log p(x) in nats of the first images of `pixels` (N, 784) against k."""
    shown = pixels[:K_CURVE_IMAGES]
    noise = streams.K_CURVE.key(seed, device=pixels.device)
    curve = Evaluator(shown, scale, noise, precision).log_px_curve(vae, K_CURVE)
    return {"images": len(shown), "k": list(K_CURVE), "log_px": curve.mean(1).tolist()}


def both_sides(vae: VAE, x: Tensor, seed: int) -> Record:
    """Bounds of log p(x) of the first images of x (N, 784), and of as many simulated ones.

    Of each set, means in nats and their standard errors over images: `elbo` and `importance`, with
    5,000 samples; `lower` and `upper` by bidirectional Monte Carlo; and `gap`, lower − elbo, the
    KL(q(z|x) ‖ p(z|x)) that log p(x) = ELBO + KL leaves. The upper bound is rigorous for simulated
    images alone; see `vaez_fast.measures.annealed`.
    """
    shown = x[:IMAGES]
    simulated, z = simulate(vae, len(shown), seed)
    return {
        "images": len(shown),
        "samples": SAMPLES,
        "temperatures": TEMPERATURES,
        "chains": CHAINS,
        "test": _bounds(vae, shown, seed, None),
        "simulated": _bounds(vae, simulated, seed, z),
    }


def _bounds(vae: VAE, x: Tensor, seed: int, z: Tensor | None) -> Record:
    noise = streams.K_CURVE.key(seed, device=x.device)
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        log_px, log_prob = importance_estimates(
            vae.decoder, mu, logvar, x, noise, SAMPLES, "float32"
        )
        elbo = (log_prob - kl_standard_normal(mu, logvar)).double()
    annealed = bidirectional(vae, x, seed, z=z, temperatures=TEMPERATURES)
    found = {
        "elbo": elbo,
        "importance": log_px.double(),
        "lower": annealed.lower,
        "upper": annealed.upper,
        "gap": annealed.lower - elbo,
    }
    return {name: mean_of_draws(of)._asdict() for name, of in found.items()}
