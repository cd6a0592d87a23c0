"""The checks of training against float64: a step's first loss, its products, a run's metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from bench.training.baselines import Loss, TextbookVAE
from bench.training.products import Job
from vaez_fast.data import PIXELS
from vaez_fast.measures.evaluate import Metrics
from vaez_fast.model import Architecture
from vaez_fast.training.engine import Engine
from vaez_kernels import reference
from vaez_kernels.error_bounds import Check, worst

# Allowed error of a loss, relative to the sum of its terms. Rounding 1,000 terms in float32 shifts
# the sum by 1e-5. bfloat16 products shift each logit by 2⁻⁸ and the loss by 1e-4 (measured).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
# Spread over images of the error of log p(x) due to rounded operands, in nats per unit of roundoff:
# bfloat16: 0.047 nats an image for altosaar's trained model (reports/likelihood: 0.0015·√1000),
# 0.012 to 0.028 after as few steps as here.
IMAGE_SPREAD = 12.0


@torch.no_grad()
def float64_loss(vae: TextbookVAE, x: Tensor, eps: Tensor, loss: str) -> tuple[float, float]:
    """A batch's mean loss in float64, nats, and the size of its terms: x (B, 784), eps (B, D).

    Args:
        loss: "elbo" and "kl" with the Monte Carlo KL, "analytic elbo" and "analytic kl" with the
            closed form, or "decoder", −log p(x|z) alone.
    """
    vae, x = copy.deepcopy(vae).cpu().double(), x.cpu().double()
    q = vae.posterior(x)
    logvar = 2 * q.scale.log()
    if loss.startswith("analytic"):
        rate = reference.kl_standard_normal(q.loc, logvar)
    else:
        rate = reference.kl_standard_normal_mc(q.loc, logvar, eps[None])
    if loss.endswith("kl"):
        return float(rate.mean()), float(rate.abs().mean()) + logvar.shape[1]
    distortion = -reference.bernoulli_log_prob(vae.decoder(q.loc + q.scale * eps)[None], x)[0]
    total = float((distortion if loss == "decoder" else rate + distortion).mean())
    return total, total


def check_loss(loss: Loss, vae: TextbookVAE, x: Tensor, name: str) -> Check:
    """Hold a baseline's loss to float64, with eps recovered from its z."""
    before = copy.deepcopy(vae)
    value, z = loss(x)
    with torch.no_grad():
        q = before.posterior(x)
        eps = ((z.detach() - q.loc) / q.scale).double().cpu()
    truth, size = float64_loss(before, x, eps, name)
    error = abs(float(value.detach().mean()) - truth) / size / TOLERANCE[torch.float32]
    return Check(error, "float64 loss, its own eps")


def check_first_step(engine: Engine, model: str | Architecture, trains: str) -> Check:
    """Hold the loss of a fresh engine's first step, of seed 0, to float64.

    Args:
        trains: what its objective is: "elbo" or "kl", both analytic, or "decoder".
    """
    latent = engine.objective.vae.architecture.latent
    batches, noise = engine.batches, engine.state.noise
    pixels = batches.rows(batches.images, batches.order, noise[1:])
    eps = reference.normal(noise.cpu(), 1, len(pixels), latent)[0]
    loss = trains if trains == "decoder" else f"analytic {trains}"
    truth, size = float64_loss(TextbookVAE(model), pixels, eps, loss)
    precision = torch.bfloat16 if engine.state.copies else torch.float32
    engine.step()
    error = abs(sum(engine.take_totals(1)) - truth) / size / TOLERANCE[precision]
    return Check(error, "float64 loss, same eps")


@torch.no_grad()
def float64_metrics(
    vae: TextbookVAE, pixels: Tensor, noise: Tensor, samples: int
) -> dict[str, float]:
    """Means over images of rate, ELBO and log p(x) in nats, of the stream's `samples` samples.

    Args:
        vae: float32 weights; they are evaluated in float64.
        pixels: (N, 784) uint8, 0 and 1, of images 0 to N − 1 of the split.
        noise: (2,) int64 on the CPU.
    """
    vae, x = copy.deepcopy(vae).cpu().double(), pixels.cpu().double()
    q = vae.posterior(x)
    logvar = 2 * q.scale.log()
    rows, columns = logvar.shape
    log_probs, log_weights = [], []
    for s in range(samples):
        eps = reference.normal(noise, 1, rows, columns, sample_offset=s)[0]
        z = q.loc + q.scale * eps
        log_prob = reference.bernoulli_log_prob(vae.decoder(z)[None], x)[0]
        log_probs.append(log_prob)
        log_weights.append(log_prob - (0.5 * (z.square() - eps.square()) - 0.5 * logvar).sum(1))
    rate = float(reference.kl_standard_normal(q.loc, logvar).mean())
    elbo = float(torch.stack(log_probs).mean()) - rate
    log_px = torch.logsumexp(torch.stack(log_weights), 0) - math.log(samples)
    return {"rate": rate, "elbo": elbo, "log_px": float(log_px.mean())}


def metrics_tolerance(precision: torch.dtype, images: int, size: float) -> float:
    """What a mean over `images` images may err by, in nats, by the dtype of the decoder's products.

    The 784 terms of an image are always summed in float32. Their sum, `size` nats, errs by at most
    √784 roundings of `size`. At worst, all images err in the same direction.
    Operands are rounded by up to a unit u of their dtype, 2⁻⁸ in bfloat16, and move an image's
    log p(x) with a spread of 12u nats. The mean of N images may err by five times 12u/√N, and by
    the same again for roundings of weights, which all images share: in twelve trainings here,
    the mean was off by up to four standard errors (0.003 nats), and by 0.007 on another processor.

    For 500 images and 160 nats: 0.00027 nats in float32 (measured 1e-6), 0.021 in bfloat16.
    """
    sums = math.sqrt(PIXELS) * 2.0**-24 * size
    products = 2 * 5 * IMAGE_SPREAD * UNIT[precision] / math.sqrt(images)
    return sums + products


def check_metrics(
    found: Metrics, truth: dict[str, float], precision: torch.dtype, images: int
) -> Check:
    """Hold a split's metrics to `float64_metrics`.

    Args:
        precision: of the decoder's products. The encoder's are float32, and the rate is held to it.
        images: how many the means are over.
    """
    size = abs(truth["elbo"]) + truth["rate"]
    products = {"rate": torch.float32, "elbo": precision, "log_px": precision}
    errors = [
        abs(getattr(found, name) - truth[name]) / metrics_tolerance(dtype, images, size)
        for name, dtype in products.items()
    ]
    return Check(worst(errors), "float64 evaluation, same samples")


def worse(one: Check, other: Check) -> Check:
    """The larger of two errors, of which NaN is the largest, and what `one` was held against."""
    return Check(worst([one.error, other.error]), one.against)


def check_products(jobs: Iterable[Job]) -> Check:
    """Hold products to float64: rounded once, and their sums to k·2⁻²⁴ of the terms' sizes."""
    errors = []
    for job in jobs:
        left, right = job.left.double(), job.right.double()
        wide, sizes = left @ right, left.abs() @ right.abs()
        bound = UNIT[job.left.dtype] * wide.abs() + left.shape[1] * 2.0**-24 * sizes
        errors.append(float(((job.run().double() - wide).abs() / bound).max()))
    return Check(worst(errors), "float64 product")
