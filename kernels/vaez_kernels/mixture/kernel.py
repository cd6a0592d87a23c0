"""The mixture's Triton kernels: three launches forward, three backward.

1. The preparing kernel (prepare.py) writes the operands: float32, transposed, in whole blocks.
2. The main kernel spreads draws and components over programs. A program is one warp with 16 draws
   and 128 components at a time. A thread has four components, which it loads at once, and keeps
   their scores for all draws in registers.
3. The last kernel (combine.py) adds what the programs of the same draws found.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import jit, tl
from ..define import Tensors
from ..launch import blocks_of, run_kept
from .combine import mixture_gradient_kernel, mixture_log_prob_kernel
from .prepare import mixture_prepare_kernel, shift_jit
from .twin import SEGMENT, Arguments

BLOCK_M, BLOCK_N = 16, 128
LARGEST_BLOCK_D = 128
# With up to 255 registers per thread, an H100 runs eight such warps on each of its 132
# multiprocessors, so this number of programs takes four rounds.
PROGRAMS = 4096
# Dimensions of a step of the preparing kernel, and splits of a step of the last kernels.
COLUMNS, SPLITS = 8, 16


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
        last = tl.cast(tl.minimum(n_rows - 1 - first_row, BLOCK_M - 1), tl.int32)
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
    # `width`: WIDTH of the copies in rows that backward needs; None for forward
    D = a.z.shape[1]
    tiles = blocks_of(a.mu.shape[0], BLOCK_N)
    rows, components = blocks_of(a.z.shape[0], BLOCK_M) * BLOCK_M, tiles * BLOCK_N

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
        "BLOCK_N": BLOCK_N,
        "COLUMNS": COLUMNS,
    }
    programs = tiles + blocks_of(rows, BLOCK_N)
    tensors = (a.z, a.mu, a.logvar, *operands)
    run_kept(mixture_prepare_kernel, programs, tensors, (*sizes, *strides, *columns), constants, 8)
    return operands


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def splits_of(rows: int, tiles: int) -> Any:
    """The number of programs over which a block of draws spreads the components.

    It depends only on sizes, so that results do not depend on the device.
    """
    wanted = blocks_of(PROGRAMS, blocks_of(rows, BLOCK_M))
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
    run_kept(
        mixture_forward_kernel,
        blocks_of(rows, BLOCK_M) * splits,
        (*of[:5], _contiguous(a.leave_out), tops, totals),
        (rows, of.z.shape[1], of.mu.shape[1], tiles, splits),
        _constants(a),
        1,
    )
    run_kept(
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
    run_kept(
        mixture_backward_kernel,
        programs,
        (*of[:5], _contiguous(a.leave_out), top, *of[5:], weights, sums),
        (rows, padded, of.mu.shape[1], tiles, splits),
        _constants(a) | {"BLOCK_D": block_d},
        1,
    )
    run_kept(
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
