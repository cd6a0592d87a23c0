"""Inputs in awkward layouts, the reference and error bounds for the tests of the ops.

Bounds. With m = max(1, |eps|) and σ = exp(logvar/2), the ops promise eps within 1e-6·m of the
stream's definition and z within 1e-6·(1 + |mu| + σm). `bounds` carries that through every formula
to first order. A product errs by each factor's bound times the other factor, and a sum errs by the
sum of its terms' bounds (so the bound of a small difference of large terms is not relative to the
difference). The terms of the analytic KL are all positive, so the relative errors of the KL and its
gradient may be at most 1e-5. bfloat16 and float16 results may err by one more rounding to nearest
(half a unit in the last place).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaez_kernels import (
    kl_standard_normal,
    kl_standard_normal_mc,
    noise_key,
    reference,
    rsample,
    rsample_kl,
)
from vaez_kernels.latent.case import OPS

# The public calls that run the latent op: whether z is returned, and which KL.
MODES: dict[str, tuple[bool, str]] = OPS
LAYOUTS = ("contiguous", "chunk", "transposed", "step-2", "one-row", "one-column")

ERROR = 1e-6
KL_ERROR = 1e-5
# The relative error of rounding to nearest: half a unit in the last place.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# float16 rounding below 2⁻¹⁴. bfloat16 has the range of float32, whose bounds cover it.
SUBNORMAL = {torch.bfloat16: 0.0, torch.float16: 2.0**-25}


class Numbers(NamedTuple):
    """Outputs of an op and its gradients; None for an output that the op does not have."""

    z: Tensor | None
    kl: Tensor | None
    grad_mu: Tensor
    grad_logvar: Tensor


class Upstream(NamedTuple):
    grad_z: Tensor  # (S, B, D) in z's dtype
    grad_kl: Tensor  # (B,)


Op = Callable[..., tuple[Tensor | None, Tensor | None]]


def call(
    mode: str, mu: Tensor, logvar: Tensor, noise: Tensor, samples: int, **offsets: Any
) -> tuple[Tensor | None, Tensor | None]:
    """The public function that `mode` names; returns (z, kl)."""
    name, _, kind = mode.partition("/")
    if name == "rsample":
        return rsample(mu, logvar, noise, samples, **offsets), None
    if name == "kl_standard_normal":
        return None, kl_standard_normal(mu, logvar)
    if name == "kl_standard_normal_mc":
        return None, kl_standard_normal_mc(mu, logvar, noise, samples, kind, **offsets)
    return rsample_kl(mu, logvar, noise, samples, kind, **offsets)


def flat(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    samples: int,
    write_z: bool,
    kl: str,
    row_offset: int,
    sample_offset: int,
) -> tuple[object, ...]:
    """The arguments of the registered op for a call without a prior, a clamp or free bits."""
    plain = ("sum", -math.inf, math.inf, 0.0)
    return (
        *(mu, logvar, None, None, noise, samples, write_z, kl, *plain, row_offset, sample_offset),
    )


def latents(
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """mu and logvar (B, D) that require gradients, in the given memory layout."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if layout == "contiguous":
        mu, logvar = draw(rows, columns), draw(rows, columns)
    elif layout == "chunk":
        mu, logvar = draw(rows, 2 * columns).chunk(2, 1)
    elif layout == "transposed":
        mu, logvar = draw(columns, rows).t(), draw(columns, rows).t()
    elif layout == "step-2":
        mu, logvar = draw(rows, 2 * columns)[:, ::2], draw(rows, 2 * columns)[:, 1::2]
    elif layout == "one-row":
        mu, logvar = draw(1, columns).expand(rows, -1), draw(rows, columns)
    elif layout == "one-column":
        mu, logvar = draw(rows, columns), draw(rows, 1).expand(-1, columns)
    else:
        raise ValueError(layout)
    return mu.detach().requires_grad_(), logvar.detach().requires_grad_()


def strided_keys() -> list[Tensor]:
    """Keys in awkward memory: a column, every other number, one number twice, a middle part."""
    key = noise_key(17, "train", 9)
    columns, spread = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    columns[:, 1], spread[::2] = key, key
    once = torch.tensor([5], dtype=torch.int64)
    return [columns[:, 1], spread[::2], once.expand(2), torch.cat((once, key))[1:]]


def upstream_of(mu: Tensor, samples: int, seed: int = 1) -> Upstream:
    """Gradients that are neither of unit size nor contiguous."""
    rows, columns = mu.shape
    generator = torch.Generator().manual_seed(seed)
    grad_z = torch.randn((columns, rows, samples), generator=generator).permute(2, 1, 0)
    grad_kl = torch.randn((2 * rows,), generator=generator)[::2]
    return Upstream(grad_z.to(mu.dtype), grad_kl)


def _differentiate(
    z: Tensor | None, kl: Tensor | None, mu: Tensor, logvar: Tensor, upstream: Upstream
) -> Numbers:
    pairs = [
        (output, grad.to(output.dtype))
        for output, grad in ((z, upstream.grad_z), (kl, upstream.grad_kl))
        if output is not None
    ]
    outputs, grads = zip(*pairs, strict=True)
    grad_mu, grad_logvar = torch.autograd.grad(
        outputs, (mu, logvar), grads, allow_unused=True, materialize_grads=True
    )
    return Numbers(
        None if z is None else z.detach(), None if kl is None else kl.detach(), grad_mu, grad_logvar
    )


def measured(
    mode: str,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    samples: int,
    upstream: Upstream,
    op: Op = call,
    **offsets: int,
) -> Numbers:
    z, kl = op(mode, mu, logvar, noise, samples, **offsets)
    return _differentiate(z, kl, mu, logvar, upstream)


def expected(mode: str, mu: Tensor, logvar: Tensor, eps: Tensor, upstream: Upstream) -> Numbers:
    """The reference, differentiated by autograd in float64."""
    write_z, kind = MODES[mode]
    mu, logvar = (x.detach().double().requires_grad_() for x in (mu, logvar))
    z = reference.rsample(mu, logvar, eps) if write_z else None
    kl = None
    if kind == "analytic":
        kl = reference.kl_standard_normal(mu, logvar)
    elif kind != "none":
        kl = reference.kl_standard_normal_mc(mu, logvar, eps, kind)
    return _differentiate(z, kl, mu, logvar, upstream)


def bounds(mode: str, mu: Tensor, logvar: Tensor, eps: Tensor, upstream: Upstream) -> Numbers:
    """The largest allowed error before rounding to the output's dtype; the module derives it."""
    write_z, kind = MODES[mode]
    mu, logvar, eps = mu.detach().double(), logvar.detach().double(), eps.double()
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * eps
    m = eps.abs().clamp(min=1.0)
    z_error = 1.0 + mu.abs() + sigma * m
    kl_error, grad_mu, grad_logvar = None, torch.zeros_like(mu), torch.zeros_like(mu)
    if write_z:
        g = upstream.grad_z.double().abs()
        grad_mu = grad_mu + ERROR * g.sum(0)
        grad_logvar = grad_logvar + ERROR * (g * sigma * m).sum(0)
    g = upstream.grad_kl.double().abs()[:, None]
    if kind == "analytic":
        kl_error = KL_ERROR * reference.kl_standard_normal(mu, logvar)
        grad_mu = grad_mu + KL_ERROR * g * mu.abs()
        grad_logvar = grad_logvar + KL_ERROR * g * 0.5 * torch.expm1(logvar).abs()
    elif kind != "none":
        terms = z.abs() * z_error + m * m + 0.5 * logvar.abs()
        kl_error = ERROR * terms.sum(2).mean(0)
        path = z_error if kind == "total-derivative" else z_error + m / sigma
        grad_mu = grad_mu + ERROR * g * path.mean(0)
        grad_logvar = grad_logvar + ERROR * g * (path * sigma * m + 0.5).mean(0)
    return Numbers(ERROR * z_error if write_z else None, kl_error, grad_mu, grad_logvar)


def assert_within(name: str, actual: Tensor, wanted: Tensor, bound: Tensor | float) -> None:
    """|actual − wanted| ≤ bound everywhere; NaN is never within."""
    assert actual.shape == wanted.shape, f"{name}: {actual.shape}, wanted {wanted.shape}"
    error = (actual.double() - wanted.double()).abs()
    limit = torch.as_tensor(bound, dtype=torch.float64).expand_as(error)
    outside = ~(error <= limit)
    if outside.any():
        at = tuple(int(i) for i in outside.nonzero()[0])
        raise AssertionError(
            f"{name}: {int(outside.sum())} of {error.numel()} outside the bound, first at {at}: "
            f"{actual[at].item():.9g}, wanted {wanted[at].item():.9g} within {limit[at].item():.3g}"
        )


class Compared(NamedTuple):
    """One output of an op, the true value, and the allowed error."""

    name: str
    actual: Tensor
    wanted: Tensor
    limit: Tensor | float

    def share(self) -> float:
        """The largest error as a fraction of the allowed error; NaN if the output is NaN."""
        error = (self.actual.double() - self.wanted.double()).abs()
        limit = torch.as_tensor(self.limit, dtype=torch.float64).expand_as(error)
        exact = (error == 0.0) & (limit == 0.0)
        return torch.where(exact, 0.0, error / limit).amax().item()


def check(
    mode: str,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    samples: int,
    op: Op = call,
    truncates: bool = False,
    **offsets: int,
) -> None:
    """Check values and gradients of `mode` against the reference; arguments as for `compared`."""
    for one in compared(mode, mu, logvar, noise, samples, op, truncates, **offsets):
        assert_within(*one)


def compared(
    mode: str,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    samples: int,
    op: Op = call,
    truncates: bool = False,
    **offsets: int,
) -> list[Compared]:
    """Values and gradients of `mode`, with those of the reference.

    `truncates`: bfloat16 is stored by truncation (Triton's interpreter), which errs by up to a
    whole unit in the last place instead of half a unit.
    """
    upstream = upstream_of(mu, samples)
    eps = reference.normal(noise, samples, *mu.shape, **offsets)
    actual = measured(mode, mu, logvar, noise, samples, upstream, op, **offsets)
    wanted = expected(mode, mu, logvar, eps, upstream)
    limits = bounds(mode, mu, logvar, eps, upstream)
    found = []
    for name in Numbers._fields:
        value, want, limit = (getattr(n, name) for n in (actual, wanted, limits))
        if want is None:
            assert value is None
            continue
        assert value.dtype == (torch.float32 if name == "kl" else mu.dtype), name
        if name != "kl" and mu.dtype in ROUNDING:
            twice = 2.0 if truncates and mu.dtype == torch.bfloat16 else 1.0
            limit = limit + twice * ROUNDING[mu.dtype] * (want.abs() + limit) + SUBNORMAL[mu.dtype]
        found.append(Compared(f"{mode} {name}", value, want, limit))
    return found


def small_kls(columns: int = 20) -> tuple[Tensor, Tensor]:
    """Rows with a KL from 1e-8 to 10: with both inputs small, and with mu = 0."""
    generator = torch.Generator().manual_seed(0)
    kls = torch.logspace(-8, 1, 37, dtype=torch.float64)[:, None]
    mu, logvar = torch.randn((2, len(kls), columns), generator=generator, dtype=torch.float64)
    # KL ≈ ½ Σ (mu² + logvar²/2) for small inputs.
    both = (kls / (0.5 * (mu**2 + 0.5 * logvar**2).sum(1, keepdim=True))).sqrt()
    alone = (kls / (0.25 * logvar**2).sum(1, keepdim=True)).sqrt()
    mus = torch.cat((mu * both, torch.zeros_like(mu)))
    logvars = torch.cat((logvar * both, logvar * alone))
    return mus.float().requires_grad_(), logvars.float().requires_grad_()
