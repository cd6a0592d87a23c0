"""Of `vaez-fast compare`, the ops with matrix products: the last layer and importance sampling.

What their operands are rounded to is part of the call, and how it is rounded a matter of where it
runs. So the textbook rounds as the backend does that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from vaez_kernels import importance_estimates, linear_bernoulli_log_prob, reference

from .comparison_case import (
    DTYPES,
    KEY,
    Case,
    Tensors,
    in_float64,
    leaves_of,
    on_device,
    with_gradients,
)

# The dtype of the targets, and what float32 is multiplied in.
LINEAR_OPS = {
    "linear_bernoulli_log_prob/uint8": (torch.uint8, "float32"),
    "linear_bernoulli_log_prob/float32": (torch.float32, "float32"),
    "linear_bernoulli_log_prob/bfloat16-products": (torch.uint8, "bfloat16"),
}
IMPORTANCE_OPS = {
    "importance_log_likelihood/float32": "float32",
    "importance_log_likelihood/tf32": "tf32",
    "importance_log_likelihood/bfloat16": "bfloat16",
}
PRODUCT_OPS = (*LINEAR_OPS, *IMPORTANCE_OPS)
LINEAR_SHAPES = ((1, 1, 1, 1), (9, 7, 19, 20), (3, 5, 200, 784))  # S, B, H, P
# S, B, and a decoder's widths. The first is called; the second, altosaar's, is taken apart.
CALLED_SHAPE, DECODER_SHAPE = (40, 3, 5, 19, 23, 84), (9, 2, 128, 256, 256, 784)
LARGE_LINEAR, LARGE_DECODER = (8, 129, 256, 784), (100, 64, 128, 256, 256, 784)


def product_cases() -> Iterator[Case]:
    for op in LINEAR_OPS:
        for dtype in _dtypes(op):
            for shape in LINEAR_SHAPES:
                yield Case(op, shape, dtype)
    for op in IMPORTANCE_OPS:
        yield Case(op, CALLED_SHAPE, torch.float32, called=True)
        yield Case(op, DECODER_SHAPE, torch.float32)


def large_product_cases() -> Iterator[Case]:
    for op in LINEAR_OPS:
        for dtype in _dtypes(op):
            yield Case(op, LARGE_LINEAR, dtype)
    for op in IMPORTANCE_OPS:
        yield Case(op, LARGE_DECODER, torch.float32)


def _dtypes(op: str) -> tuple[torch.dtype, ...]:
    # Other dtypes are multiplied as they are.
    return DTYPES if LINEAR_OPS[op][1] == "float32" else (torch.float32,)


def precision_of(case: Case) -> str:
    """What float32 operands are multiplied in."""
    return LINEAR_OPS[case.op][1] if case.op in LINEAR_OPS else IMPORTANCE_OPS[case.op]


def operands_of(case: Case, backend: str) -> str:
    """What float32 operands are made before they are multiplied; empty where they stay float32.

    Where bfloat16 is wanted, a GPU and PyTorch round to nearest and the interpreter cuts. TF32 is
    the kernels' own.
    """
    precision = precision_of(case) if case.op in PRODUCT_OPS else "float32"
    if precision == "bfloat16":
        return "bfloat16, cut" if backend == "interpreter" else "bfloat16"
    return "tf32" if precision == "tf32" and backend != "fallback" else ""


def inputs(case: Case) -> Tensors:
    """The op's tensors on the CPU, by argument name, and a decoder's layers ("weight 0")."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, pixels = case.shape[1], case.shape[-1]
    x = (draw(rows, pixels) > 0).to(torch.uint8)
    if case.op in LINEAR_OPS:
        if LINEAR_OPS[case.op][0].is_floating_point:
            x = torch.rand(x.shape, generator=generator)
        samples, _, width, _ = case.shape
        floats = {
            "hidden": draw(samples, rows, width),
            "weight": 2.0 / math.sqrt(width) * draw(pixels, width),
            "bias": draw(pixels),
        }
        return {name: value.to(case.dtype) for name, value in floats.items()} | {"x": x}
    widths = case.shape[2:]
    tensors = {"mu": draw(rows, widths[0]), "logvar": draw(rows, widths[0]) - 1.0, "x": x}
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        tensors[f"weight {i}"] = 1.5 / math.sqrt(fan_in) * draw(fan_out, fan_in)
        tensors[f"bias {i}"] = draw(fan_out)
    return tensors


def _layers(tensors: Tensors) -> list[tuple[Tensor, Tensor]]:
    count = sum(name.startswith("weight ") for name in tensors)
    return [(tensors[f"weight {i}"], tensors[f"bias {i}"]) for i in range(count)]


def _decoder(tensors: Tensors) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in _layers(tensors):
        module = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        module.weight = nn.Parameter(weight, requires_grad=False)
        module.bias = nn.Parameter(bias, requires_grad=False)
        modules += [module, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


# Three ways to compute a case, as in comparison.py.


def ours(case: Case, device: torch.device) -> Tensors:
    tensors = on_device(device, inputs(case))
    precision = precision_of(case)
    if case.op in LINEAR_OPS:
        leaves = leaves_of(tensors)
        log_prob = linear_bernoulli_log_prob(**(tensors | leaves), precision=precision)
        return with_gradients(case, {"log_prob": log_prob}, leaves)
    decoder = _decoder(tensors)
    estimates = importance_estimates(
        (lambda z: decoder(z)) if case.called else decoder,
        tensors["mu"],
        tensors["logvar"],
        tensors["x"],
        KEY.to(device),
        case.shape[0],
        precision,
    )
    return {name: value.cpu() for name, value in estimates._asdict().items()}


def truth(case: Case, rounded: bool = False) -> Tensors:
    tensors = in_float64(inputs(case))
    if case.op in LINEAR_OPS:
        leaves = leaves_of(tensors)
        logits = linear(leaves["hidden"], leaves["weight"], leaves["bias"])
        log_prob = reference.bernoulli_log_prob(logits, leaves.get("x", tensors["x"]))
        return with_gradients(case, {"log_prob": log_prob}, leaves, rounded)
    eps = reference.normal(KEY, case.shape[0], *tensors["mu"].shape)
    log_weight, log_prob = reference.importance_log_weights(
        _decoder(tensors), tensors["mu"], tensors["logvar"], tensors["x"], eps
    )
    return _estimates(log_weight, log_prob)


def textbook(case: Case, operands: str = "") -> Tensors:
    """`operands`: what they are made before they are multiplied."""
    tensors = inputs(case)
    if case.op in LINEAR_OPS:
        leaves = leaves_of(tensors)
        logits = _layer(leaves["hidden"], leaves["weight"], leaves["bias"], operands)
        log_prob = bernoulli_log_prob(logits, leaves.get("x", tensors["x"]))
        return with_gradients(case, {"log_prob": log_prob}, leaves)
    mu, logvar = tensors["mu"], tensors["logvar"]
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * reference.normal(KEY, case.shape[0], *mu.shape).float()
    *hidden, last = _layers(tensors)
    a = z
    for weight, bias in hidden:
        a = torch.relu(_layer(a, weight, bias, operands))
    log_prob = bernoulli_log_prob(_layer(a, *last, operands), tensors["x"])
    q = torch.distributions.Normal(mu, sigma, validate_args=False)
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return _estimates(log_prob + (p.log_prob(z) - q.log_prob(z)).sum(2), log_prob)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """The textbook's, in the dtype of logits (S, B, P); x (B, P) → (S, B)."""
    targets = x.to(logits.dtype).expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(2)


def _estimates(log_weight: Tensor, log_prob: Tensor) -> Tensors:
    # (S, B) → (B,)
    log_likelihood = torch.logsumexp(log_weight, 0) - math.log(len(log_weight))
    return {"log_likelihood": log_likelihood, "log_prob": log_prob.mean(0)}


def _layer(x: Tensor, weight: Tensor, bias: Tensor, operands: str) -> Tensor:
    # As mixed precision does it: operands and product rounded, the bias added in its own dtype.
    def rounded(values: Tensor) -> Tensor:
        if operands in Lowered.BITS:
            lowered: Tensor = Lowered.apply(values, operands)
            return lowered
        return values.bfloat16() if operands == "bfloat16" else values

    return rounded(linear(rounded(x), rounded(weight))).to(bias.dtype) + bias


class Lowered(torch.autograd.Function):
    """float32 without its lowest bits; so are gradients that flow back through it."""

    # How many bits go, and what is added before: half of what they are worth, or nothing.
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
