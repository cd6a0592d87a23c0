"""Tiles of logits: what the last layer's kernels load, and how they multiply it."""

from __future__ import annotations

from ..backend import jit, tl
from ..scalar import dot_jit


@jit
def place_jit(first, n_images, BLOCK_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # The samples and images of the rows from `first` (int64) on, each (BLOCK_ROWS,). Dividing each
    # row by n_images in 64 bits would take longer than a tile's logits.
    lanes = tl.arange(0, BLOCK_ROWS)
    sample = first // n_images
    image = first - sample * n_images
    # Rows of a block belong to two samples at most, unless there are fewer images than lanes.
    few = (lanes * 0 + min(n_images, BLOCK_ROWS)).to(tl.int32)
    of_few = (image.to(tl.int32) + lanes) // few
    later = tl.where(n_images >= BLOCK_ROWS, (image + lanes >= n_images).to(tl.int32), of_few)
    return sample + later, image + lanes - later.to(tl.int64) * n_images


@jit
def hidden_jit(  # type: ignore[no-untyped-def]
    hidden_ptr, rows, live, h, H: tl.constexpr, ROW_STRIDE: tl.constexpr, BFLOAT16: tl.constexpr
):  # → (BLOCK_ROWS, BLOCK_H), zero beyond the edges
    at = hidden_ptr + rows[:, None] * ROW_STRIDE + h[None, :]
    hidden = tl.load(at, mask=live[:, None] & (h < H)[None, :], other=0.0)
    return hidden.to(tl.bfloat16) if BFLOAT16 else hidden


@jit
def weight_jit(  # type: ignore[no-untyped-def]
    weight_ptr,
    pixels,
    h,
    P: tl.constexpr,
    H: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
):  # → (BLOCK_H, BLOCK_P), zero beyond the edges
    at = weight_ptr + pixels[None, :].to(tl.int64) * P_STRIDE + h[:, None].to(tl.int64) * H_STRIDE
    weight = tl.load(at, mask=(pixels < P)[None, :] & (h < H)[:, None], other=0.0)
    return weight.to(tl.bfloat16) if BFLOAT16 else weight


@jit
def streamed_jit(  # type: ignore[no-untyped-def]
    hidden_ptr,
    weight_ptr,
    rows,  # (BLOCK_ROWS,) int64
    live,  # (BLOCK_ROWS,)
    pixels,  # (BLOCK_P,)
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):  # → hidden·weightᵀ (BLOCK_ROWS, BLOCK_P) float32, BLOCK_H hidden units at a time
    sums = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
    for start in tl.range(0, H, BLOCK_H, num_stages=STAGES):
        h = start + tl.arange(0, BLOCK_H)
        a = hidden_jit(hidden_ptr, rows, live, h, H, ROW_STRIDE, BFLOAT16)
        b = weight_jit(weight_ptr, pixels, h, P, H, P_STRIDE, H_STRIDE, BFLOAT16)
        sums = dot_jit(a, b, sums, PRECISION)
    return sums


@jit
def logits_jit(  # type: ignore[no-untyped-def]
    product, bias_ptr, pixels, P: tl.constexpr, BLOCK_P: tl.constexpr
):  # → (BLOCK_ROWS, BLOCK_P) float32; so low beyond the edge that a term is 0 without a mask
    logits = (
        product + tl.load(bias_ptr + pixels, mask=pixels < P, other=0.0).to(tl.float32)[None, :]
    )
    if P % BLOCK_P != 0:
        logits = tl.where((pixels < P)[None, :], logits, -10000.0)
    return logits


@jit
def targets_jit(  # type: ignore[no-untyped-def]
    x_ptr, images, live, pixels, P: tl.constexpr, X_STRIDE: tl.constexpr
):  # → (BLOCK_ROWS, BLOCK_P) float32
    at = x_ptr + images[:, None] * X_STRIDE + pixels[None, :]
    mask = live[:, None] & (pixels < P)[None, :]
    return tl.load(at, mask=mask, other=0).to(tl.float32)
