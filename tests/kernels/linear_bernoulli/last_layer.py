"""Inputs and error bounds for the tests of the fused last layer.

Bounds, with u = 2⁻²⁴ and r = 2⁻⁸ (half a unit in the last place of bfloat16, relative). A logit's
products are summed in float32 in some order, which errs by H·u times the sum of their sizes, and by
one more u for the bias. Operands rounded to bfloat16 add 2r times that sum. On a CPU, the result of
a bfloat16 product is bfloat16, which adds r. An operand rounded to TF32 has ten bits behind the
point, so half a unit is 2⁻¹¹. The log-likelihood's slope in a logit is at most 1. Its own error is
that of tests/kernels/bernoulli/pixels.py, except for 5u per pixel where the logarithm of a product
is computed: two roundings of a factor 1 + t, two of t, and one of the logarithm. A residual g·(x −
sigmoid(l)) errs by g times (6u + a quarter of the logit's error), plus its own rounding if products
are not in float32. Gradients are again sums of products. There are thousands of independent
roundings to bfloat16, so their sum may reach six of its standard deviations, or the sum of all of
them in one direction if that is less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.kernels.bernoulli.pixels import GRADIENT_ERROR, UNIT
from tests.kernels.helpers import ROUNDING, SUBNORMAL, Compared, assert_within
from vaez_kernels import linear_bernoulli_log_prob, reference

Op = Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor]

LAYOUTS = ("contiguous", "one-sample", "images-first", "units-first", "part", "transposed weight")
BFLOAT16 = ROUNDING[torch.bfloat16]
TF32 = 2.0**-11


class Inputs(NamedTuple):
    hidden: Tensor  # (S, B, H)
    weight: Tensor  # (P, H)
    bias: Tensor  # (P,)
    x: Tensor  # (B, P)


class Numbers(NamedTuple):
    log_prob: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    grad_x: Tensor | None  # None if x is not floating-point


def inputs(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    targets: torch.dtype = torch.uint8,
    layout: str = "contiguous",
) -> Inputs:
    """Inputs for shape (S, B, H, P) with logits of about ±3.

    Floating-point tensors require gradients.
    """
    samples, images, width, pixels = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    if layout == "one-sample":
        hidden = draw(1, images, width).expand(samples, -1, -1)
    elif layout == "images-first":
        hidden = draw(images, samples, width).transpose(0, 1)
    elif layout == "units-first":
        hidden = draw(width, images, samples).permute(2, 1, 0)
    elif layout == "part":
        hidden = draw(samples + 1, images + 2, width + 3)[1:, 2:, 3:]
    else:
        hidden = draw(samples, images, width)
    weight = (2 / width**0.5) * draw(pixels, width)
    if layout == "transposed weight":
        weight = weight.t().contiguous().t()
    bias = torch.randn(pixels, generator=generator)
    u = torch.rand(images, pixels, generator=generator, dtype=torch.float64)
    x = u.to(targets) if targets.is_floating_point else (u < 0.3).to(targets)
    x.requires_grad_(targets.is_floating_point)
    h, w, b = (t.detach().requires_grad_() for t in (hidden, weight.to(dtype), bias))
    return Inputs(h, w, b, x)


def upstream_of(given: Inputs) -> Tensor:
    """A gradient (S, B) that is neither of unit size nor contiguous."""
    samples, images, _ = given.hidden.shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2 * images, samples), generator=generator)[::2].t()


def measured(
    given: Inputs, precision: str = "float32", op: Op = linear_bernoulli_log_prob
) -> Numbers:
    log_prob = op(*given, precision)
    wanted = [t for t in given if t.requires_grad]
    grads = torch.autograd.grad(log_prob, wanted, upstream_of(given).to(log_prob.dtype))
    padded: list[Tensor | None] = [*grads, None]
    hidden, weight, bias, x = padded[:4]
    assert hidden is not None
    assert weight is not None
    assert bias is not None
    return Numbers(log_prob.detach(), hidden, weight, bias, x)


def _textbook(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, _: str) -> Tensor:
    return reference.bernoulli_log_prob(hidden @ weight.t() + bias, x)


def expected(given: Inputs) -> Numbers:
    """The reference, differentiated by autograd in float64."""
    wide = (t.detach().double().requires_grad_(t.requires_grad) for t in given)
    return measured(Inputs(*wide), op=_textbook)


def bounds(
    given: Inputs,
    precision: str = "float32",
    tensor_cores: bool = False,
    truncates: bool = False,
) -> Numbers:
    """The largest allowed error before rounding to the output's dtype; the module derives it.

    `tensor_cores`: "tf32" is TF32, not float32 as on a CPU. `truncates`: as for `check`.
    """
    hidden, weight, bias, x = (t.detach().double() for t in given)
    samples, images, width = hidden.shape
    pixels = len(weight)
    float32 = given.hidden.dtype == torch.float32
    rounds = precision == "bfloat16" and float32
    of_tf32 = TF32 if precision == "tf32" and tensor_cores and float32 else 0.0
    half = rounds or given.hidden.dtype == torch.bfloat16
    of_operands = 2 * BFLOAT16 if rounds else 2 * of_tf32
    sizes = hidden.abs() @ weight.abs().t()
    logits = hidden @ weight.t() + bias
    of_logits = (width * UNIT + of_operands + half * BFLOAT16) * sizes
    of_logits = of_logits + UNIT * (sizes + bias.abs())
    g = upstream_of(given).double().abs()[..., None]

    parts = x * logits.abs() + logits.clamp(min=0.0) + torch.log1p(torch.exp(-logits.abs()))

    def summed(errors: Tensor, factors: Tensor) -> Tensor:  # (…, n) and (n, m) → (…, m)
        worst = errors @ factors
        if truncates or not half:
            return worst
        return torch.minimum(worst, 6.0 * (errors.square() @ factors.square()).sqrt())

    of_all = summed(of_logits, logits.new_ones(pixels, 1))[..., 0]
    value = (pixels / 8 + 8) * UNIT * parts.sum(2) + 5 * UNIT * pixels + of_all

    residual = g * (x - torch.sigmoid(logits)).abs()
    of_residual = g * (GRADIENT_ERROR + 0.25 * of_logits)
    rounding = BFLOAT16 if half else ROUNDING.get(given.hidden.dtype, of_tf32)
    of_residual = of_residual + rounding * residual + SUBNORMAL.get(given.hidden.dtype, 0.0)
    flat, rows = hidden.abs().flatten(0, 1), samples * images
    r, of_r = residual.flatten(0, 1), of_residual.flatten(0, 1)
    of_product = of_operands + half * BFLOAT16
    grad_hidden = summed(of_residual, weight.abs()) + pixels * UNIT * (residual @ weight.abs())
    grad_hidden = grad_hidden + summed(of_product * residual, weight.abs())
    grad_weight = summed(of_r.t(), flat) + rows * UNIT * (r.t() @ flat)
    grad_weight = grad_weight + summed(of_product * r.t(), flat)
    grad_bias = of_r.sum(0) + rows * UNIT * r.sum(0)
    grad_x = None
    if given.x.requires_grad:
        grad_x = (samples + width + 2) * UNIT * (g * (sizes + bias.abs())).sum(0)
    return Numbers(value, grad_hidden, grad_weight, grad_bias, grad_x)


def check(
    given: Inputs,
    precision: str = "float32",
    op: Op = linear_bernoulli_log_prob,
    truncates: bool = False,
    tensor_cores: bool = False,
) -> None:
    """Check value and gradients against the reference; arguments as for `compared`."""
    for one in compared(given, precision, op, truncates, tensor_cores):
        assert_within(*one)


def compared(
    given: Inputs,
    precision: str = "float32",
    op: Op = linear_bernoulli_log_prob,
    truncates: bool = False,
    tensor_cores: bool = False,
) -> list[Compared]:
    """Value and gradients, with those of the reference.

    `truncates`: float32 is truncated to bfloat16 (Triton's interpreter), which errs by up to a
    whole unit in the last place instead of half a unit. `tensor_cores`: as for `bounds`.
    """
    actual, wanted, limits = (
        measured(given, precision, op),
        expected(given),
        bounds(given, precision, tensor_cores, truncates),
    )
    dtypes = (torch.float32, *(t.dtype for t in given))
    found = []
    for name, dtype in zip(Numbers._fields, dtypes, strict=True):
        value, want, limit = (getattr(n, name) for n in (actual, wanted, limits))
        if want is None:
            assert value is None
            continue
        assert value.dtype == dtype, name
        if dtype in ROUNDING:
            limit = limit + ROUNDING[dtype] * (want.abs() + limit) + SUBNORMAL[dtype]
        half = torch.bfloat16 in (given.hidden.dtype, dtype) or precision == "bfloat16"
        found.append(Compared(name, value, want, 2.0 * limit if truncates and half else limit))
    return found
