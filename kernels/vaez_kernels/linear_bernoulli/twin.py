"""The last layer in PyTorch, a tile of rows at a time, so that logits stay in a cache.

float64 inputs are computed in float64. For others, products are in float32 or bfloat16, and the
rest is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..affine import affine
from ..backend import without_autocast
from ..bernoulli.kernel import readable
from ..bernoulli.twin import forward_formula as bernoulli_formula
from ..compiler import (
    compiled_once,
    compiled_without_guards,
    example,
    has_cpu_compiler,
    sizes_unlike,
)
from ..define import Tensors

# Factors 1 + e^−|l| ≤ 2 that are multiplied before one logarithm: 2⁶⁴ does not overflow.
FACTORS = 64
# Logits per tile. On a CPU, the logits of 1,024 images fit in the cache.
TILE = {"cpu": 784 << 10, "cuda": 784 << 16}
# From this number of logits on, compiled tiles are faster than eager ones.
COMPILE_FROM = 1 << 16


class Arguments(NamedTuple):
    hidden: Tensor  # (S, B, H)
    weight: Tensor  # (P, H)
    bias: Tensor  # (P,)
    x: Tensor  # (B, P)
    precision: str


def bernoulli_in_products(logits: Tensor, x: Tensor) -> Tensor:
    """The likelihood with one logarithm for up to 64 pixels, of the product of their 1 + e^−|l|.

    logits (S, B, P) float32, x (B, P) → (S, B). A compiled loop over float32 logits in the cache
    takes 0.27 ns per pixel on two cores, instead of 0.45 with a polynomial for each logarithm. A
    pixel's ln(1 + e^−|l|) has an absolute error of 1.2e-7 nats, so smaller values lose all digits.
    """
    pixels = logits.shape[-1]
    # Lanes are neighbouring pixels, as in vector registers; each lane multiplies its own factors.
    lanes = 16 * -(-pixels // (16 * FACTORS))
    factors = pixels // lanes
    if factors == 0 or logits.dtype == torch.float64:
        return bernoulli_formula(logits, x)
    body = factors * lanes
    tiled = logits[..., :body].unflatten(-1, (factors, lanes))
    targets = x[..., :body].unflatten(-1, (factors, lanes)).to(logits.dtype)
    # exp2 instead of exp, because inductor stores an exp that is used more than once in memory and
    # loops twice.
    product = (1.0 + torch.exp2(tiled.abs() * -1.4426950408889634)).prod(-2)
    sums = (targets * tiled - tiled.clamp(min=0.0)).sum(-2)
    out = (sums - product.log()).sum(-1)
    return out if body == pixels else out + bernoulli_formula(logits[..., body:], x[..., body:])


def _tile_logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # (s, b, H), (P, H), (P,) → (s, b, P)
    samples, images, _ = hidden.shape
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = _product(hidden.flatten(0, 1), weight).to(wide) + bias.to(wide)
    return logits.unflatten(0, (samples, images))


def _product(a: Tensor, b: Tensor) -> Tensor:
    # (rows, n), (columns, n) → (rows, columns)
    found = affine(a, b)
    return a @ b.t() if found is None else found


def tile_forward(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_in_products(_tile_logits(hidden, weight, bias), x)


def tile_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    grad: Tensor,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    # → the needed gradients: hidden (s·b, H); weight (P, H) and bias (P,)
    logits = _tile_logits(hidden, weight, bias)
    residual = grad[..., None] * (x.to(logits.dtype) - torch.sigmoid(logits))
    residual = residual.flatten(0, 1)
    operand = residual.to(hidden.dtype)
    of_hidden = (_product(operand, weight.t()),) if need_hidden else ()
    if not need_weight:
        return of_hidden
    of_weight = (operand.t() @ hidden.flatten(0, 1)).to(logits.dtype)
    return *of_hidden, of_weight, residual.sum(0)


def _tiles(
    samples: int, images: int, pixels: int, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    rows = max(1, TILE.get(device.type, TILE["cuda"]) // pixels)
    b = min(images, rows)
    s = max(1, rows // max(1, b))
    for image in range(0, images, b or 1):
        for sample in range(0, samples, s):
            yield slice(sample, sample + s), slice(image, image + b)


def multiplied_in(dtype: torch.dtype, precision: str) -> torch.dtype:
    """The dtype in which the fallback multiplies operands of `dtype`."""
    if dtype == torch.float32 and precision == "bfloat16":
        return torch.bfloat16
    return torch.float32 if dtype == torch.float16 else dtype


@compiled_once
def compiled_tile(
    function: Callable[..., Any],
    needs: tuple[bool, ...],
    dtype: torch.dtype,
    targets: torch.dtype,
    pixels: int,
    width: int,
) -> Any:
    samples, images = sizes_unlike(2, pixels, width)

    def tile(hidden: Tensor, weight: Tensor, *others: Tensor) -> Any:
        for size in weight.shape:  # makes these sizes constant; the number of rows stays variable
            int(size)
        return function(hidden, weight, *others, *needs)

    examples = [
        example(samples, images, width, dtype=dtype),
        example(pixels, width, dtype=dtype),
        example(pixels),
        example(images, pixels, dtype=targets),
    ]
    if needs:
        examples.append(example(samples, images))
    return compiled_without_guards(tile, *examples)


def _runner(
    function: Callable[..., Any],
    hidden: Tensor,
    weight: Tensor,
    x: Tensor,
    needs: tuple[bool, ...] = (),
) -> Callable[..., Any]:
    # the function that computes a tile, compiled if that is faster
    pixels, width = weight.shape
    logits = hidden.shape[0] * hidden.shape[1] * pixels
    worth_it = weight.device.type == "cpu" and logits >= COMPILE_FROM
    if worth_it and weight.dtype != torch.float64 and has_cpu_compiler():
        code = compiled_tile(function, needs, weight.dtype, x.dtype, pixels, width)
        if code is not None:
            return code
    return lambda *tensors: function(*tensors, *needs)


def _operands(a: Arguments) -> Arguments:
    """The arguments in the dtypes in which they are multiplied and added."""
    dtype = multiplied_in(a.hidden.dtype, a.precision)
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = a.weight.detach().to(dtype), a.bias.detach().to(wide)
    return Arguments(
        a.hidden.detach(), weight.contiguous(), bias.contiguous(), readable(a.x), a.precision
    )


def forward(a: Arguments) -> Tensors:
    hidden, weight, bias, x, _ = _operands(a)
    samples, images, _ = hidden.shape
    out = bias.new_empty((samples, images))
    run = _runner(tile_forward, hidden, weight, x)
    for s, b in _tiles(samples, images, len(weight), hidden.device):
        tile = hidden[s, b].to(weight.dtype).contiguous()
        with without_autocast(tile):
            out[s, b] = run(tile, weight, bias, x[b].contiguous())
    return (out,)


def like_the_result(a: Arguments) -> Tensors:
    """An empty tensor of the result's shape, dtype and device."""
    wide = torch.promote_types(a.hidden.dtype, torch.float32)
    return (a.hidden.new_empty(a.hidden.shape[:2], dtype=wide),)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, ...]) -> Tensors:
    (grad,) = grads
    need_hidden, need_weight, need_bias, need_x = needs
    hidden, weight, bias, x, _ = _operands(a)
    samples, images, _ = hidden.shape
    need_weight = need_weight or need_bias
    of_hidden = a.hidden.new_empty(a.hidden.shape) if need_hidden else None
    if need_weight:
        of_weight, of_bias = torch.zeros_like(weight, dtype=bias.dtype), torch.zeros_like(bias)
    if need_hidden or need_weight:
        run = _runner(tile_backward, hidden, weight, x, (need_hidden, need_weight))
        for s, b in _tiles(samples, images, len(weight), hidden.device):
            tile = hidden[s, b].to(weight.dtype).contiguous()
            upstream = grad.detach()[s, b].to(bias.dtype).contiguous()
            with without_autocast(tile):
                parts = list(run(tile, weight, bias, x[b].contiguous(), upstream))
            if of_hidden is not None:
                of_hidden[s, b] = parts.pop(0).unflatten(0, tile.shape[:2])
            if need_weight:
                of_weight += parts[0]
                of_bias += parts[1]
    return (
        of_hidden,
        of_weight.to(a.weight.dtype) if needs[1] else None,
        of_bias.to(a.bias.dtype) if needs[2] else None,
        grad_x(a, grad) if need_x else None,
    )


def grad_x(a: Arguments, grad: Tensor) -> Tensor:
    """Σ_s g·l (B, P). It is linear in the logits, so two small products compute it."""
    wide = torch.promote_types(a.hidden.dtype, torch.float32)
    grad, weight, bias = grad.to(wide), a.weight.to(wide), a.bias.to(wide)
    with without_autocast(a.hidden):
        summed = torch.einsum("sb,sbh->bh", grad, a.hidden.to(wide))
        return (summed @ weight.t() + grad.sum(0)[:, None] * bias).to(a.x.dtype)
