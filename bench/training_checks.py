"""The check before a training step is timed: its first loss against float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.accuracy import Check
from bench.baselines import Loss, TextbookVAE
from bench.products import Product, operands
from vaez_fast.engine import Engine
from vaez_fast.model import Architecture
from vaez_kernels import reference

# Of a loss, in units of its terms' sum. float32 rounds 1,000 terms to 1e-5 of it; bfloat16 products
# move each logit by 2⁻⁸, and the loss by 1e-4 as measured.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


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


def check_product(product: Product, device: torch.device) -> Check:
    """Hold a product to float64: rounded once, and its sum to k·2⁻²⁴ of the terms' sizes."""
    left, right = operands(product, device)
    out, wide = (left @ right).double(), left.double() @ right.double()
    sizes = left.double().abs() @ right.double().abs()
    bound = UNIT[product.dtype] * wide.abs() + left.shape[1] * 2.0**-24 * sizes
    return Check(float(((out - wide).abs() / bound).max()), "float64 product")
