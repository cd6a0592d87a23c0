"""The check before the clock: outputs and gradients against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.baselines import TextbookVAE
from vaez_fast.engine import Engine
from vaez_kernels import reference

# What one number may err by, in units of its terms' size: 1e-6 is the ops' promise for float32
# arithmetic, the others are the spacing of the dtype in which textbook code adds them up.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Check:
    """`error` is the largest error found, in units of its tolerance: the check passes up to 1."""

    error: float
    against: str

    @property
    def passed(self) -> bool:
        return self.error <= 1.0  # False for NaN, too


@dataclass(frozen=True)
class LatentCase:
    """Inputs of the latent op and the upstream gradients, all on one device."""

    mu: Tensor  # (B, D)
    logvar: Tensor  # (B, D)
    noise: Tensor  # (2,)
    grad_z: Tensor  # (1, B, D)
    grad_kl: Tensor  # (B,)

    def backward(self, z: Tensor, kl: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients with respect to mu and logvar, each (B, D)."""
        upstream = [self.grad_z.view_as(z), self.grad_kl.to(kl.dtype)]
        grad_mu, grad_logvar = torch.autograd.grad([z, kl], [self.mu, self.logvar], upstream)
        return grad_mu, grad_logvar


Latent = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check_latent(case: LatentCase, forward: Latent, our_noise: bool) -> Check:
    """Compare z, the KL and both gradients with the reference.

    Our ops must reproduce the stream's eps. A baseline draws its own: eps is recovered from its z
    and must look standard normal; gradients are then held to that eps.
    """
    mu, logvar = case.mu.detach(), case.logvar.detach()
    z, kl = forward(case.mu, case.logvar)
    gradients = case.backward(z, kl)
    z, kl = z.detach(), kl.detach()
    z = z.reshape(1, *mu.shape).double().cpu()
    m, lv = mu.double().cpu().requires_grad_(), logvar.double().cpu().requires_grad_()
    sigma = torch.exp(0.5 * lv.detach())
    unit = ROUNDING[mu.dtype]
    errors = []
    if our_noise:
        eps = reference.normal(case.noise.cpu(), 1, *mu.shape)
        bound = unit * (1 + m.detach().abs() + sigma * eps.abs().clamp(min=1))
        errors.append(((z - reference.rsample(m, lv, eps).detach()).abs() / bound).max())
    else:
        eps = (z - m.detach()) / sigma
        n = eps.numel()
        errors.append(eps.mean().abs() / (5 / math.sqrt(n)))
        errors.append((eps.var() - 1).abs() / (5 * math.sqrt(2 / n)))
    reference_kl = reference.kl_standard_normal(m, lv)
    # Textbook terms are subtracted from each other, so rounding goes with their sum of sizes.
    size = 0.5 * (m.square() + torch.exp(lv) + 1 + lv.abs()).sum(1).detach()
    # A sum of D terms in sequence may lose D/2 roundings; blocked sums stay below √D.
    kl_bound = unit * math.sqrt(mu.shape[1]) * size
    errors.append(((kl.double().cpu() - reference_kl.detach()).abs() / kl_bound).max())

    grad_z, grad_kl = case.grad_z.double().cpu(), case.grad_kl.double().cpu()
    grad_mu, grad_logvar = torch.autograd.grad(
        [reference.rsample(m, lv, eps), reference_kl], [m, lv], [grad_z, grad_kl]
    )
    g, k = grad_z[0].abs(), grad_kl.abs()[:, None]
    sizes = (
        g + k * m.detach().abs(),
        0.5 * sigma * (g * eps[0].abs().clamp(min=1) + k * (sigma + 1 / sigma + 1)),
    )
    for ours, truth, terms in zip(gradients, (grad_mu, grad_logvar), sizes, strict=True):
        # Four roundings: of each product, of their sum, of σ, of what leaves.
        error = (ours.double().cpu() - truth).abs() / (4 * unit * (terms + unit))
        errors.append(error.max())
    worst = max(float(e) for e in errors) if not any(e.isnan() for e in errors) else math.nan
    return Check(worst, "float64 reference" if our_noise else "float64 reference, its own eps")


def float64_loss(vae: TextbookVAE, x: Tensor, eps: Tensor, analytic: bool) -> float:
    """Mean −ELBO of a batch in float64, nats: x (B, 784), eps (B, D)."""
    vae = vae.cpu().double()
    x = x.cpu().double()
    with torch.no_grad():
        q = vae.posterior(x)
        z = q.loc + q.scale * eps
        logits = vae.decoder(z)
        log_prob = (x * logits - torch.nn.functional.softplus(logits)).sum(1)
        logvar = 2 * q.scale.log()
        if analytic:
            rate = reference.kl_standard_normal(q.loc, logvar)
        else:
            rate = reference.kl_standard_normal_mc(q.loc, logvar, eps[None])
        return float((rate - log_prob).mean())


def check_first_step(engine: Engine, name: str, pixels: Tensor, tolerance: float) -> Check:
    """Hold the loss of the engine's next step to float64, for a fresh engine of seed 0.

    Args:
        tolerance: relative; float32 rounds a loss of 550 nats to 1e-5 of it over 1,000 terms,
            bfloat16 products move each logit by 2⁻⁸ and the loss by 1e-3 (measured: 1e-4).
    """
    latent = engine.objective.vae.architecture.latent
    eps = reference.normal(engine.state.noise.cpu(), 1, len(pixels), latent)[0]
    truth = float64_loss(TextbookVAE(name), pixels, eps, analytic=True)
    engine.step(pixels)
    rate, distortion = engine.take_totals(1)
    return Check(abs(rate + distortion - truth) / abs(truth) / tolerance, "float64 loss, same eps")


def check_textbook_loss(vae: TextbookVAE, name: str, x: Tensor) -> Check:
    """Hold the textbook loss to float64, with eps recovered from its z."""
    with torch.no_grad():
        loss, z = vae.negative_elbo(x)
        q = vae.posterior(x)
        eps = ((z - q.loc) / q.scale).double().cpu()
    truth = float64_loss(TextbookVAE(name), x, eps, analytic=False)
    return Check(abs(float(loss.mean()) - truth) / abs(truth) / 1e-5, "float64 loss, its own eps")
