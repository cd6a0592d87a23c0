"""The check before the clock: outputs and gradients against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

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


# Checked at the beginning and at the end of a batch: float64 copies of all of a large one would
# take longer than the timing, and leave the allocator in another state than the op alone does.
ROWS_CHECKED = 1024

Op = Callable[..., Any]  # the case's inputs → its outputs


class Case(Protocol):
    """Inputs of an op and its upstream gradients on one device, and the truth about its outputs."""

    def run(self, forward: Op, backward: bool) -> tuple[Tensor, ...]:
        """Outputs of `forward`, followed by the gradients if `backward`."""

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare what `run` gave, for our op or for a baseline."""

    def advance(self) -> None:
        """The next step of our noise, on the device; nothing for an op that draws none."""


@dataclass(frozen=True)
class LatentCase:
    """Inputs of the latent op and the upstream gradients, all on one device."""

    mu: Tensor  # (B, D)
    logvar: Tensor  # (B, D)
    noise: Tensor  # (2,)
    grad_z: Tensor  # (1, B, D)
    grad_kl: Tensor  # (B,)

    def run(self, forward: Op, backward: bool) -> tuple[Tensor, ...]:
        """z, the KL (B,), then the gradients of mu and logvar, each (B, D)."""
        z, kl = forward(self.mu, self.logvar)
        if not backward:
            return z, kl
        upstream = [self.grad_z.view_as(z), self.grad_kl.to(kl.dtype)]
        return z, kl, *torch.autograd.grad([z, kl], [self.mu, self.logvar], upstream)

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare with the reference, on the first and last 1,024 rows.

        Our ops must reproduce the stream's eps. A baseline draws its own: eps is recovered from its
        z and must look standard normal; gradients are then held to that eps.
        """
        z, *others = outputs
        rows = (z.view_as(self.grad_z)[0], *others)
        errors: list[float] = []
        for first in sorted({0, max(0, len(self.mu) - ROWS_CHECKED)}):
            errors += _errors_of_rows(self, rows, first, ours)
        return Check(worst(errors), "float64 reference" + ("" if ours else ", its own eps"))

    def advance(self) -> None:
        self.noise[1] += 1


def worst(errors: list[float]) -> float:
    """The largest, and NaN if one is."""
    return math.nan if any(math.isnan(e) for e in errors) else max(errors)


def _errors_of_rows(
    case: LatentCase, outputs: tuple[Tensor, ...], first: int, ours: bool
) -> list[float]:
    # outputs: z (B, D), kl (B,), and perhaps grad_mu (B, D), grad_logvar (B, D)
    def rows(x: Tensor) -> Tensor:
        return x.detach()[first : first + ROWS_CHECKED].double().cpu()

    z, kl, *gradients = (rows(x) for x in outputs)
    mu, logvar = rows(case.mu).requires_grad_(), rows(case.logvar).requires_grad_()
    m, sigma = mu.detach(), torch.exp(0.5 * logvar.detach())
    unit = ROUNDING[case.mu.dtype]
    errors = []
    if ours:
        count, columns = mu.shape
        eps = reference.normal(case.noise.cpu(), 1, count, columns, row_offset=first)[0]
        bound = unit * (1 + m.abs() + sigma * eps.abs().clamp(min=1))
        errors.append(((z - (m + sigma * eps)).abs() / bound).max())
    else:
        eps = (z - m) / sigma
        errors.append(eps.mean().abs() / (5 / math.sqrt(eps.numel())))
        errors.append((eps.var() - 1).abs() / (5 * math.sqrt(2 / eps.numel())))
    reference_kl = reference.kl_standard_normal(mu, logvar)
    # Textbook terms are subtracted from each other, so rounding goes with their sum of sizes; a sum
    # of D terms in sequence may lose D/2 roundings, blocked sums stay below √D.
    size = 0.5 * (m.square() + sigma.square() + 1 + logvar.detach().abs()).sum(1)
    kl_bound = unit * math.sqrt(mu.shape[1]) * size
    errors.append(((kl - reference_kl.detach()).abs() / kl_bound).max())
    if not gradients:
        return [float(e) for e in errors]

    grad_z, grad_kl = rows(case.grad_z[0]), rows(case.grad_kl)
    truths = torch.autograd.grad(
        [reference.rsample(mu, logvar, eps), reference_kl], [mu, logvar], [grad_z, grad_kl]
    )
    g, k = grad_z.abs(), grad_kl.abs()[:, None]
    sizes = (
        g + k * m.abs(),
        0.5 * sigma * (g * eps.abs().clamp(min=1) + k * (sigma + 1 / sigma + 1)),
    )
    for gradient, truth, terms in zip(gradients, truths, sizes, strict=True):
        # Four roundings: of each product, of their sum, of σ, of what leaves.
        errors.append(((gradient - truth).abs() / (4 * unit * (terms + unit))).max())
    return [float(e) for e in errors]


# As ROWS_CHECKED, for rows of 784 pixels and up to eight samples.
IMAGES_CHECKED = 64


@dataclass(frozen=True)
class LikelihoodCase:
    """Inputs of the likelihood op and the upstream gradient, all on one device."""

    logits: Tensor  # (S, B, P)
    x: Tensor  # (B, P) uint8, 0 and 1
    grad: Tensor  # (S, B)

    def run(self, forward: Op, backward: bool) -> tuple[Tensor, ...]:
        """log p(x|z) (S, B), then the logits' gradient (S, B, P)."""
        out = forward(self.logits, self.x)
        if not backward:
            return (out,)
        return out, *torch.autograd.grad(out, self.logits, self.grad.to(out.dtype))

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare with the reference, on the first and last 64 rows.

        A pixel's term x·l − softplus(l) may err by a unit of the sizes of its two parts: of the
        logits' dtype, and of float32 for our op, which computes and leaves in it. The float32 sum
        of P terms, in blocks, loses below √P roundings of 2⁻²⁴. A gradient g·(x − σ(l)) has four
        roundings: of σ, of the difference, of the product, of what leaves.
        """
        errors: list[float] = []
        for first in sorted({0, max(0, len(self.x) - IMAGES_CHECKED)}):
            errors += self._errors_of_rows(outputs, first, ours)
        return Check(worst(errors), "float64 reference")

    def _errors_of_rows(self, outputs: tuple[Tensor, ...], first: int, ours: bool) -> list[float]:
        def rows(x: Tensor, dim: int = 1) -> Tensor:
            count = min(IMAGES_CHECKED, x.shape[dim] - first)
            return x.detach().narrow(dim, first, count).double().cpu()

        out, *gradients = (rows(x) for x in outputs)
        logits, x, grad = rows(self.logits).requires_grad_(), rows(self.x, 0), rows(self.grad)
        unit = ROUNDING[self.logits.dtype]
        truth = reference.bernoulli_log_prob(logits, x)
        size = ((x * logits).abs() + torch.nn.functional.softplus(logits)).detach().sum(2)
        of_a_term = ROUNDING[torch.float32] if ours else unit
        bound = (of_a_term + math.sqrt(x.shape[1]) * 2.0**-24) * size
        errors = [((out - truth.detach()).abs() / bound).max()]
        for gradient in gradients:
            (true_gradient,) = torch.autograd.grad(truth, logits, grad)
            terms = grad.abs()[..., None] * (x + torch.sigmoid(logits.detach()))
            errors.append(((gradient - true_gradient).abs() / (4 * unit * (terms + unit))).max())
        return [float(e) for e in errors]

    def advance(self) -> None:
        pass


# As ROWS_CHECKED, for draws that each meet all components.
DRAWS_CHECKED = 8


@dataclass(frozen=True)
class MixtureCase:
    """Inputs of the mixture's density and the upstream gradient, float32, all on one device."""

    z: Tensor  # (M, D)
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    grad: Tensor  # (M,)

    def run(self, forward: Op, backward: bool) -> tuple[Tensor, ...]:
        """log q(z) (M,), then the gradient of z (M, D)."""
        out = forward(self.z, self.mu, self.logvar)
        return (out, *torch.autograd.grad(out, self.z, self.grad)) if backward else (out,)

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare with the reference, on the first and last eight draws.

        log q may err by a unit of its components' terms, ½Σt² and ½Σ|logvar|, each by its
        responsibility; and by one of itself. A responsibility errs, relatively, by a unit of its
        own terms and of theirs, and a gradient's terms by four roundings besides.
        """
        errors: list[float] = []
        for first in sorted({0, max(0, len(self.z) - DRAWS_CHECKED)}):
            errors += self._errors_of_draws(outputs, first)
        return Check(worst(errors), "float64 reference")

    def _errors_of_draws(self, outputs: tuple[Tensor, ...], first: int) -> list[float]:
        draws = slice(first, first + DRAWS_CHECKED)
        out, *gradients = (x.detach()[draws].double() for x in outputs)
        z = self.z.detach()[draws].double().requires_grad_()
        truth = reference.mixture_log_prob(z, self.mu, self.logvar)
        (gradient,) = torch.autograd.grad(truth, z, self.grad[draws].double())
        mu, logvar, unit = self.mu.double(), self.logvar.double(), ROUNDING[torch.float32]
        errors = []
        for m, point in enumerate(z.detach()):  # in float64 one draw meets many components
            slope = (point - mu) * torch.exp(-logvar)  # (N, D)
            squares = (slope * (point - mu)).sum(1)
            responsibility = torch.softmax(-0.5 * (squares + logvar.sum(1)), 0)
            sizes = 0.5 * (squares + logvar.abs().sum(1))
            size = responsibility @ sizes
            errors.append((out[m] - truth[m]).abs() / (unit * (1.0 + size + truth[m].abs())))
            terms = (responsibility * (4.0 + sizes + size)) @ slope.abs()
            bound = unit * (self.grad[first + m].abs() * terms + unit)
            errors += [((of_all[m] - gradient[m]).abs() / bound).max() for of_all in gradients]
        return [float(e.detach()) for e in errors]

    def advance(self) -> None:
        pass


@dataclass(frozen=True)
class LastLayerCase:
    """Inputs of the fused last layer and the upstream gradient, all on one device."""

    hidden: Tensor  # (S, B, H)
    weight: Tensor  # (P, H)
    bias: Tensor  # (P,)
    x: Tensor  # (B, P) uint8
    grad: Tensor  # (S, B)

    def run(self, forward: Op, backward: bool) -> tuple[Tensor, ...]:
        """log p(x|z) (S, B), then the gradients of hidden, weight and bias."""
        leaves = (self.hidden, self.weight, self.bias)
        out = forward(*leaves, self.x)
        if not backward:
            return (out,)
        return out, *torch.autograd.grad(out, leaves, self.grad.to(out.dtype))

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare with the reference.

        A logit may err by a unit of what it sums, |h||w| + |b|; the likelihood by that over all
        pixels and, as for `LikelihoodCase`, by a unit of its terms. A residual g·(x − sigmoid(l))
        has four roundings and a quarter of the logit's error, and gradients are sums of products
        of residuals, which are rounded once more.
        """
        leaves = [
            t.detach().double().requires_grad_() for t in (self.hidden, self.weight, self.bias)
        ]
        hidden, weight, bias = leaves
        x, grad = self.x.double(), self.grad.double()
        logits = hidden @ weight.t() + bias
        truth = reference.bernoulli_log_prob(logits, x)
        wanted = (truth, *torch.autograd.grad(truth, leaves, grad))
        with torch.no_grad():
            unit = ROUNDING[self.hidden.dtype]
            rows, w = hidden.abs().flatten(0, 1), weight.abs()
            of_logits = unit * (hidden.abs() @ w.t() + bias.abs())
            softplus = torch.nn.functional.softplus(logits)
            parts = ((x * logits).abs() + softplus).sum(2)
            value = of_logits.sum(2) + (unit + math.sqrt(x.shape[1]) * 2.0**-24) * parts
            g = grad.abs()[..., None]
            residual = g * (x - torch.sigmoid(logits)).abs()
            of_residual = (g * (4 * unit + 0.25 * of_logits) + unit * residual).flatten(0, 1)
            total = of_residual + 2 * unit * residual.flatten(0, 1)
            bounds = (
                value,
                (total @ w).view_as(hidden),
                total.t() @ rows + unit * wanted[2].abs(),
                total.sum(0),
            )
            errors = [
                float(((found.double() - want).abs() / (bound + unit * want.abs() + 1e-9)).max())
                for found, want, bound in zip(outputs, wanted, bounds, strict=False)
            ]
        return Check(worst(errors), "float64 reference")

    def advance(self) -> None:
        pass
