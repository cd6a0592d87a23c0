"""The mixture's last launches: they add what the programs of the same draws found."""

from __future__ import annotations

from ..backend import jit_with_run_time, tl
from ..scalar import log_jit
from .prepare import shift_jit


@jit_with_run_time("n_rows", "tiles", "splits", "components")
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


@jit_with_run_time("splits")
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
