"""The noise stream's Triton kernel, and the functions with which other kernels draw noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import jit, jit_with_run_time, tl
from ..launch import Launch, Tile, filling, keep, keeps_launches, kept_for, with_tile
from ..scalar import cosine_jit, log_tail_jit, sine_jit
from .twin import Arguments


@jit
def uniform_jit(x):  # type: ignore[no-untyped-def]  # uint32 → float32
    u = (x.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return tl.minimum(u, 0.999999940395355224609375)


@jit
def radius_jit(x):  # type: ignore[no-untyped-def]  # uint32 → √(−2 ln u(x))
    near_one = x >= 3037000500
    u = (tl.where(near_one, x ^ 0xFFFFFFFF, x).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    f = tl.where(near_one, -u, mantissa - 1.0)
    e = tl.where(near_one, 0.0, exponent.to(tl.float32))
    f2 = f * f
    log_u = f * f2 * log_tail_jit(f) - 0.5 * f2 + f + e * 0.6931471805599453
    return tl.sqrt(-2.0 * log_u)


@jit
def cos_sin_jit(x):  # type: ignore[no-untyped-def]  # uint32 → cos, sin of 2πu(x)
    shifted = x + 0x20000000
    quadrant = shifted >> 30
    a = ((shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * 1.4629180792671596e-09
    c = cosine_jit(a)
    s = sine_jit(a)
    odd = (quadrant & 1) != 0
    x_axis = tl.where(odd, s, c)
    y_axis = tl.where(odd, c, s)
    x_axis = tl.where(((quadrant + 1) & 2) != 0, -x_axis, x_axis)
    return x_axis, tl.where((quadrant & 2) != 0, -y_axis, y_axis)


@jit
def words_jit(key, step, sample, quad):  # type: ignore[no-untyped-def]  # quad: int64 counter
    """Philox4x32-10, whose ten rounds are written out.

    `tl.philox` computes the high and the low word of each product separately. One product of
    64 bits (IMAD.WIDE) gives both.
    """
    c0 = quad.to(tl.uint32)
    c1 = (quad >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + sample.to(tl.uint32)
    c3 = tl.zeros_like(c0) + step.to(tl.uint32)
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = k0 + tl.cast(0x9E3779B9, tl.uint32)
        k1 = k1 + tl.cast(0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@jit
def interleave_jit(a, b, c, d, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    # (rows, quads) four times → (rows, columns), in registers
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_ROWS, BLOCK_D))


@jit
def normal_jit(  # type: ignore[no-untyped-def]
    key, step, sample, quad, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # quad (BLOCK_ROWS, BLOCK_D / 4) → (BLOCK_ROWS, BLOCK_D)
    x0, x1, x2, x3 = words_jit(key, step, sample, quad)
    r0 = radius_jit(x0)
    r1 = radius_jit(x2)
    c0, s0 = cos_sin_jit(x1)
    c1, s1 = cos_sin_jit(x3)
    return interleave_jit(r0 * c0, r0 * s0, r1 * c1, r1 * s1, BLOCK_ROWS, BLOCK_D)


@jit
def normal_at_jit(key, step, sample, quad, lane):  # type: ignore[no-untyped-def]
    """The normals of a tile whose columns do not form quads: number `lane` of each quad."""
    x0, x1, x2, x3 = words_jit(key, step, sample, quad)
    second = lane >= 2
    r = radius_jit(tl.where(second, x2, x0))
    c, s = cos_sin_jit(tl.where(second, x3, x1))
    return r * tl.where(lane % 2 == 0, c, s)


@jit_with_run_time("n_rows", "n_columns", "row_offset", "sample_offset")
def noise_kernel(  # type: ignore[no-untyped-def]
    noise_ptr,  # (2,) int64
    out_ptr,  # (S, B, D) float32
    n_rows,
    n_columns,  # in units
    row_offset,
    sample_offset,
    UNIT: tl.constexpr,
    NORMAL: tl.constexpr,
    ONE_COLUMN: tl.constexpr,  # whether a tile is as wide as a row
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns = n_columns * UNIT
    # Column blocks vary fastest, then blocks of rows, and samples.
    tile = tl.program_id(0)
    start = 0
    if not ONE_COLUMN:
        column_blocks = tl.cdiv(columns, BLOCK_D)
        start = (tile % column_blocks) * BLOCK_D
        tile = tile // column_blocks
    row_blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    sample = (tile // row_blocks).to(tl.int64)
    rows = (tile % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    key = tl.load(noise_ptr)
    step = tl.load(noise_ptr + 1)
    column = start + tl.arange(0, BLOCK_D)
    quads = start // 4 + tl.arange(0, BLOCK_D // 4)
    quad = (rows + row_offset)[:, None] * tl.cdiv(columns, 4) + quads[None, :]
    if NORMAL:
        out = normal_jit(key, step, sample + sample_offset, quad, BLOCK_ROWS, BLOCK_D)
    else:
        x0, x1, x2, x3 = words_jit(key, step, sample + sample_offset, quad)
        out = interleave_jit(
            uniform_jit(x0), uniform_jit(x1), uniform_jit(x2), uniform_jit(x3), BLOCK_ROWS, BLOCK_D
        )
    mask = (rows < n_rows)[:, None] & (column < columns)[None, :]
    at = (sample * n_rows + rows)[:, None] * columns + column[None, :]
    tl.store(out_ptr + at, out, mask=mask)


def forward(a: Arguments) -> tuple[Tensor]:
    shape = (a.samples, a.rows, a.columns)
    out = torch.empty(shape, dtype=torch.float32, device=a.noise.device)
    if out.numel() == 0:
        return (out,)
    noise = a.noise.contiguous()
    key = ("noise", noise.device, *a[1:]) if keeps_launches(noise) else None
    found = kept_for(key)
    if found is not None:
        found.again(noise, out)
        return (out,)
    unit = 4 if a.columns % 4 == 0 else 1

    def run(tile: Tile) -> None:
        block = tile.block(a.columns)
        row_blocks = -(-a.rows // block["BLOCK_ROWS"])
        column_blocks = -(-a.columns // block["BLOCK_D"])
        launch = Launch(
            noise_kernel,
            (a.samples * row_blocks * column_blocks,),
            (a.rows, a.columns // unit, a.row_offset, a.sample_offset),
            {"UNIT": unit, "NORMAL": a.normal, "ONE_COLUMN": column_blocks == 1} | block,
            tile.num_warps,
        )
        if key is not None:
            keep(key, launch)
        launch(noise, out)

    usual = filling(out.numel(), a.noise)
    with_tile("noise", (a.columns, a.normal), (noise, out), usual, run)
    return (out,)
