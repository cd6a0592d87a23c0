"""Cases of the Bernoulli likelihood: calls to compare, and the call to time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import reference
from ..error_bounds import ROUNDING, Check, Rules, worst
from ..testing import DTYPES, VALUES_SHAPE, Arguments, Case, Function, Shape, Tensors, Timed
from . import bernoulli_log_prob

OPS = {
    "bernoulli_log_prob/uint8": torch.uint8,
    "bernoulli_log_prob/float32": torch.float32,
}
SHAPES = ((1, 1, 1), (9, 7, 19), (1, 129, 784), (3, 7, 784))  # S, B, P
LARGE = (8, 256, 784)
LEAVES = ("logits", "x")
RULES = Rules()


def cases() -> Iterator[Case]:
    for op in OPS:
        for dtype in DTYPES:
            for shape in SHAPES:
                yield Case(op, shape, dtype)
            yield Case(op, VALUES_SHAPE, dtype, "wide")


def large_cases() -> Iterator[Case]:
    return (Case(op, LARGE, dtype) for op in OPS for dtype in DTYPES)


def inputs(case: Case) -> Arguments:
    _, rows, columns = case.shape
    generator = torch.Generator().manual_seed(7)
    scale = 30.0 if case.values == "wide" else 3.0
    x = (torch.randn((rows, columns), generator=generator) > 0).to(OPS[case.op])
    if x.is_floating_point():
        x = torch.rand(x.shape, generator=generator)
    logits = scale * torch.randn(case.shape, generator=generator)
    return {"logits": logits.to(case.dtype), "x": x}


def call(case: Case, arguments: Arguments) -> Tensors:
    return {"log_prob": bernoulli_log_prob(**arguments)}


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    return {"log_prob": reference.bernoulli_log_prob(**arguments)}


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    return {"log_prob": textbook_log_prob(**arguments)}


def textbook_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """logits (S, B, P), x (B, P) → log p(x|z) (S, B), with PyTorch's own loss function."""
    target = x.to(logits.dtype).expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(2)


# Rows that are checked at the start and at the end of a batch, as for the latent op. A row has 784
# pixels and up to eight samples.
IMAGES_CHECKED = 64


@dataclass(frozen=True)
class LikelihoodCase:
    """Inputs of the likelihood op and the upstream gradient, all on one device."""

    logits: Tensor  # (S, B, P)
    x: Tensor  # (B, P) uint8, 0 and 1
    grad: Tensor  # (S, B)

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """log p(x|z) (S, B), then the gradient of the logits (S, B, P)."""
        out = forward(self.logits, self.x)
        if not backward:
            return (out,)
        return out, *torch.autograd.grad(out, self.logits, self.grad.to(out.dtype))

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare the first and last 64 rows with the reference.

        A pixel's term x·l − softplus(l) may err by `ROUNDING` times the sizes of its two parts. The
        dtype is that of the logits, but float32 for our op, which computes and returns float32. A
        float32 sum of P terms in blocks adds an error of less than √P roundings of 2⁻²⁴. A gradient
        g·(x − σ(l)) is rounded four times: σ, the difference, the product and the stored result.
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


def timed_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> LikelihoodCase:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator)).to(device, dtype)
    x = torch.randint(2, shape[1:], generator=generator, dtype=torch.uint8)
    grad = torch.randn(shape[:2], generator=generator)
    return LikelihoodCase(logits.requires_grad_(), x.to(device), grad.to(device))


def bernoulli_log_prob_floor(shape: Shape, itemsize: int, backward: bool) -> int:
    """Bytes of `bernoulli_log_prob` with uint8 targets, which are read once for all S samples.

    Forward reads logits and targets, and writes a float32 sum for each sample and row. Backward
    reads logits, targets and the gradients of the sums, and writes the gradient of the logits. With
    float32, that is 4S + 1 and 8S + 1 bytes per pixel, plus 4S per row in each direction.
    """
    samples, rows, pixels = shape
    sums = 4 * samples * rows
    forward = (itemsize * samples + 1) * rows * pixels + sums
    return forward + ((2 * itemsize * samples + 1) * rows * pixels + sums if backward else 0)


TIMED = Timed(
    title="likelihood op",
    case=timed_case,
    ours=lambda case: bernoulli_log_prob,
    textbook=textbook_log_prob,
    # The batch of a training step.
    launch_bound=((1, 128, 784),),
    # The samples of an evaluation: 25 and 392 MiB of float32 logits.
    large={"cpu": ((8, 1024, 784),), "cuda": ((8, 16384, 784),)},
    least_bytes=bernoulli_log_prob_floor,
)
