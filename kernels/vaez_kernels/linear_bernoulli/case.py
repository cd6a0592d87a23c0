"""Cases of the last layer: calls to compare, and the call to time.

A call says what the operands of a product are rounded to, and the backend determines how they are
rounded. So the textbook code rounds in the same way as the backend it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import reference
from ..bernoulli.case import textbook_log_prob
from ..error_bounds import ROUNDING, Check, Rules, worst
from ..testing import DTYPES, Arguments, Case, Function, Shape, Tensors, Timed
from . import linear_bernoulli_log_prob

# The dtype of the targets, and the precision of float32 products.
OPS = {
    "linear_bernoulli_log_prob/uint8": (torch.uint8, "float32"),
    "linear_bernoulli_log_prob/float32": (torch.float32, "float32"),
    "linear_bernoulli_log_prob/bfloat16-products": (torch.uint8, "bfloat16"),
}
SHAPES = ((1, 1, 1, 1), (9, 7, 19, 20), (3, 5, 200, 784))  # S, B, H, P
LARGE = (8, 129, 256, 784)


def operands_of(precision: str, backend: str) -> str:
    """What float32 operands are rounded to before they are multiplied; empty for float32.

    To bfloat16, a GPU and PyTorch round to nearest, and the interpreter truncates. Only the kernels
    use TF32.
    """
    if precision == "bfloat16":
        return "bfloat16, cut" if backend == "interpreter" else "bfloat16"
    return "tf32" if precision == "tf32" and backend != "fallback" else ""


LEAVES = ("hidden", "weight", "bias", "x")
RULES = Rules(products=True, operands=lambda case, backend: operands_of(OPS[case.op][1], backend))


def _dtypes(op: str) -> tuple[torch.dtype, ...]:
    # Operands of other dtypes are multiplied in their own dtype.
    return DTYPES if OPS[op][1] == "float32" else (torch.float32,)


def cases() -> Iterator[Case]:
    return (Case(op, shape, dtype) for op in OPS for dtype in _dtypes(op) for shape in SHAPES)


def large_cases() -> Iterator[Case]:
    return (Case(op, LARGE, dtype) for op in OPS for dtype in _dtypes(op))


def inputs(case: Case) -> Arguments:
    samples, rows, width, pixels = case.shape
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = (draw(rows, pixels) > 0).to(torch.uint8)
    if OPS[case.op][0].is_floating_point:
        x = torch.rand(x.shape, generator=generator)
    floats = {
        "hidden": draw(samples, rows, width),
        "weight": 2.0 / math.sqrt(width) * draw(pixels, width),
        "bias": draw(pixels),
    }
    of_dtype = {name: value.to(case.dtype) for name, value in floats.items()}
    return of_dtype | {"x": x, "precision": OPS[case.op][1]}


def call(case: Case, arguments: Arguments) -> Tensors:
    return {"log_prob": linear_bernoulli_log_prob(**arguments)}


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    hidden, weight, bias, x, _ = arguments.values()
    return {"log_prob": reference.bernoulli_log_prob(linear(hidden, weight, bias), x)}


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    hidden, weight, bias, x, _ = arguments.values()
    return {"log_prob": textbook_log_prob(textbook_layer(hidden, weight, bias, operands), x)}


def textbook_layer(x: Tensor, weight: Tensor, bias: Tensor, operands: str) -> Tensor:
    # As in mixed precision: operands and product are rounded, the bias is added in its own dtype.
    def rounded(values: Tensor) -> Tensor:
        if operands in Lowered.BITS:
            lowered: Tensor = Lowered.apply(values, operands)
            return lowered
        return values.bfloat16() if operands == "bfloat16" else values

    return rounded(linear(rounded(x), rounded(weight))).to(bias.dtype) + bias


class Lowered(torch.autograd.Function):
    """float32 without its lowest bits; gradients that flow back are rounded in the same way."""

    # How many bits are cleared, and what is added before: half of their range (which rounds to
    # nearest) or nothing (which truncates).
    BITS: ClassVar = {"bfloat16, cut": (16, 0), "tf32": (13, 1 << 12)}

    @staticmethod
    def forward(ctx: Any, values: Tensor, operands: str) -> Tensor:
        ctx.operands = operands
        return _lowered(values, operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _lowered(grads[0], ctx.operands), None


def _lowered(values: Tensor, operands: str) -> Tensor:
    bits, half = Lowered.BITS[operands]
    return (values.contiguous().view(torch.int32) + half & -(1 << bits)).view(torch.float32)


@dataclass(frozen=True)
class LastLayerCase:
    """Inputs of the fused last layer and the upstream gradient, all on one device."""

    hidden: Tensor  # (S, B, H)
    weight: Tensor  # (P, H)
    bias: Tensor  # (P,)
    x: Tensor  # (B, P) uint8
    grad: Tensor  # (S, B)

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """log p(x|z) (S, B), then the gradients of hidden, weight and bias."""
        leaves = (self.hidden, self.weight, self.bias)
        out = forward(*leaves, self.x)
        if not backward:
            return (out,)
        return out, *torch.autograd.grad(out, leaves, self.grad.to(out.dtype))

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare with the reference.

        A logit may err by `ROUNDING` times the sizes of its terms, |h||w| + |b|. The log-likelihood
        may err by the sum of that over pixels and, as in `bernoulli`, by `ROUNDING` times the sizes
        of its own terms. A residual g·(x − sigmoid(l)) has four roundings and a quarter of the
        logit's error. Gradients are sums of products of residuals, which are rounded once more.
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


def timed_textbook(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return textbook_log_prob((hidden @ weight.t()).float() + bias, x)


def timed_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> LastLayerCase:
    samples, images, width, pixels = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    hidden = draw(samples, images, width).relu().to(device, dtype).requires_grad_()
    weight = (3 / width**0.5 * draw(pixels, width)).to(device, dtype).requires_grad_()
    bias = draw(pixels).to(device).requires_grad_()
    x = torch.randint(2, (images, pixels), generator=generator, dtype=torch.uint8).to(device)
    return LastLayerCase(hidden, weight, bias, x, draw(samples, images).to(device))


def linear_bernoulli_log_prob_floor(shape: Shape, itemsize: int, backward: bool) -> int:
    """Bytes of `linear_bernoulli_log_prob` with uint8 targets and a float32 bias, without logits.

    Forward reads hidden units, weight, bias and targets, and writes a float32 sum for each sample
    and image. Backward reads the same and the gradients of the sums, and writes the gradients of
    hidden units, weight and bias.
    """
    samples, images, width, pixels = shape
    rows = samples * images
    layer = itemsize * (rows * width + pixels * width) + 4 * pixels
    forward = layer + images * pixels + 4 * rows
    return forward + (forward + layer if backward else 0)


TIMED = Timed(
    title="last layer and likelihood",
    case=timed_case,
    ours=lambda case: linear_bernoulli_log_prob,
    textbook=timed_textbook,
    # A training step of altosaar's model.
    launch_bound=((1, 128, 256, 784),),
    # A step of Burda's IWAE-50, and a size that fills a GPU: 19 and 196 MiB of float32 logits.
    large={"cpu": ((50, 128, 200, 784),), "cuda": ((64, 1024, 256, 784),)},
    least_bytes=linear_bernoulli_log_prob_floor,
    tiled=True,
    products=True,
)
