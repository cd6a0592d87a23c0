"""The last layer's Triton kernels. The rows of a program are SAMPLES samples of a few images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import jit, tl
from ..bernoulli.kernel import readable
from ..define import Tensors
from ..launch import LAYER_TILES, MOST_SPLITS, WIDTH, ProductTile, start_kernel, with_tile
from ..scalar import dot_jit, log_jit
from .twin import FACTORS, Arguments, grad_x

# Samples of an image that are rows of the same program at most; they share the image's targets.
SAMPLES_PER_PROGRAM = 8


@jit
def rows_jit(  # type: ignore[no-untyped-def]
    block, n_images, num_samples, SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # → samples, images and which of them exist, each (BLOCK_ROWS,)
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
):  # → (BLOCK_ROWS, BLOCK_P) float32; so low beyond the edge that a term is 0 without a mask
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
    hidden_ptr,  # (S, B, H), samples sample_stride apart, rows ROW_STRIDE apart
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
                hidden_at, live, weight_ptr, bias_ptr, pixels, P, H, P_STRIDE, H_STRIDE,
                BFLOAT16, PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H
            )  # fmt: skip
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
        hidden_at, live, weight_ptr, bias_ptr, pixels, P, H, P_STRIDE, H_STRIDE, BFLOAT16,
        PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H
    )  # fmt: skip
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
            grad_ptr, grad_sample_stride, grad_row_stride, hidden_at, samples, images, live,
            weight_ptr, bias_ptr, x_ptr, pixels, P, H, P_STRIDE, H_STRIDE, X_STRIDE, BFLOAT16,
            PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H
        )  # fmt: skip
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
            grad_ptr, grad_sample_stride, grad_row_stride, hidden_at, samples, images, live,
            weight_ptr, bias_ptr, x_ptr, pixels, P, H, P_STRIDE, H_STRIDE, X_STRIDE, BFLOAT16,
            PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H
        )  # fmt: skip
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


class _Launch:
    """The parts that the launches of the three kernels have in common."""

    def __init__(self, kind: str, a: Arguments) -> None:
        self.num_samples, self.images, self.width = a.hidden.shape
        hidden, x = readable(a.hidden), readable(a.x)
        rounds = a.precision == "bfloat16" and hidden.dtype == torch.float32
        float32 = hidden.dtype == torch.float32 and not rounds
        multiplied = "16 bits" if not float32 else "tf32" if a.precision == "tf32" else "float32"
        self.tile = LAYER_TILES[kind][multiplied]
        self.samples = min(SAMPLES_PER_PROGRAM, 1 << (self.num_samples - 1).bit_length())
        self.tensors = (hidden, a.weight, a.bias.contiguous(), x)
        self.sizes = (self.images, self.num_samples)
        self.columns = min(WIDTH.get(kind, 16), max(16, 1 << (self.width - 1).bit_length()))
        self.constants = {
            "P": a.weight.shape[0],
            "H": self.width,
            "ROW_STRIDE": hidden.stride(1),
            "P_STRIDE": a.weight.stride(0),
            "H_STRIDE": a.weight.stride(1),
            "X_STRIDE": x.stride(0),
            "BFLOAT16": rounds,
            "PRECISION": "tf32" if a.precision == "tf32" else "ieee",
            "SAMPLES": self.samples,
        }
        self.case = (hidden.dtype, *self.constants.items())  # all that the fastest tile depends on

    def blocks(self, tile: ProductTile) -> int:
        """How many blocks of rows there are."""
        return -(-self.num_samples // self.samples) * -(-self.images // (tile.rows // self.samples))

    def start(
        self,
        kernel: Any,
        tile: ProductTile,
        grid: tuple[Any, ...],
        args: tuple[Any, ...],
        **more: int,
    ) -> None:
        block = {"BLOCK_ROWS": tile.rows, "BLOCK_P": tile.pixels, "BLOCK_H": tile.hidden}
        start_kernel(kernel, grid, args, self.constants | block | more, tile.num_warps)


def forward(a: Arguments) -> Tensors:
    of = _Launch("forward", a)
    out = a.hidden.new_empty((of.num_samples, of.images), dtype=torch.float32)
    args = (*of.tensors, out, *of.sizes, of.tensors[0].stride(0))

    def run(tile: ProductTile) -> None:
        grid = (of.blocks(tile),)
        of.start(linear_bernoulli_forward_kernel, tile, grid, args, FACTORS=FACTORS)

    if of.images > 0:
        with_tile("linear_bernoulli_forward", of.case, args, of.tile, run)
    return (out,)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, ...]) -> Tensors:
    (grad,) = grads
    need_hidden, need_weight, need_bias, need_x = needs
    of_hidden = grad_hidden(a, grad) if need_hidden else None
    of_weight, of_bias = grad_weight(a, grad) if need_weight or need_bias else (None, None)
    return of_hidden, of_weight, of_bias, grad_x(a, grad) if need_x else None


def grad_hidden(a: Arguments, grad: Tensor) -> Tensor:
    of = _Launch("hidden", a)
    out = a.hidden.new_empty(a.hidden.shape)
    args = (grad, *of.tensors, out, *of.sizes, *grad.stride(), of.tensors[0].stride(0))

    def run(tile: ProductTile) -> None:
        grid = (of.blocks(tile), -(-of.width // of.columns))
        of.start(linear_bernoulli_hidden_kernel, tile, grid, args, WIDTH=of.columns)

    if of.images > 0:
        with_tile("linear_bernoulli_hidden", of.case, args, of.tile, run)
    return out


def grad_weight(a: Arguments, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias."""
    of, pixels = _Launch("weight", a), a.weight.shape[0]
    if of.images == 0:
        return torch.zeros_like(a.weight), torch.zeros_like(a.bias)
    strides = (*grad.stride(), of.tensors[0].stride(0))

    def run(tile: ProductTile) -> tuple[Tensor, Tensor]:
        blocks = of.blocks(tile)
        splits = torch.sym_min(MOST_SPLITS, blocks)  # min would turn one traced graph into two
        of_weight = a.hidden.new_empty((splits, pixels, of.width), dtype=torch.float32)
        of_bias = a.hidden.new_empty((splits, pixels), dtype=torch.float32)
        args = (grad, *of.tensors, of_weight, of_bias, *of.sizes, *strides, blocks)
        grid = (-(-pixels // tile.pixels), -(-of.width // of.columns), splits)
        of.start(linear_bernoulli_weight_kernel, tile, grid, args, WIDTH=of.columns)
        return of_weight, of_bias

    tensors = of.tensors
    of_weight, of_bias = with_tile("linear_bernoulli_weight", of.case, tensors, of.tile, run)
    return of_weight.sum(0).to(a.weight.dtype), of_bias.sum(0).to(a.bias.dtype)
