"""The mixture's Triton kernels: three launches forward, three backward.

1. The preparing kernel writes the operands of the next: float32, transposed, in whole blocks.
2. The main kernel spreads draws and components over programs. A program is one warp with 16 draws
   and 128 components at a time. A thread has four components, which it loads at once, and keeps
   their scores for all draws in registers.
3. The last kernel adds what the programs of the same draws found.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import jit, tl
from ..define import Tensors
from ..launch import run_kernel
from ..scalar import exp_jit, log_jit
from .twin import SEGMENT, Arguments

BLOCK_M, BLOCK_N = 16, 128
LARGEST_BLOCK_D = 128
# With up to 255 registers per thread, an H100 runs eight such warps on each of its 132
# multiprocessors, so this number of programs takes four rounds.
PROGRAMS = 4096
# Dimensions of a step of the preparing kernel, and splits of a step of the last kernels.
COLUMNS, SPLITS = 8, 16


@jit
def transposed_jit(  # type: ignore[no-untyped-def]
    x_ptr, rows, columns, n_rows, n_columns, row_stride, column_stride
):  # → (rows, columns) float32, 0 beyond the tensor
    at = rows * tl.cast(row_stride, tl.int64) + columns * tl.cast(column_stride, tl.int64)
    return tl.load(x_ptr + at, mask=(rows < n_rows) & (columns < n_columns), other=0.0).to(
        tl.float32
    )


@jit
def mixture_prepare_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (M, D)
    mu_ptr,  # (N, D)
    logvar_ptr,  # (N, D)
    z_out_ptr,  # (D, M) float32, M padded to whole blocks, as below
    mu_out_ptr,  # (D, N) float32, N padded to whole blocks, as below
    inverse_sigma_ptr,  # (D, N) float32
    log_normaliser_ptr,  # (N,) float64: −½ Σ_D logvar; −inf beyond the components
    highest_ptr,  # (tiles,) float64: the largest finite normaliser of each tile
    rows_of_z_ptr,  # (M, WIDTH) float32, for backward alone
    rows_of_mu_ptr,  # (N, WIDTH) float32, likewise
    precision_ptr,  # (N, WIDTH) float32, likewise
    n_rows,  # draws
    n_components,
    tiles,
    z_row_stride,
    z_column_stride,
    mu_row_stride,
    mu_column_stride,
    logvar_row_stride,
    logvar_column_stride,
    z_stride,
    n_stride,
    D,
    width,  # D for forward
    BACKWARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # The first programs take a tile of components each, the others as many draws.
    z_stride, n_stride = tl.cast(z_stride, tl.int64), tl.cast(n_stride, tl.int64)
    if tl.program_id(0) < tiles:
        rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        sums = tl.zeros((BLOCK_N, COLUMNS), tl.float64)
        for start in range(0, width, COLUMNS):
            d = start + tl.arange(0, COLUMNS)[None, :]
            mu = transposed_jit(mu_ptr, rows, d, n_components, D, mu_row_stride, mu_column_stride)
            # Beyond the components σ = 1, so that z = ∞ has the score −∞ there, as everywhere, not
            # NaN.
            logvar = transposed_jit(
                logvar_ptr, rows, d, n_components, D, logvar_row_stride, logvar_column_stride
            )
            sums += logvar.to(tl.float64)
            at = d * n_stride + rows
            tl.store(mu_out_ptr + at, mu, mask=d < D)
            tl.store(inverse_sigma_ptr + at, exp_jit(-0.5 * logvar), mask=d < D)
            if BACKWARD:
                at = rows * width + d
                tl.store(rows_of_mu_ptr + at, mu, mask=d < width)
                tl.store(precision_ptr + at, exp_jit(-logvar), mask=d < width)
        exact = -0.5 * tl.sum(sums, 1)[:, None]
        exact = tl.where(rows < n_components, exact, -float("inf"))
        tl.store(log_normaliser_ptr + rows, exact)
        finite = tl.where(tl.abs(exact) < float("inf"), exact, -float("inf"))
        tl.store(highest_ptr + tl.program_id(0), tl.max(tl.max(finite, 1), 0))
    else:
        rows = (tl.program_id(0) - tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        live = rows < z_stride
        for start in range(0, width, COLUMNS):
            d = start + tl.arange(0, COLUMNS)[None, :]
            z = transposed_jit(z_ptr, rows, d, n_rows, D, z_row_stride, z_column_stride)
            tl.store(z_out_ptr + d * z_stride + rows, z, mask=live & (d < D))
            if BACKWARD:
                tl.store(rows_of_z_ptr + rows * width + d, z, mask=live & (d < width))


@jit
def shift_jit(highest_ptr, tiles):  # type: ignore[no-untyped-def]
    # → the largest finite normaliser, float64; 0 if there is none. Scores are relative to it,
    # because float32 would lose digits of large normalisers.
    best = tl.full((32,), -float("inf"), tl.float64)
    for start in range(0, tiles, 32):
        at = start + tl.arange(0, 32)
        best = tl.maximum(best, tl.load(highest_ptr + at, mask=at < tiles, other=-float("inf")))
    shift = tl.max(best, 0)
    return tl.where(shift == -float("inf"), 0.0, shift)


@jit
def scores_jit(  # type: ignore[no-untyped-def]
    z_ptr,
    mu_ptr,
    inverse_sigma_ptr,
    log_normaliser_ptr,
    shift,
    leave_out_ptr,
    first_row,  # int64
    first,  # component, int64
    n_rows,
    z_stride,
    n_stride,
    D: tl.constexpr,
    LEAVE_OUT: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # → (BLOCK_M, BLOCK_N), by a loop over D
    lanes = tl.arange(0, BLOCK_M)[:, None]
    within = tl.arange(0, BLOCK_N)[None, :]
    z_stride, n_stride = tl.cast(z_stride, tl.int64), tl.cast(n_stride, tl.int64)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, SEGMENT):
        segment = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for d in range(start, min(start + SEGMENT, D)):
            at = d * n_stride + first
            z = tl.load(z_ptr + (d * z_stride + first_row) + lanes)
            mu = tl.load(mu_ptr + at + within)
            t = (z - mu) * tl.load(inverse_sigma_ptr + at + within)
            segment += t * t
        squares += segment
    normaliser = tl.load(log_normaliser_ptr + first + within) - shift
    scores = normaliser.to(tl.float32) - 0.5 * squares
    if LEAVE_OUT:
        # Loaded only here, because registers are scarce in the loop.
        # A draw beyond the last one takes the last one's, which needs fewer registers than a mask.
        last = tl.cast(n_rows - 1 - first_row, tl.int32)
        skip = tl.load(leave_out_ptr + first_row + tl.minimum(lanes, last))
        scores = tl.where(first + within == skip, -float("inf"), scores)
    return scores


@jit
def mixture_forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (D, M) float32, rows z_stride apart, M padded to whole blocks
    mu_ptr,  # (D, N) float32, rows n_stride apart, N padded to whole blocks
    inverse_sigma_ptr,  # like mu_ptr
    log_normaliser_ptr,  # (N,) float64; −inf beyond the components
    highest_ptr,  # (tiles,) float64
    leave_out_ptr,  # (n_rows,) int64; outside [0, N) for none
    top_ptr,  # (splits, n_rows) float32: the largest score
    total_ptr,  # (splits, n_rows) float32: Σ exp(score − top)
    n_rows,
    z_stride,
    n_stride,
    tiles,  # of components
    splits,
    D: tl.constexpr,
    LEAVE_OUT: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    split = (tl.program_id(0) % splits).to(tl.int64)
    first_row = (tl.program_id(0) // splits).to(tl.int64) * BLOCK_M
    shift = shift_jit(highest_ptr, tiles)
    top = tl.full((BLOCK_M, 1), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    for tile in range(split, tiles, splits):
        scores = scores_jit(
            z_ptr, mu_ptr, inverse_sigma_ptr, log_normaliser_ptr, shift, leave_out_ptr, first_row,
            tile * BLOCK_N, n_rows, z_stride, n_stride, D, LEAVE_OUT, SEGMENT, BLOCK_M, BLOCK_N
        )  # fmt: skip
        highest = tl.max(scores, 1)[:, None]
        # This maximum ignores NaN, which reaches the total. −∞ − (−∞) would be NaN although no
        # input is, hence `finite`.
        highest = tl.where(highest > top, highest, top)
        finite = tl.where(highest == -float("inf"), 0.0, highest)
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(scores - finite), 1)[:, None]
        top = highest
    rows = first_row + tl.arange(0, BLOCK_M)[:, None]
    at = split * n_rows + rows
    tl.store(top_ptr + at, top, mask=rows < n_rows)
    tl.store(total_ptr + at, total, mask=rows < n_rows)


@jit
def mixture_backward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    mu_ptr,
    inverse_sigma_ptr,
    log_normaliser_ptr,
    highest_ptr,
    leave_out_ptr,
    top_ptr,  # (n_rows,) float32
    rows_of_z_ptr,  # (M, WIDTH) float32: D is padded to whole blocks, too
    rows_of_mu_ptr,  # (N, WIDTH), likewise
    precision_ptr,  # (N, WIDTH), likewise
    weights_ptr,  # (programs, BLOCK_N, BLOCK_M) float32: where a program stores one tile
    out_ptr,  # (splits, M, WIDTH) float32: Σ exp(score − top)·(z − mu)/σ²
    n_rows,
    z_stride,  # M
    n_stride,
    tiles,
    splits,
    D: tl.constexpr,
    LEAVE_OUT: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Threads exchange weights through memory: for the scores a thread has four components and all
    # dimensions, for the gradient four dimensions and all components. Sixteen draws need nearly all
    # 255 registers. Padding to whole blocks saves the registers of masks and addresses.
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    WIDTH: tl.constexpr = D_BLOCKS * BLOCK_D
    split = (tl.program_id(0) // D_BLOCKS) % splits
    first_row = (tl.program_id(0) // D_BLOCKS // splits).to(tl.int64) * BLOCK_M
    lanes = tl.arange(0, BLOCK_M)[:, None]
    within = tl.arange(0, BLOCK_N)[None, :]
    dims = (tl.program_id(0) % D_BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    weights_ptr += tl.program_id(0).to(tl.int64) * (BLOCK_M * BLOCK_N)
    rows_of_z_ptr += first_row * WIDTH
    out_ptr += (split.to(tl.int64) * z_stride + first_row) * WIDTH
    shift = shift_jit(highest_ptr, tiles)
    for tile in range(split, tiles, splits):
        first = tl.cast(tile, tl.int64) * BLOCK_N
        scores = scores_jit(
            z_ptr, mu_ptr, inverse_sigma_ptr, log_normaliser_ptr, shift, leave_out_ptr, first_row,
            first, n_rows, z_stride, n_stride, D, LEAVE_OUT, SEGMENT, BLOCK_M, BLOCK_N
        )  # fmt: skip
        rows = first_row + lanes
        top = tl.load(top_ptr + rows, mask=rows < n_rows, other=0.0)
        tl.store(weights_ptr + within * BLOCK_M + lanes, tl.exp(scores - top))
        tl.debug_barrier()
        z = tl.load(rows_of_z_ptr + lanes * WIDTH + dims)
        # Between tiles the sum is in the cache: it does not fit in registers beside the scores.
        out = tl.load(out_ptr + lanes * WIDTH + dims, mask=tile > split, other=0.0)
        for n in range(BLOCK_N):
            at = (first + n) * WIDTH + dims
            weight = tl.load(weights_ptr + n * BLOCK_M + lanes)
            out += weight * ((z - tl.load(rows_of_mu_ptr + at)) * tl.load(precision_ptr + at))
        tl.store(out_ptr + lanes * WIDTH + dims, out)
        tl.debug_barrier()


@jit
def mixture_log_prob_kernel(  # type: ignore[no-untyped-def]
    highest_ptr,  # (tiles,) float64
    tops_ptr,  # (splits, n_rows) float32
    totals_ptr,  # (splits, n_rows) float32
    log_q_ptr,  # (n_rows,) float32
    top_ptr,  # (n_rows,) float32: the largest score
    total_ptr,  # (n_rows,) float32: Σ exp(score − top)
    n_rows,
    tiles,
    splits,
    components,  # that a draw's mean is over
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    DRAWS: tl.constexpr,
    HALF_LOG_TWO_PI: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * DRAWS + tl.arange(0, DRAWS)[None, :]
    top = tl.full((1, DRAWS), -float("inf"), tl.float32)
    total = tl.zeros((1, DRAWS), tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)[:, None]
        live = (split < splits) & (rows < n_rows)
        at = split.to(tl.int64) * n_rows + rows
        tops = tl.load(tops_ptr + at, mask=live, other=-float("inf"))
        totals = tl.load(totals_ptr + at, mask=live, other=0.0)
        highest = tl.maximum(top, tl.max(tops, 0)[None, :])
        finite = tl.where(highest == -float("inf"), 0.0, highest)
        total = total * tl.exp(top - finite) + tl.sum(totals * tl.exp(tops - finite), 0)[None, :]
        top = highest
    live = rows < n_rows
    tl.store(top_ptr + rows, top, mask=live)
    tl.store(total_ptr + rows, total, mask=live)
    # The logarithm is of a normal number, or of 0 where the largest score is −∞, or NaN.
    log_total = tl.where(total == total, log_jit(total), total).to(tl.float64)
    log_count = log_jit(tl.cast(components, tl.float32)).to(tl.float64)
    log_q = top.to(tl.float64) + shift_jit(highest_ptr, tiles) + (log_total - log_count)
    tl.store(log_q_ptr + rows, (log_q - HALF_LOG_TWO_PI * D).to(tl.float32), mask=live)


@jit
def mixture_gradient_kernel(  # type: ignore[no-untyped-def]
    sums_ptr,  # (splits, M, WIDTH) float32
    total_ptr,  # (n_rows,) float32
    grad_ptr,  # (n_rows,) float32, elements grad_stride apart
    grad_z_ptr,  # (n_rows, D)
    grad_stride,
    padded_rows,  # M
    splits,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    D_BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = (tl.program_id(0) // D_BLOCKS).to(tl.int64)
    dims = (tl.program_id(0) % D_BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    sums = tl.zeros((SPLITS, BLOCK_D), tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)[:, None]
        at = (split.to(tl.int64) * padded_rows + row) * (D_BLOCKS * BLOCK_D) + dims
        sums += tl.load(sums_ptr + at, mask=(split < splits) & (dims < D), other=0.0)
    weight = -tl.load(grad_ptr + row * grad_stride) / tl.load(total_ptr + row)
    tl.store(grad_z_ptr + row * D + dims, tl.sum(sums, 0)[None, :] * weight, mask=dims < D)


class _Operands(NamedTuple):
    """What the preparing kernel writes."""

    z: Tensor  # (D, M) float32, M padded to whole blocks
    mu: Tensor  # (D, N) float32, N padded to whole blocks
    inverse_sigma: Tensor  # (D, N) float32
    log_normaliser: Tensor  # (N,) float64
    highest: Tensor  # (tiles,) float64
    rows_of_z: Tensor | None  # (M, WIDTH) float32
    rows_of_mu: Tensor | None  # (N, WIDTH) float32
    precision: Tensor | None  # (N, WIDTH) float32


def _prepared(a: Arguments, width: int | None = None) -> _Operands:
    # `width` for backward
    D = a.z.shape[1]
    rows, tiles = whole_blocks(a.z.shape[0], BLOCK_M), blocks_of(a.mu.shape[0], BLOCK_N)
    components = tiles * BLOCK_N

    def empty(*shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return a.z.new_empty(shape, dtype=dtype)

    operands = _Operands(
        empty(D, rows),
        empty(D, components),
        empty(D, components),
        empty(components, dtype=torch.float64),
        empty(tiles, dtype=torch.float64),
        None if width is None else empty(rows, width),
        None if width is None else empty(components, width),
        None if width is None else empty(components, width),
    )
    sizes = (a.z.shape[0], a.mu.shape[0], tiles)
    strides = (*a.z.stride(), *a.mu.stride(), *a.logvar.stride(), rows, components)
    columns = (D, D if width is None else width)
    constants = {
        "BACKWARD": width is not None,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
        "COLUMNS": COLUMNS,
    }
    programs = tiles + blocks_of(rows, BLOCK_N)
    tensors = (a.z, a.mu, a.logvar, *operands)
    run_kernel(
        mixture_prepare_kernel, programs, tensors, (*sizes, *strides, *columns), constants, 8
    )
    return operands


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def blocks_of(count: Any, block: int) -> Any:
    """The number of blocks that hold `count` elements."""
    return -(-count // block)


def whole_blocks(count: Any, block: int) -> Any:
    """`count` rounded up to whole blocks."""
    return blocks_of(count, block) * block


def splits_of(rows: int, tiles: int) -> Any:
    """The number of programs over which a block of draws spreads the components.

    It depends only on sizes, so that results do not depend on the device.
    """
    wanted = -(-PROGRAMS // -(-rows // BLOCK_M))
    return torch.sym_min(wanted, tiles)


def block_d_of(D: int) -> int:
    """The number of dimensions of the gradient that a program computes, a power of two."""
    return min(1 << (D - 1).bit_length(), LARGEST_BLOCK_D)


def forward(a: Arguments) -> Tensors:
    rows, D = a.z.shape
    log_q, top, total = (a.z.new_empty((rows,), dtype=torch.float32) for _ in range(3))
    if rows == 0:
        return log_q, top, total
    of = _prepared(a)
    tiles = of.highest.shape[0]
    splits = splits_of(rows, tiles)
    tops, totals = (a.z.new_empty((splits, rows), dtype=torch.float32) for _ in range(2))
    run_kernel(
        mixture_forward_kernel,
        blocks_of(rows, BLOCK_M) * splits,
        (*of[:5], _contiguous(a.leave_out), tops, totals),
        (rows, of.z.shape[1], of.mu.shape[1], tiles, splits),
        _constants(a),
        1,
    )
    run_kernel(
        mixture_log_prob_kernel,
        blocks_of(rows, BLOCK_M),
        (of.highest, tops, totals, log_q, top, total),
        (rows, tiles, splits, a.mu.shape[0] - (0 if a.leave_out is None else 1)),
        {
            "D": D,
            "SPLITS": SPLITS,
            "DRAWS": BLOCK_M,
            "HALF_LOG_TWO_PI": 0.5 * math.log(2.0 * math.pi),
        },
        4,
    )
    return log_q, top, total


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool]) -> Tensors:
    (grad,), (top, total) = grads, kept
    rows, D = a.z.shape
    grad_z = a.z.new_empty((rows, D))
    if rows == 0:
        return (grad_z,)
    block_d = block_d_of(D)
    d_blocks = blocks_of(D, block_d)
    width = d_blocks * block_d
    of = _prepared(a, width)
    tiles, padded = of.highest.shape[0], of.z.shape[1]
    splits = splits_of(rows, tiles)
    programs = blocks_of(rows, BLOCK_M) * splits * d_blocks
    weights = a.z.new_empty((programs, BLOCK_N, BLOCK_M), dtype=torch.float32)
    sums = a.z.new_empty((splits, padded, width), dtype=torch.float32)
    run_kernel(
        mixture_backward_kernel,
        programs,
        (*of[:5], _contiguous(a.leave_out), top, *of[5:], weights, sums),
        (rows, padded, of.mu.shape[1], tiles, splits),
        _constants(a) | {"BLOCK_D": block_d},
        1,
    )
    run_kernel(
        mixture_gradient_kernel,
        rows * d_blocks,
        (sums, total, grad, grad_z),
        (grad.stride(0), padded, splits),
        {"D": D, "SPLITS": SPLITS, "BLOCK_D": block_d},
        4,
    )
    return (grad_z,)


def _constants(a: Arguments) -> dict[str, Any]:
    return {
        "D": a.z.shape[1],
        "LEAVE_OUT": a.leave_out is not None,
        "SEGMENT": SEGMENT,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
    }
