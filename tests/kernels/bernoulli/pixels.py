"""Inputs in awkward layouts and error bounds for the tests of the Bernoulli likelihood.

Bounds, with u = 2⁻²⁴ (half a unit in the last place of float32, relative). The error of a pixel's
term x·l − max(l, 0) − ln(1 + e^−|l|) has three parts. The polynomial for the logarithm errs by
1.1e-7. The error of e^−|l| adds at most 2u; its relative error is (2 + 1.25·|l|)u, because it is a
rounded power of 2 whose exponent is |l| times a rounded log₂e. The product and each subtraction err
by u. A row is summed in at least eight lanes, so a term takes part in at most P/8 + 8 operations.
Each of them errs by u times a partial sum, which is at most the sum of the terms' parts. The
logits' gradient g·(x − sigmoid(l)) errs by u·|g| each for rounding x (from float64), the difference
and the product, and by 3u·|g| for the sigmoid. A target's gradient Σ g·l errs by u times Σ|g·l| for
the product and for each of S additions. bfloat16 and float16 results are rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.kernels.helpers import ROUNDING, SUBNORMAL, Compared, assert_within
from vaez_kernels import bernoulli_log_prob, reference

Op = Callable[[Tensor, Tensor], Tensor]

FLOAT_TARGETS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TARGETS = (torch.uint8, torch.bool, *FLOAT_TARGETS)
LAYOUTS = ("contiguous", "one-sample", "one-row", "rows-first", "pixels-first", "step-2", "part")

UNIT = 2.0**-24
PIXEL = 1.1e-7 + 2 * UNIT
GRADIENT_ERROR = 6 * UNIT  # of the logits' gradient, relative to the upstream gradient


class Numbers(NamedTuple):
    log_prob: Tensor
    grad_logits: Tensor
    grad_x: Tensor | None  # None if x is not floating-point


def pixels(
    samples: int,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    targets: torch.dtype = torch.uint8,
    layout: str = "contiguous",
) -> tuple[Tensor, Tensor]:
    """logits (S, B, P) and x (B, P) in the given memory layout; few logits are beyond ±12.

    Both require gradients, x only if it is floating-point.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (4.0 * torch.randn(shape, generator=generator)).to(dtype)

    def target(*shape: int) -> Tensor:
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        return u.to(targets) if targets.is_floating_point else (u < 0.3).to(targets)

    if layout == "contiguous":
        logits, x = draw(samples, rows, columns), target(rows, columns)
    elif layout == "one-sample":
        logits = draw(1, rows, columns).expand(samples, -1, -1)
        x = target(rows, 1).expand(-1, columns)
    elif layout == "one-row":
        logits = draw(samples, 1, columns).expand(-1, rows, -1)
        x = target(1, columns).expand(rows, -1)
    elif layout == "rows-first":
        logits, x = draw(rows, samples, columns).transpose(0, 1), target(rows, columns)
    elif layout == "pixels-first":
        logits, x = draw(columns, rows, samples).permute(2, 1, 0), target(columns, rows).t()
    elif layout == "step-2":
        logits, x = draw(samples, rows, 2 * columns)[..., ::2], target(rows, 2 * columns)[:, 1::2]
    elif layout == "part":
        logits = draw(samples + 1, rows + 1, columns + 3)[1:, 1:, 3:]
        x = target(rows, columns + 5)[:, 5:]
    else:
        raise ValueError(layout)
    return logits.detach().requires_grad_(), x.detach().requires_grad_(targets.is_floating_point)


def upstream_of(logits: Tensor) -> Tensor:
    """A gradient (S, B) that is neither of unit size nor contiguous."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2 * logits.shape[1], logits.shape[0]), generator=generator)[::2].t()


def measured(logits: Tensor, x: Tensor, op: Op = bernoulli_log_prob) -> Numbers:
    inputs = [tensor for tensor in (logits, x) if tensor.requires_grad]
    log_prob = op(logits, x)
    upstream = upstream_of(logits).to(log_prob.dtype)
    grads = [*torch.autograd.grad(log_prob, inputs, upstream), None]
    grad_logits, grad_x, *_ = grads
    assert grad_logits is not None
    return Numbers(log_prob.detach(), grad_logits, grad_x)


def expected(logits: Tensor, x: Tensor) -> Numbers:
    """The reference, differentiated by autograd in float64."""
    wide = logits.detach().double().requires_grad_()
    targets = x.detach().double().requires_grad_(x.requires_grad)
    return measured(wide, targets, reference.bernoulli_log_prob)


def bounds(logits: Tensor, x: Tensor) -> Numbers:
    """The largest allowed error before rounding to the output's dtype; the module derives it."""
    wide, targets = logits.detach().double(), x.detach().double()
    samples, _, columns = wide.shape
    g = upstream_of(logits).double().abs()[..., None]
    size = wide.abs()
    parts = (targets * size + wide.clamp(min=0.0) + torch.log1p(torch.exp(-size))).sum(2)
    value = (columns / 8 + 8) * UNIT * parts + columns * PIXEL
    grad_x = (samples + 1) * UNIT * (g * size).sum(0) if x.requires_grad else None
    return Numbers(value, (GRADIENT_ERROR * g).expand_as(wide), grad_x)


def check(logits: Tensor, x: Tensor, op: Op = bernoulli_log_prob, truncates: bool = False) -> None:
    """Check value and gradients against the reference; arguments as for `compared`."""
    for one in compared(logits, x, op, truncates):
        assert_within(*one)


def compared(
    logits: Tensor, x: Tensor, op: Op = bernoulli_log_prob, truncates: bool = False
) -> list[Compared]:
    """Value and gradients, with those of the reference.

    `truncates`: bfloat16 is stored by truncation (Triton's interpreter), which errs by up to a
    whole unit in the last place instead of half a unit.
    """
    actual, wanted, limits = measured(logits, x, op), expected(logits, x), bounds(logits, x)
    dtypes = (torch.float32, logits.dtype, x.dtype)
    found = []
    for name, dtype in zip(Numbers._fields, dtypes, strict=True):
        value, want, limit = (getattr(n, name) for n in (actual, wanted, limits))
        if want is None:
            assert value is None
            continue
        assert value.dtype == dtype, name
        if dtype in ROUNDING:
            twice = 2.0 if truncates and dtype == torch.bfloat16 else 1.0
            limit = limit + twice * ROUNDING[dtype] * (want.abs() + limit) + SUBNORMAL[dtype]
        found.append(Compared(name, value, want, limit))
    return found
