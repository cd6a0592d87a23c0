"""The last layer of a decoder and the Bernoulli log-likelihood of its logits, in one op.

S·B·P logits are the largest tensor of a VAE. Here they live in registers (CUDA) or in a tile that a
cache holds (CPU), in the forward and once more in the backward, and never in memory as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import (
    goes_through_op,
    interpreting,
    is_plain,
    jit,
    launcher,
    no_second_derivative,
    same_backend,
    tl,
    uses_triton,
    without_autocast,
)
from ..bernoulli import bernoulli_twin, readable
from ..checks import check_choice, check_linear
from ..compiler import (
    compiled_once,
    compiled_without_guards,
    example,
    has_cpu_compiler,
    sizes_unlike,
)
from ..noise import log_tail_jit
from ..registration import triton_op

PRECISIONS = ("float32", "tf32", "bfloat16")
# Up to so many samples of an image are rows of one program, and share its targets.
SAMPLES_PER_PROGRAM = 8
# Factors 1 + e^−|l| ≤ 2 that are multiplied before their logarithm is taken: 2⁶⁴ does not overflow.
FACTORS = 64


class Tile(NamedTuple):
    """What a program multiplies at once: rows by pixels, so many terms of the sum over H a time."""

    rows: int
    pixels: int
    hidden: int
    num_warps: int


# Chosen from offline builds (tests/kernels/linear_bernoulli/test_offline_linear_bernoulli.py), by
# what is multiplied: no spills, and operands that fit 64 KiB of shared memory.
TILES = {
    "forward": {
        "16 bits": Tile(128, 64, 32, 8),
        "tf32": Tile(64, 64, 32, 8),
        "float32": Tile(32, 64, 32, 8),
    },
    "hidden": {
        "16 bits": Tile(64, 64, 64, 8),
        "tf32": Tile(64, 32, 32, 8),
        "float32": Tile(32, 32, 32, 8),
    },
    "weight": {
        "16 bits": Tile(32, 64, 32, 8),
        "tf32": Tile(32, 32, 32, 8),
        "float32": Tile(32, 32, 16, 8),
    },
}
# Columns of the hidden units' (or weights') gradient that a program keeps in registers; for each
# further such block logits are computed once more.
WIDTH = {"hidden": 256, "weight": 128}
# Programs that the sum over rows in the weights' gradient is split into at most: enough to fill a
# GPU, and partial sums of (P, H) each.
MOST_SPLITS = 16


# The Triton kernels. A program's rows are BLOCK_ROWS / SAMPLES images times SAMPLES samples.


@jit
def log_jit(a):  # type: ignore[no-untyped-def]  # ln a of a normal number a > 0
    bits = a.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    f2 = f * f
    return f * f2 * log_tail_jit(f) - 0.5 * f2 + f + exponent.to(tl.float32) * 0.6931471805599453


# The interpreter keeps bfloat16 as bits, and would multiply those; float32 holds their products.
INTERPRETED = interpreting() if tl is None else tl.constexpr(interpreting())


@jit
def tf32_jit(a):  # type: ignore[no-untyped-def]  # float32 rounded to TF32's ten bits
    # Tensor cores ignore the lower thirteen, and Triton does not round before them: operands that
    # all err towards zero move log p(x) by a nat, rounded ones by 0.02 (altosaar's decoder).
    rounded = (a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(a == a, rounded.to(tl.float32, bitcast=True), a)  # a NaN may overflow to zero


@jit
def dot_jit(a, b, sums, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # a·b + sums
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a, b = tf32_jit(a), tf32_jit(b)
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@jit
def rows_jit(  # type: ignore[no-untyped-def]
    block, n_images, num_samples, SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # → samples, images, which of them exist, each (BLOCK_ROWS,)
    lanes = tl.arange(0, BLOCK_ROWS)
    IMAGES: tl.constexpr = BLOCK_ROWS // SAMPLES
    blocks = tl.cdiv(num_samples, SAMPLES)
    samples = (block % blocks).to(tl.int64) * SAMPLES + lanes // IMAGES
    images = (block // blocks).to(tl.int64) * IMAGES + lanes % IMAGES
    return samples, images, (samples < num_samples) & (images < n_images)


@jit
def logits_jit(  # type: ignore[no-untyped-def]
    hidden_at,  # (BLOCK_ROWS,) pointers to rows
    live,  # (BLOCK_ROWS,)
    weight_ptr,
    bias_ptr,
    pixels,  # (BLOCK_P,)
    P: tl.constexpr,
    H: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # → (BLOCK_ROWS, BLOCK_P) float32; beyond the edge so low that a term is 0 without a mask
    sums = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
    weight_at = weight_ptr + pixels.to(tl.int64) * P_STRIDE
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        a_mask = live[:, None] & (h < H)[None, :]
        a = tl.load(hidden_at[:, None] + h[None, :], mask=a_mask, other=0.0)
        b_at = weight_at[None, :] + h[:, None].to(tl.int64) * H_STRIDE
        b = tl.load(b_at, mask=(pixels < P)[None, :] & (h < H)[:, None], other=0.0)
        if BFLOAT16:
            a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        sums = dot_jit(a, b, sums, PRECISION)
    logits = sums + tl.load(bias_ptr + pixels, mask=pixels < P, other=0.0).to(tl.float32)[None, :]
    if P % BLOCK_P != 0:
        logits = tl.where((pixels < P)[None, :], logits, -10000.0)
    return logits


@jit
def targets_jit(x_ptr, images, live, pixels, P: tl.constexpr, X_STRIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = x_ptr + images[:, None] * X_STRIDE + pixels[None, :]
    mask = live[:, None] & (pixels < P)[None, :]
    return tl.load(at, mask=mask, other=0).to(tl.float32)


@jit
def linear_bernoulli_forward_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,  # (S, B, H), samples sample_stride apart, rows ROW_STRIDE
    weight_ptr,  # (P, H), of any strides
    bias_ptr,  # (P,)
    x_ptr,  # (B, P), rows X_STRIDE apart
    out_ptr,  # (S, B) float32
    n_images,
    num_samples,
    sample_stride,
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    block = tl.program_id(0)
    samples, images, live = rows_jit(block, n_images, num_samples, SAMPLES, BLOCK_ROWS)
    hidden_at = hidden_ptr + samples * sample_stride + images * ROW_STRIDE
    sums = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
    for first in range(0, P, FACTORS * BLOCK_P):
        product = tl.full((BLOCK_ROWS, BLOCK_P), 1.0, tl.float32)
        for start in range(first, min(first + FACTORS * BLOCK_P, P), BLOCK_P):
            pixels = start + tl.arange(0, BLOCK_P)
            logits = logits_jit(
                hidden_at,
                live,
                weight_ptr,
                bias_ptr,
                pixels,
                P,
                H,
                P_STRIDE,
                H_STRIDE,
                BFLOAT16,
                PRECISION,
                BLOCK_ROWS,
                BLOCK_P,
                BLOCK_H,
            )
            x = targets_jit(x_ptr, images, live, pixels, P, X_STRIDE)
            product += product * tl.exp2(tl.abs(logits) * -1.4426950408889634)
            sums += x * logits - tl.maximum(logits, 0.0)
        sums -= log_jit(product)
    tl.store(out_ptr + samples * n_images + images, tl.sum(sums, 1), mask=live)


@jit
def residual_jit(  # type: ignore[no-untyped-def]
    grad_ptr,
    grad_sample_stride,
    grad_row_stride,
    hidden_at,
    samples,
    images,
    live,
    weight_ptr,
    bias_ptr,
    x_ptr,
    pixels,
    P: tl.constexpr,
    H: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # → g·(x − sigmoid(l)), (BLOCK_ROWS, BLOCK_P) float32
    logits = logits_jit(
        hidden_at,
        live,
        weight_ptr,
        bias_ptr,
        pixels,
        P,
        H,
        P_STRIDE,
        H_STRIDE,
        BFLOAT16,
        PRECISION,
        BLOCK_ROWS,
        BLOCK_P,
        BLOCK_H,
    )
    grad_at = grad_ptr + samples * grad_sample_stride + images * grad_row_stride
    grad = tl.load(grad_at, mask=live, other=0.0)
    x = targets_jit(x_ptr, images, live, pixels, P, X_STRIDE)
    return grad[:, None] * (x - tl.sigmoid(logits))


@jit
def linear_bernoulli_hidden_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,  # (S, B) float32, of any strides
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    grad_hidden_ptr,  # (S, B, H)
    n_images,
    num_samples,
    grad_sample_stride,
    grad_row_stride,
    sample_stride,
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of the gradient that this program computes
):
    block = tl.program_id(0)
    samples, images, live = rows_jit(block, n_images, num_samples, SAMPLES, BLOCK_ROWS)
    hidden_at = hidden_ptr + samples * sample_stride + images * ROW_STRIDE
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    sums = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    for start in range(0, P, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        residual = residual_jit(
            grad_ptr,
            grad_sample_stride,
            grad_row_stride,
            hidden_at,
            samples,
            images,
            live,
            weight_ptr,
            bias_ptr,
            x_ptr,
            pixels,
            P,
            H,
            P_STRIDE,
            H_STRIDE,
            X_STRIDE,
            BFLOAT16,
            PRECISION,
            BLOCK_ROWS,
            BLOCK_P,
            BLOCK_H,
        )
        row_at = weight_ptr + pixels[:, None].to(tl.int64) * P_STRIDE
        b_at = row_at + columns[None, :].to(tl.int64) * H_STRIDE
        b_mask = (pixels < P)[:, None] & (columns < H)[None, :]
        b = tl.load(b_at, mask=b_mask, other=0.0)
        if BFLOAT16:
            b = b.to(tl.bfloat16)
        sums = dot_jit(residual.to(b.dtype), b, sums, PRECISION)
    out_at = grad_hidden_ptr + (samples * n_images + images)[:, None] * H + columns[None, :]
    out = sums.to(grad_hidden_ptr.dtype.element_ty)
    tl.store(out_at, out, mask=live[:, None] & (columns < H)[None, :])


@jit
def linear_bernoulli_weight_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    grad_weight_ptr,  # (splits, P, H) float32
    grad_bias_ptr,  # (splits, P) float32
    n_images,
    num_samples,
    grad_sample_stride,
    grad_row_stride,
    sample_stride,
    n_blocks,  # of rows
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    split = tl.program_id(2)
    weight_sums = tl.zeros((BLOCK_P, WIDTH), tl.float32)
    bias_sums = tl.zeros((BLOCK_P,), tl.float32)
    for block in range(split, n_blocks, tl.num_programs(2)):
        samples, images, live = rows_jit(block, n_images, num_samples, SAMPLES, BLOCK_ROWS)
        hidden_at = hidden_ptr + samples * sample_stride + images * ROW_STRIDE
        residual = residual_jit(
            grad_ptr,
            grad_sample_stride,
            grad_row_stride,
            hidden_at,
            samples,
            images,
            live,
            weight_ptr,
            bias_ptr,
            x_ptr,
            pixels,
            P,
            H,
            P_STRIDE,
            H_STRIDE,
            X_STRIDE,
            BFLOAT16,
            PRECISION,
            BLOCK_ROWS,
            BLOCK_P,
            BLOCK_H,
        )
        b_mask = live[:, None] & (columns < H)[None, :]
        b = tl.load(hidden_at[:, None] + columns[None, :], mask=b_mask, other=0.0)
        if BFLOAT16:
            b = b.to(tl.bfloat16)
        a = tl.trans(residual).to(b.dtype)
        weight_sums = dot_jit(a, b, weight_sums, PRECISION)
        bias_sums += tl.sum(residual, 0)
    at = split.to(tl.int64) * P + pixels
    mask = (pixels < P)[:, None] & (columns < H)[None, :]
    tl.store(grad_weight_ptr + at[:, None] * H + columns[None, :], weight_sums, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(grad_bias_ptr + at, bias_sums, mask=pixels < P)


class _Launch(NamedTuple):
    """What the three kernels' launches have in common."""

    tensors: tuple[Tensor, ...]  # hidden, weight, bias, x
    samples: int  # of an image in a program
    blocks: int  # of rows
    constants: dict[str, Any]  # and num_warps


def _prepared(
    kind: str, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> _Launch:
    num_samples, images, width = hidden.shape
    hidden, x = readable(hidden), readable(x)
    rounds = precision == "bfloat16" and hidden.dtype == torch.float32
    float32 = hidden.dtype == torch.float32 and not rounds
    tile = TILES[kind]["16 bits" if not float32 else "tf32" if precision == "tf32" else "float32"]
    samples = min(SAMPLES_PER_PROGRAM, 1 << (num_samples - 1).bit_length())
    constants = {
        "P": weight.shape[0],
        "H": width,
        "ROW_STRIDE": hidden.stride(1),
        "P_STRIDE": weight.stride(0),
        "H_STRIDE": weight.stride(1),
        "X_STRIDE": x.stride(0),
        "BFLOAT16": rounds,
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
        "SAMPLES": samples,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_P": tile.pixels,
        "BLOCK_H": tile.hidden,
    }
    # Four warps are Triton's default; naming them would make a traced launch an autotuned one.
    if tile.num_warps != 4:
        constants["num_warps"] = tile.num_warps
    blocks = -(-num_samples // samples) * -(-images // (tile.rows // samples))
    return _Launch((hidden, weight, bias.contiguous(), x), samples, blocks, constants)


def _launch_forward(
    kernel: Any, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> Tensor:
    num_samples, images, _ = hidden.shape
    out = hidden.new_empty((num_samples, images), dtype=torch.float32)
    if images > 0:
        launch = _prepared("forward", hidden, weight, bias, x, precision)
        sizes = (images, num_samples, launch.tensors[0].stride(0))
        kernel[(launch.blocks,)](*launch.tensors, out, *sizes, FACTORS=FACTORS, **launch.constants)
    return out


def _launch_hidden(
    kernel: Any,
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
) -> Tensor:
    num_samples, images, width = hidden.shape
    out = hidden.new_empty(hidden.shape)
    if images > 0:
        launch = _prepared("hidden", hidden, weight, bias, x, precision)
        sizes = (images, num_samples, *grad.stride(), launch.tensors[0].stride(0))
        columns = _columns("hidden", width)
        kernel[(launch.blocks, -(-width // columns))](
            grad, *launch.tensors, out, *sizes, WIDTH=columns, **launch.constants
        )
    return out


def _launch_weight(
    kernel: Any,
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    num_samples, images, width = hidden.shape
    pixels = len(weight)
    if images == 0:
        return torch.zeros_like(weight), torch.zeros_like(bias)
    launch = _prepared("weight", hidden, weight, bias, x, precision)
    splits = torch.sym_min(MOST_SPLITS, launch.blocks)  # min would make two graphs of a traced one
    grad_weight = hidden.new_empty((splits, pixels, width), dtype=torch.float32)
    grad_bias = hidden.new_empty((splits, pixels), dtype=torch.float32)
    sizes = (images, num_samples, *grad.stride(), launch.tensors[0].stride(0), launch.blocks)
    columns = _columns("weight", width)
    grid = (-(-pixels // launch.constants["BLOCK_P"]), -(-width // columns), splits)
    kernel[grid](
        grad, *launch.tensors, grad_weight, grad_bias, *sizes, WIDTH=columns, **launch.constants
    )
    return grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(bias.dtype)


def _launch_backward(
    launched: Callable[[Any], Any],  # from a kernel to what takes a grid
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (grad, hidden, weight, bias, x, precision)
    of_hidden, of_weight = hidden.new_empty((0,)), (weight.new_empty((0,)), bias.new_empty((0,)))
    if need_hidden:
        of_hidden = _launch_hidden(launched(linear_bernoulli_hidden_kernel), *args)
    if need_weight:
        of_weight = _launch_weight(launched(linear_bernoulli_weight_kernel), *args)
    return of_hidden, *of_weight


def _columns(kind: str, hidden_units: int) -> int:
    return min(WIDTH[kind], max(16, 1 << (hidden_units - 1).bit_length()))


# The PyTorch twin, a tile of rows at a time. float64 stays float64; products are in float32 or
# bfloat16, all else in float32.

# Logits at once: as many as 1,024 images have stay in a CPU's cache.
TILE = {"cpu": 784 << 10, "cuda": 784 << 16}
# From so many logits on, a compiled tile beats an eager one.
COMPILE_FROM = 1 << 16


def bernoulli_in_products(logits: Tensor, x: Tensor) -> Tensor:
    """`bernoulli_twin` with one logarithm for up to 64 pixels: of the product of 1 + e^−|l|.

    logits (S, B, P) float32, x (B, P) → (S, B). In a compiled loop over float32 logits in the cache
    0.27 ns a pixel on two cores, where a polynomial for each logarithm takes 0.45. A pixel's
    ln(1 + e^−|l|) errs by 1.2e-7 nats; below that, its own digits are lost.
    """
    pixels = logits.shape[-1]
    # Lanes run over neighbouring pixels, as vectors do; each multiplies its factors in sequence.
    lanes = 16 * -(-pixels // (16 * FACTORS))
    factors = pixels // lanes
    if factors == 0 or logits.dtype == torch.float64:
        return bernoulli_twin(logits, x)
    body = factors * lanes
    tiled = logits[..., :body].unflatten(-1, (factors, lanes))
    targets = x[..., :body].unflatten(-1, (factors, lanes)).to(logits.dtype)
    # Not exp: inductor keeps an exp that is used more than once in memory, and loops twice.
    product = (1.0 + torch.exp2(tiled.abs() * -1.4426950408889634)).prod(-2)
    sums = (targets * tiled - tiled.clamp(min=0.0)).sum(-2)
    out = (sums - product.log()).sum(-1)
    return out if body == pixels else out + bernoulli_twin(logits[..., body:], x[..., body:])


def _tile_logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # (s, b, H), (P, H), (P,) → (s, b, P)
    samples, images, _ = hidden.shape
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.flatten(0, 1) @ weight.t()).to(wide) + bias.to(wide)
    return logits.unflatten(0, (samples, images))


def _tile_forward(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_in_products(_tile_logits(hidden, weight, bias), x)


def _tile_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    grad: Tensor,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    # → the gradients that are needed: of hidden (s·b, H); of weight (P, H) and bias (P,)
    logits = _tile_logits(hidden, weight, bias)
    residual = grad[..., None] * (x.to(logits.dtype) - torch.sigmoid(logits))
    residual = residual.flatten(0, 1)
    operand = residual.to(hidden.dtype)
    of_hidden = (operand @ weight,) if need_hidden else ()
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
def _compiled_tile(
    function: Callable[..., Any],
    needs: tuple[bool, ...],
    dtype: torch.dtype,
    targets: torch.dtype,
    pixels: int,
    width: int,
) -> Any:
    samples, images = sizes_unlike(2, pixels, width)

    def tile(hidden: Tensor, weight: Tensor, *others: Tensor) -> Any:
        for size in weight.shape:  # these are fixed; how many rows there are is not
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
    # what computes a tile: compiled where that pays
    pixels, width = weight.shape
    logits = hidden.shape[0] * hidden.shape[1] * pixels
    worth_it = weight.device.type == "cpu" and logits >= COMPILE_FROM
    if worth_it and weight.dtype != torch.float64 and has_cpu_compiler():
        code = _compiled_tile(function, needs, weight.dtype, x.dtype, pixels, width)
        if code is not None:
            return code
    return lambda *tensors: function(*tensors, *needs)


def _twin_operands(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = multiplied_in(hidden.dtype, precision)
    wide = torch.promote_types(dtype, torch.float32)
    return weight.detach().to(dtype).contiguous(), bias.detach().to(wide).contiguous(), readable(x)


def _twin_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> Tensor:
    samples, images, _ = hidden.shape
    weight, bias, x = _twin_operands(hidden, weight, bias, x, precision)
    out = bias.new_empty((samples, images))
    run = _runner(_tile_forward, hidden, weight, x)
    for s, b in _tiles(samples, images, len(weight), hidden.device):
        tile = hidden.detach()[s, b].to(weight.dtype).contiguous()
        with without_autocast(tile):
            out[s, b] = run(tile, weight, bias, x[b].contiguous())
    return out


def _twin_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    samples, images, _ = hidden.shape
    dtypes = weight.dtype, bias.dtype
    weight, bias, x = _twin_operands(hidden, weight, bias, x, precision)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else (0,))
    grad_weight = torch.zeros_like(weight, dtype=bias.dtype) if need_weight else bias.new_empty(0)
    grad_bias = torch.zeros_like(bias) if need_weight else bias.new_empty(0)
    run = _runner(_tile_backward, hidden, weight, x, (need_hidden, need_weight))
    for s, b in _tiles(samples, images, len(weight), hidden.device):
        tile = hidden.detach()[s, b].to(weight.dtype).contiguous()
        upstream = grad.detach()[s, b].to(bias.dtype).contiguous()
        with without_autocast(tile):
            parts = list(run(tile, weight, bias, x[b].contiguous(), upstream))
        if need_hidden:
            grad_hidden[s, b] = parts.pop(0).unflatten(0, tile.shape[:2])
        if need_weight:
            grad_weight += parts[0]
            grad_bias += parts[1]
    return grad_hidden, grad_weight.to(dtypes[0]), grad_bias.to(dtypes[1])


# Registration. The twin stays opaque: inlined into a larger graph its logits would go to memory.

torch.library.define(
    "vaez::linear_bernoulli_twin",
    "(Tensor hidden, Tensor weight, Tensor bias, Tensor x, str precision) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "vaez::linear_bernoulli_twin_backward",
    "(Tensor grad, Tensor hidden, Tensor weight, Tensor bias, Tensor x, str precision, "
    "bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("vaez::linear_bernoulli_twin", "default")(_twin_forward)
torch.library.impl("vaez::linear_bernoulli_twin_backward", "default")(_twin_backward)


@torch.library.register_fake("vaez::linear_bernoulli_twin")
def _(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.new_empty(hidden.shape[:2], dtype=wide)


@torch.library.register_fake("vaez::linear_bernoulli_twin_backward")
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
        bias.new_empty(bias.shape if need_weight else (0,)),
    )


@triton_op("vaez::linear_bernoulli_forward", linear_bernoulli_forward_kernel)
def linear_bernoulli_forward_op(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> Tensor:
    if uses_triton(hidden):
        kernel = launcher(linear_bernoulli_forward_kernel)
        return _launch_forward(kernel, hidden, weight, bias, x, precision)
    return torch.ops.vaez.linear_bernoulli_twin(hidden, weight, bias, x, precision)


@triton_op(
    "vaez::linear_bernoulli_backward",
    linear_bernoulli_hidden_kernel,
    linear_bernoulli_weight_kernel,
)
def linear_bernoulli_backward_op(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    precision: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (grad, hidden, weight, bias, x, precision, need_hidden, need_weight)
    if uses_triton(hidden):
        return _launch_backward(launcher, *args)
    return torch.ops.vaez.linear_bernoulli_twin_backward(*args)


def _grad_x(grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    # Σ_s g·l of (B, P), which is linear in the logits: two small products
    wide = torch.promote_types(hidden.dtype, torch.float32)
    grad, weight, bias = grad.to(wide), weight.to(wide), bias.to(wide)
    with without_autocast(hidden):
        summed = torch.einsum("sb,sbh->bh", grad, hidden.to(wide))
        return (summed @ weight.t() + grad.sum(0)[:, None] * bias).to(x.dtype)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    with same_backend(ctx.triton):
        return _backward(ctx, grad, torch.ops.vaez.linear_bernoulli_backward)


def _backward(ctx: Any, grad: Tensor, run: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, x = ctx.saved_tensors
    need_hidden, need_weight, need_bias, need_x, _ = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 5
    if need_hidden or need_weight or need_bias:
        needs = need_hidden, need_weight or need_bias
        computed = run(grad, hidden, weight, bias, x, ctx.precision, *needs)
        wanted = (need_hidden, need_weight, need_bias)
        grads[:3] = [g if need else None for g, need in zip(computed, wanted, strict=True)]
    if need_x:
        grads[3] = _grad_x(grad, hidden, weight, bias, x)
    return tuple(grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.precision = inputs[4]
    ctx.triton = uses_triton(inputs[0])


linear_bernoulli_forward_op.register_autograd(_op_backward, setup_context=_setup_context)
linear_bernoulli_backward_op.register_autograd(no_second_derivative)


class _LinearBernoulli(torch.autograd.Function):
    """`linear_bernoulli_forward_op` past the dispatcher: what an eager call runs."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
    ) -> Tensor:
        _setup_context(ctx, (hidden, weight, bias, x, precision), hidden)
        if ctx.triton:
            with torch.cuda.device_of(hidden):
                kernel = linear_bernoulli_forward_kernel
                return _launch_forward(kernel, hidden, weight, bias, x, precision)
        return _twin_forward(hidden, weight, bias, x, precision)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if goes_through_op(grad):
            return _op_backward(ctx, grad)
        if not ctx.triton:
            return _backward(ctx, grad, _twin_backward)
        with torch.cuda.device_of(grad):
            return _backward(ctx, grad, functools.partial(_launch_backward, lambda kernel: kernel))


# The public function.


def linear_bernoulli_log_prob(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str = "float32"
) -> Tensor:
    """log p(x|z) in nats from a decoder's last hidden layer: Σ_P x·l − softplus(l), l = hWᵀ + b.

    `bernoulli_log_prob(hidden @ weight.T + bias, x)`, but for the logits, which are never stored:
    forward and backward compute them a tile at a time.

    Args:
        hidden: (S, B, H) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        weight: (P, H) in hidden's dtype, of any strides.
        bias: (P,) of any floating dtype; it is added in float32.
        x: (B, P) targets, the same for all S samples, of any strides: uint8 or bool holding 0 and
            1, or float32, bfloat16, float16 or float64 in [0, 1]. Values are not looked at.
        precision: what float32 operands are multiplied in. "float32"; "tf32", where a GPU's tensor
            cores take it (elsewhere float32); or "bfloat16". Other dtypes are multiplied as they
            are (on a CPU float16 as float32). Sums are float32; on a CPU those of bfloat16 are
            rounded to it as they leave a product, logits and a tile's gradients alike.

    Returns:
        (S, B) float32 (float64 for float64). Gradients flow to hidden, weight, bias and a floating
        x, in their dtypes, with products in the same precision (x's in float32); there is no second
        derivative. NaN and infinity propagate as in `bernoulli_log_prob`. B = 0 gives an empty
        result.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or value.
    """
    op = "linear_bernoulli_log_prob"
    check_linear(op, hidden, weight, bias, x)
    check_choice(op, "precision", precision, PRECISIONS)
    if is_plain(hidden, weight, bias, x):
        return _LinearBernoulli.apply(hidden, weight, bias, x, precision)
    return torch.ops.vaez.linear_bernoulli_forward(hidden, weight, bias, x, precision)


__all__ = ["linear_bernoulli_log_prob"]
