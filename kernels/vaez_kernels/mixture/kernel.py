"""The mixture's Triton kernels.

A program is one warp with 16 draws and 128 components at a time. A thread has four components,
which it loads at once, and keeps their scores for all draws in registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..backend import jit, tl
from ..define import Tensors
from ..launch import start_kernel
from .twin import SEGMENT, Arguments, log_density, log_normalisers

BLOCK_M, BLOCK_N = 16, 128
LARGEST_BLOCK_D = 128
# With up to 255 registers per thread, an H100 runs eight such warps on each of its 132
# multiprocessors, so this number of programs takes four rounds.
PROGRAMS = 4096


@jit
def scores_jit(  # type: ignore[no-untyped-def]
    z_ptr,
    mu_ptr,
    inverse_sigma_ptr,
    log_normaliser_ptr,
    leave_out_ptr,
    first_row,  # int64
    first,  # component, int64
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
    scores = tl.load(log_normaliser_ptr + first + within) - 0.5 * squares
    if LEAVE_OUT:
        # Loaded only here, because registers are scarce in the loop.
        skip = tl.load(leave_out_ptr + first_row + lanes)
        scores = tl.where(first + within == skip, -float("inf"), scores)
    return scores


@jit
def mixture_forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (D, M) float32, rows z_stride apart, M padded to whole blocks
    mu_ptr,  # (D, N) float32, rows n_stride apart, N padded to whole blocks
    inverse_sigma_ptr,  # like mu_ptr
    log_normaliser_ptr,  # (N,) float32; −inf beyond the components
    leave_out_ptr,  # (M,) int64, M padded to whole blocks; −1 for none
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
    top = tl.full((BLOCK_M, 1), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    for tile in range(split, tiles, splits):
        scores = scores_jit(
            z_ptr, mu_ptr, inverse_sigma_ptr, log_normaliser_ptr, leave_out_ptr, first_row,
            tile * BLOCK_N, z_stride, n_stride, D, LEAVE_OUT, SEGMENT, BLOCK_M, BLOCK_N
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
    leave_out_ptr,
    top_ptr,  # (M,) float32
    rows_of_z_ptr,  # (M, WIDTH) float32: D is padded to whole blocks, too
    rows_of_mu_ptr,  # (N, WIDTH), likewise
    precision_ptr,  # (N, WIDTH), likewise
    weights_ptr,  # (programs, BLOCK_N, BLOCK_M) float32: where a program stores one tile
    out_ptr,  # (splits, M, WIDTH) float32: Σ exp(score − top)·(z − mu)/σ²
    padded_rows,  # M
    z_stride,
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
    out_ptr += (split.to(tl.int64) * padded_rows + first_row) * WIDTH
    for tile in range(split, tiles, splits):
        first = tl.cast(tile, tl.int64) * BLOCK_N
        scores = scores_jit(
            z_ptr, mu_ptr, inverse_sigma_ptr, log_normaliser_ptr, leave_out_ptr, first_row,
            first, z_stride, n_stride, D, LEAVE_OUT, SEGMENT, BLOCK_M, BLOCK_N
        )  # fmt: skip
        top = tl.load(top_ptr + first_row + lanes)
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


class _Prepared(NamedTuple):
    """The kernels' operands: float32, transposed, and padded to whole blocks."""

    z: Tensor  # (D, M)
    mu: Tensor  # (D, N)
    inverse_sigma: Tensor  # (D, N)
    log_normaliser: Tensor  # (N,)
    leave_out: Tensor | None  # (M,)
    shift: Tensor  # float64

    def strides(self) -> tuple[int, int]:
        return self.z.stride(0), self.mu.stride(0)


def _prepared(a: Arguments) -> _Prepared:
    exact, shift = log_normalisers(a.logvar)
    rows, columns = -len_of(a.z) % BLOCK_M, -len_of(a.mu) % BLOCK_N
    # Beyond the components σ = 1, so that z = ∞ has the score −∞ there, as everywhere, not NaN.
    inverse_sigma = pad(torch.exp(-0.5 * a.logvar.float()), (0, 0, 0, columns), value=1.0)
    return _Prepared(
        pad(a.z.float(), (0, 0, 0, rows)).t().contiguous(),
        pad(a.mu.float(), (0, 0, 0, columns)).t().contiguous(),
        inverse_sigma.t().contiguous(),
        pad(exact.float(), (0, columns), value=-torch.inf),
        _in_whole_blocks(a.leave_out, -1),
        shift,
    )


def _in_whole_blocks(x: Tensor | None, value: int) -> Tensor | None:
    # in whole blocks of draws
    return None if x is None else pad(x, (0, -len_of(x) % BLOCK_M), value=value).contiguous()


def len_of(x: Tensor) -> int:
    """The number of rows of x. Unlike with len, tracing does not make it constant."""
    return x.shape[0]


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
    rows = a.z.shape[0]
    if rows == 0:
        return tuple(a.z.new_empty((0,), dtype=torch.float32) for _ in range(3))
    prepared = _prepared(a)
    tiles = prepared.mu.shape[1] // BLOCK_N
    splits = splits_of(rows, tiles)
    tops, totals = (a.z.new_empty((splits, rows), dtype=torch.float32) for _ in range(2))
    args = (*prepared[:5], tops, totals, rows, *prepared.strides(), tiles, splits)
    grid = (-(-rows // BLOCK_M) * splits,)
    start_kernel(mixture_forward_kernel, grid, args, _constants(a), num_warps=1)
    top = tops.amax(0)
    finite = torch.where(top == -torch.inf, 0.0, top)
    total = (totals * torch.exp(tops - finite)).sum(0)
    return log_density(a, top, total, prepared.shift), top, total


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool]) -> Tensors:
    (grad,), (top, total) = grads, kept
    rows, D = a.z.shape
    if rows == 0:
        return (torch.empty_like(a.z),)
    prepared = _prepared(a)
    tiles = prepared.mu.shape[1] // BLOCK_N
    splits = splits_of(rows, tiles)
    block_d = block_d_of(D)
    blocks, d_blocks = -(-rows // BLOCK_M), -(-D // block_d)
    programs, width = blocks * splits * d_blocks, d_blocks * block_d
    components = (0, width - D, 0, -len_of(a.mu) % BLOCK_N)
    out = a.z.new_empty((splits, blocks * BLOCK_M, width), dtype=torch.float32)
    args = (
        *prepared[:5],
        _in_whole_blocks(top, 0),
        pad(a.z.float(), (0, width - D, 0, -rows % BLOCK_M)).contiguous(),
        pad(a.mu.float(), components).contiguous(),
        pad(torch.exp(-a.logvar.float()), components).contiguous(),
        a.z.new_empty((programs, BLOCK_N, BLOCK_M), dtype=torch.float32),
        out,
        blocks * BLOCK_M,
        *(*prepared.strides(), tiles, splits),
    )
    constants = _constants(a) | {"BLOCK_D": block_d}
    start_kernel(mixture_backward_kernel, (programs,), args, constants, num_warps=1)
    return ((out.sum(0)[:rows, :D] * (-grad / total)[:, None]).to(a.z.dtype),)


def _constants(a: Arguments) -> dict[str, Any]:
    return {
        "D": a.z.shape[1],
        "LEAVE_OUT": a.leave_out is not None,
        "SEGMENT": SEGMENT,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
    }
