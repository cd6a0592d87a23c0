"""The noise stream's Triton kernel, and the functions with which other kernels draw noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import jit, tl
from ..launch import launch
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
    # With int64 counters Triton would select Philox4x64, without an error.
    low = quad.to(tl.uint32)
    high = (quad >> 32).to(tl.uint32)
    return tl.philox(key, low, high, sample.to(tl.uint32), step.to(tl.uint32))


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
def noise_kernel(  # type: ignore[no-untyped-def]
    noise_ptr,  # (2,) int64
    out_ptr,  # (S, B, D) float32
    n_rows,
    row_offset,
    sample_offset,
    D: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    QUADS: tl.constexpr = (D + 3) // 4
    row_blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    sample = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    key = tl.load(noise_ptr)
    step = tl.load(noise_ptr + 1)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        quads = start // 4 + tl.arange(0, BLOCK_D // 4)
        quad = (rows + row_offset)[:, None] * QUADS + quads[None, :]
        if NORMAL:
            out = normal_jit(key, step, sample + sample_offset, quad, BLOCK_ROWS, BLOCK_D)
        else:
            x0, x1, x2, x3 = words_jit(key, step, sample + sample_offset, quad)
            out = interleave_jit(
                uniform_jit(x0), uniform_jit(x1), uniform_jit(x2), uniform_jit(x3), BLOCK_ROWS,
                BLOCK_D
            )  # fmt: skip
        mask = (rows < n_rows)[:, None] & (columns < D)[None, :]
        offsets = (sample * n_rows + rows)[:, None] * D + columns[None, :]
        tl.store(out_ptr + offsets, out, mask=mask)


def forward(a: Arguments) -> tuple[Tensor]:
    shape = (a.samples, a.rows, a.columns)
    out = torch.empty(shape, dtype=torch.float32, device=a.noise.device)
    if out.numel() > 0:
        launch(
            noise_kernel,
            "noise",
            a.columns,
            lambda block_rows: -(-a.rows // block_rows) * a.samples,
            (a.noise.contiguous(), out, a.rows, a.row_offset, a.sample_offset),
            {"D": a.columns, "NORMAL": a.normal},
        )
    return (out,)
