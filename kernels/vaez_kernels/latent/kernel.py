"""The latent op's Triton kernels. Constexpr flags: whether z is written, and which KL is summed.

A program computes a tile of lines × positions. Lines are the rows of the batch, and positions their
D columns. Where channels come last in memory, and for a KL of each channel, lines are the channels
of one row instead. All lengths and strides are run-time numbers, so that one binary serves every
batch size and every long row. To let the compiler see that accesses of 128 bits are aligned, they
are passed in units of `UNIT` elements.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import jit, jit_with_run_time, tl
from ..define import Tensors
from ..launch import Launch, Tile, filling, keep, kept_for, with_tile
from ..noise.kernel import normal_at_jit, normal_jit
from ..scalar import excess_jit, expm1_jit, sigma_jit
from .formulas import MONTE_CARLO, Needs
from .geometry import Geometry, Lines, dense, prepared, strides_of
from .layout import empty_like, merged_stride, readable
from .plans import Plan, key_of
from .twin import KLS, Arguments

# Samples of its rows that one program draws at most; more samples are spread over programs.
SAMPLES_PER_PROGRAM = 8
# What the kernels sum the KL over: a line's positions, nothing, or the lines of a tile.
OVER = ("positions", "nothing", "lines")

# The integers for whose values the kernels are not compiled again.
LENGTHS = (
    "n_outer", "n_lines", "n_positions", "row_quads", "num_samples", "row_offset", "sample_offset",
)  # fmt: skip
INPUTS = ("mu", "logvar", "prior_mu", "prior_logvar")


def _strides(*tensors: str) -> tuple[str, ...]:
    return tuple(f"{name}_{along}" for name in tensors for along in ("outer", "line", "position"))


@jit
def tile_jit(  # type: ignore[no-untyped-def]
    ptr, outer, line, column, by_outer, by_line, by_column,
    STEP: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Pointers (BLOCK_ROWS, BLOCK_D) to the elements of a tile.

    Its first element is at `line` and `column`. Only that element's offset has 64 bits: two
    registers for the offset of every element would take a fifth of the warps. `geometry.near`
    ensures that 32 bits suffice.
    """
    lines = tl.arange(0, BLOCK_ROWS)[:, None]
    columns = tl.arange(0, BLOCK_D)[None, :]
    first = outer * tl.cast(by_outer, tl.int64)
    along_lines = tl.cast(by_line, tl.int64)
    along_columns = tl.cast(by_column, tl.int64)
    if STEP == 1:
        first = first * UNIT + line * (along_lines * UNIT) + column
        return ptr + first + (lines * (by_line * UNIT) + columns)
    if STEP == 2:
        first = first * UNIT + line + column * (along_columns * UNIT)
        return ptr + first + (lines + columns * (by_column * UNIT))
    first += line * along_lines + column * along_columns
    return ptr + first + (lines * by_line + columns * by_column)


@jit
def eps_jit(  # type: ignore[no-untyped-def]
    key, step, sample, outer, lines, first, positions, row_quads, row_offset,
    ROWS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The normals of a tile whose first position is `first`: (BLOCK_ROWS, BLOCK_D)."""
    quads = first // 4 + tl.arange(0, BLOCK_D // 4)[None, :]
    if ROWS:
        quad = (lines + row_offset) * row_quads + quads
        return normal_jit(key, step, sample, quad, BLOCK_ROWS, BLOCK_D)
    row_at = (outer + row_offset) * tl.cast(row_quads, tl.int64)
    if WHOLE:  # each channel starts with a quad of its own
        quad = row_at + lines * (positions // 4) + quads
        return normal_jit(key, step, sample, quad, BLOCK_ROWS, BLOCK_D)
    column = lines * positions + (first + tl.arange(0, BLOCK_D))[None, :]
    return normal_at_jit(key, step, sample, row_at + column // 4, column % 4)


@jit_with_run_time(*LENGTHS, *_strides(*INPUTS, "z"))
def latent_forward_kernel(  # type: ignore[no-untyped-def]
    mu_ptr,  # (outer, lines, positions), and so are the other tensors
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    noise_ptr,  # (2,) int64
    z_ptr,  # (S, outer, lines, positions)
    kl_ptr,  # float32: sums of tiles over `OVER`, or the KL of each element
    n_outer,
    n_lines,
    n_positions,  # in units; n_lines too, if lines are side by side in memory
    row_quads,
    num_samples,
    row_offset,
    sample_offset,
    scale,  # 1 / S for a Monte Carlo KL
    low,
    high,
    free_bits,
    mu_outer,
    mu_line,
    mu_position,
    logvar_outer,
    logvar_line,
    logvar_position,
    prior_mu_outer,
    prior_mu_line,
    prior_mu_position,
    prior_logvar_outer,
    prior_logvar_line,
    prior_logvar_position,
    z_outer,
    z_line,
    z_position,
    MU: tl.constexpr,  # which stride is 1, for each tensor
    LOGVAR: tl.constexpr,
    PRIOR_MU: tl.constexpr,
    PRIOR_LOGVAR: tl.constexpr,
    Z: tl.constexpr,
    UNIT: tl.constexpr,
    LINE_UNIT: tl.constexpr,
    ROWS: tl.constexpr,  # whether lines are the rows of the batch
    WHOLE: tl.constexpr,  # whether each line starts with a quad of the noise
    WRITE_Z: tl.constexpr,
    KL: tl.constexpr,
    OVER: tl.constexpr,
    PRIOR: tl.constexpr,
    CLAMP: tl.constexpr,
    FREE: tl.constexpr,
    ONE_SAMPLE: tl.constexpr,
    SAMPLES: tl.constexpr,
    ONE_COLUMN: tl.constexpr,  # whether a tile is as wide as a line
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    positions = n_positions * UNIT
    n_lines = n_lines * LINE_UNIT
    scale = tl.cast(scale, tl.float32)  # inductor passes Python's floats as float64
    # Column blocks vary fastest, then blocks of samples, of lines, and rows.
    tile = tl.program_id(0)
    column_block = 0
    if not ONE_COLUMN:
        column_blocks = tl.cdiv(positions, BLOCK_D)
        column_block = tile % column_blocks
        tile = tile // column_blocks
    sample_block = tl.cast(0, tl.int64)
    if not ONE_SAMPLE:
        sample_blocks = tl.cdiv(num_samples, SAMPLES)
        sample_block = (tile % sample_blocks).to(tl.int64)
        tile = tile // sample_blocks
    outer = tl.cast(0, tl.int64)
    if not ROWS:
        line_blocks = tl.cdiv(n_lines, BLOCK_ROWS)
        outer = (tile // line_blocks).to(tl.int64)
        tile = tile % line_blocks
    first_line = tile.to(tl.int64) * BLOCK_ROWS
    line = first_line + tl.arange(0, BLOCK_ROWS)
    lines = line[:, None]
    start = column_block * BLOCK_D
    column = start + tl.arange(0, BLOCK_D)
    columns = column[None, :]
    mask = (lines < n_lines) & (columns < positions)

    at = tile_jit(
        mu_ptr, outer, first_line, start, mu_outer, mu_line, mu_position, MU, UNIT, BLOCK_ROWS,
        BLOCK_D
    )  # fmt: skip
    mu = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = tile_jit(
        logvar_ptr, outer, first_line, start, logvar_outer, logvar_line, logvar_position, LOGVAR,
        UNIT, BLOCK_ROWS, BLOCK_D
    )  # fmt: skip
    logvar = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if CLAMP:
        logvar = tl.where(logvar < tl.cast(low, tl.float32), tl.cast(low, tl.float32), logvar)
        logvar = tl.where(logvar > tl.cast(high, tl.float32), tl.cast(high, tl.float32), logvar)
    if PRIOR:
        at = tile_jit(
            prior_mu_ptr, outer, first_line, start, prior_mu_outer, prior_mu_line,
            prior_mu_position, PRIOR_MU, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        prior_mu = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        at = tile_jit(
            prior_logvar_ptr, outer, first_line, start, prior_logvar_outer, prior_logvar_line,
            prior_logvar_position, PRIOR_LOGVAR, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        prior_logvar = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        # KL(q ‖ p) is that of (mu − prior_mu)/σ_p and logvar − prior_logvar to N(0, I).
        inverse = sigma_jit(-prior_logvar)
        distance = (mu - prior_mu) * inverse
        ratio = logvar - prior_logvar
    else:
        distance = mu
        ratio = logvar

    if WRITE_Z or KL > 1:
        key = tl.load(noise_ptr)
        step = tl.load(noise_ptr + 1)
        sigma = sigma_jit(logvar)
        first = sample_block * SAMPLES
        last = first + 1
        if not ONE_SAMPLE:
            last = tl.minimum(first + SAMPLES, num_samples)
        if KL > 1:
            kl = (first - last).to(tl.float32) * ratio
        plane = n_outer * tl.cast(n_lines, tl.int64) * positions
        for s in range(first, last):
            sample = tl.cast(s, tl.int64)
            eps = eps_jit(
                key, step, sample + sample_offset, outer, lines, start, positions, row_quads,
                row_offset, ROWS, WHOLE, BLOCK_ROWS, BLOCK_D
            )  # fmt: skip
            z = mu + sigma * eps
            if WRITE_Z:
                z_at = tile_jit(
                    z_ptr + sample * plane, outer, first_line, start, z_outer, z_line, z_position,
                    Z, UNIT, BLOCK_ROWS, BLOCK_D
                )  # fmt: skip
                tl.store(z_at, z.to(z_ptr.dtype.element_ty), mask=mask)
            if KL > 1:
                # Beyond the edge mu = logvar = 0, hence z = eps and the term is 0.
                scaled = z
                if PRIOR:
                    scaled = (z - prior_mu) * inverse
                kl += (scaled - eps) * (scaled + eps)
        if KL > 1:
            kl *= 0.5 * scale
    # With the analytic KL before the samples, triton 3.8 would use 54 registers on sm_90, not 40.
    if KL == 1:
        kl = 0.5 * (distance * distance + excess_jit(ratio))
        if FREE:
            kl = tl.where(kl < tl.cast(free_bits, tl.float32), tl.cast(free_bits, tl.float32), kl)

    if KL > 0:
        # Every block of samples has the same analytic KL, so only the first one writes it.
        writes = (KL > 1) | (sample_block == 0)
        if CLAMP or FREE:  # a KL of 0 beyond the edge would be clamped, too
            kl = tl.where(mask, kl, 0.0)
        part = sample_block * tl.cdiv(positions, BLOCK_D) + column_block
        if OVER == 0:
            sums = tl.sum(kl, 1)
            at = (part * n_outer + outer) * n_lines + line
            tl.store(kl_ptr + at, sums, mask=(line < n_lines) & writes)
        if OVER == 1:
            plane = n_outer * tl.cast(n_lines, tl.int64) * positions
            at = tile_jit(
                kl_ptr + sample_block * plane, outer, first_line, start, z_outer, z_line,
                z_position, Z, UNIT, BLOCK_ROWS, BLOCK_D
            )  # fmt: skip
            tl.store(at, kl, mask=mask & writes)
        if OVER == 2:
            sums = tl.sum(kl, 0)
            at = (sample_block * tl.cdiv(n_lines, BLOCK_ROWS) + tile) * positions + column
            tl.store(kl_ptr + at, sums, mask=(column < positions) & writes)


@jit_with_run_time(*LENGTHS[1:], *_strides(*INPUTS, "grad_z", "out", "grad_kl"), "grad_z_sample")
def latent_backward_kernel(  # type: ignore[no-untyped-def]
    grad_z_ptr,  # (S, outer, lines, positions)
    grad_kl_ptr,  # float32 (outer, lines, positions), mostly with strides of 0
    mu_ptr,
    logvar_ptr,
    prior_mu_ptr,
    prior_logvar_ptr,
    noise_ptr,
    grad_mu_ptr,
    grad_logvar_ptr,
    grad_prior_mu_ptr,
    grad_prior_logvar_ptr,
    n_lines,
    n_positions,
    row_quads,
    num_samples,
    row_offset,
    sample_offset,
    scale,
    low,
    high,
    free_bits,
    mu_outer,
    mu_line,
    mu_position,
    logvar_outer,
    logvar_line,
    logvar_position,
    prior_mu_outer,
    prior_mu_line,
    prior_mu_position,
    prior_logvar_outer,
    prior_logvar_line,
    prior_logvar_position,
    grad_z_outer,
    grad_z_line,
    grad_z_position,
    out_outer,  # of all gradients
    out_line,
    out_position,
    grad_z_sample,  # in units
    grad_kl_outer,
    grad_kl_line,
    grad_kl_position,
    MU: tl.constexpr,
    LOGVAR: tl.constexpr,
    PRIOR_MU: tl.constexpr,
    PRIOR_LOGVAR: tl.constexpr,
    UPSTREAM: tl.constexpr,  # grad_z
    OUT: tl.constexpr,
    UNIT: tl.constexpr,
    LINE_UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    GRAD_Z: tl.constexpr,
    KL: tl.constexpr,
    OVER: tl.constexpr,
    PRIOR: tl.constexpr,
    CLAMP: tl.constexpr,
    FREE: tl.constexpr,
    NEED_MU: tl.constexpr,
    NEED_LOGVAR: tl.constexpr,
    NEED_PRIOR_MU: tl.constexpr,
    NEED_PRIOR_LOGVAR: tl.constexpr,
    ONE_SAMPLE: tl.constexpr,
    ONE_COLUMN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Which values the wanted gradients depend on.
    NEED_PRIOR: tl.constexpr = NEED_PRIOR_MU or NEED_PRIOR_LOGVAR
    ALL: tl.constexpr = KL > 1 or (KL == 1 and (FREE or NEED_PRIOR))
    DISTANCE: tl.constexpr = ALL or (KL == 1 and NEED_MU)
    RATIO: tl.constexpr = ALL or (KL == 1 and NEED_LOGVAR)
    DRAW: tl.constexpr = KL > 1 or (GRAD_Z and NEED_LOGVAR)
    positions = n_positions * UNIT
    n_lines = n_lines * LINE_UNIT
    scale = tl.cast(scale, tl.float32)
    tile = tl.program_id(0)
    column_block = 0
    if not ONE_COLUMN:
        column_blocks = tl.cdiv(positions, BLOCK_D)
        column_block = tile % column_blocks
        tile = tile // column_blocks
    outer = tl.cast(0, tl.int64)
    if not ROWS:
        line_blocks = tl.cdiv(n_lines, BLOCK_ROWS)
        outer = (tile // line_blocks).to(tl.int64)
        tile = tile % line_blocks
    first_line = tile.to(tl.int64) * BLOCK_ROWS
    line = first_line + tl.arange(0, BLOCK_ROWS)
    lines = line[:, None]
    start = column_block * BLOCK_D
    columns = (start + tl.arange(0, BLOCK_D))[None, :]
    mask = (lines < n_lines) & (columns < positions)

    if DISTANCE:
        at = tile_jit(
            mu_ptr, outer, first_line, start, mu_outer, mu_line, mu_position, MU, UNIT, BLOCK_ROWS,
            BLOCK_D
        )  # fmt: skip
        distance = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if RATIO or DRAW or NEED_LOGVAR:
        at = tile_jit(
            logvar_ptr, outer, first_line, start, logvar_outer, logvar_line, logvar_position,
            LOGVAR, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        logvar = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        if CLAMP:
            least = tl.cast(low, tl.float32)
            most = tl.cast(high, tl.float32)
            inside = (logvar >= least) & (logvar <= most)
            logvar = tl.where(logvar < least, least, logvar)
            logvar = tl.where(logvar > most, most, logvar)
        sigma = sigma_jit(logvar)
        ratio = logvar
    if PRIOR and DISTANCE:
        at = tile_jit(
            prior_mu_ptr, outer, first_line, start, prior_mu_outer, prior_mu_line,
            prior_mu_position, PRIOR_MU, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        distance -= tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if PRIOR and KL > 0:
        at = tile_jit(
            prior_logvar_ptr, outer, first_line, start, prior_logvar_outer, prior_logvar_line,
            prior_logvar_position, PRIOR_LOGVAR, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        prior_logvar = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        inverse = sigma_jit(-prior_logvar)
        if RATIO:
            ratio = ratio - prior_logvar
    if PRIOR and DISTANCE:
        distance *= inverse  # (mu − prior_mu) / σ_p
    if KL > 0:
        if OVER == 0:
            at = outer * grad_kl_outer + line * grad_kl_line
            grad_kl = tl.load(grad_kl_ptr + at, mask=line < n_lines, other=0.0)[:, None]
        else:
            at = outer * grad_kl_outer + lines * grad_kl_line + columns * grad_kl_position
            grad_kl = tl.load(grad_kl_ptr + at, mask=mask, other=0.0)
        if FREE:
            kl = 0.5 * (distance * distance + excess_jit(ratio))
            grad_kl = tl.where(kl < tl.cast(free_bits, tl.float32), 0.0, grad_kl)

    grad_mu = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    grad_logvar = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    grad_prior_mu = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    grad_prior_logvar = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    if KL > 1:
        # The derivative of log q(z) − log p(z) by z is level + slope·eps.
        level = distance
        slope = sigma
        if PRIOR:
            level = distance * inverse
            spread = sigma * inverse
            slope = spread * inverse
        if KL == 3:
            slope -= 1.0 / sigma
    if DRAW:
        key = tl.load(noise_ptr)
        step = tl.load(noise_ptr + 1)
    if GRAD_Z or KL > 1:
        last = tl.cast(1, tl.int32)
        if not ONE_SAMPLE:
            last = num_samples
        for s in range(last):
            sample = tl.cast(s, tl.int64)
            along_z = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
            if GRAD_Z:
                plane = sample * (tl.cast(grad_z_sample, tl.int64) * UNIT)
                grad_z_at = tile_jit(
                    grad_z_ptr + plane, outer, first_line, start, grad_z_outer, grad_z_line,
                    grad_z_position, UPSTREAM, UNIT, BLOCK_ROWS, BLOCK_D
                )  # fmt: skip
                along_z += tl.load(grad_z_at, mask=mask, other=0.0).to(tl.float32)
            if DRAW:
                eps = eps_jit(
                    key, step, sample + sample_offset, outer, lines, start, positions, row_quads,
                    row_offset, ROWS, WHOLE, BLOCK_ROWS, BLOCK_D
                )  # fmt: skip
            if KL > 1:
                along_z += (scale * grad_kl) * (level + slope * eps)
                if NEED_PRIOR:
                    scaled = distance + spread * eps  # (z − prior_mu) / σ_p
                    grad_prior_mu -= scaled
                    grad_prior_logvar += 1.0 - scaled * scaled
            grad_mu += along_z
            if DRAW:
                grad_logvar += along_z * eps
    if NEED_LOGVAR and DRAW:  # otherwise grad_logvar is 0, and 0·∞ would be NaN
        grad_logvar *= 0.5 * sigma
    if KL == 2:
        grad_logvar -= 0.5 * grad_kl
    if KL == 1:
        if DISTANCE:
            slope = grad_kl * distance
            if PRIOR:
                slope *= inverse
            grad_mu += slope
            grad_prior_mu -= slope
        if RATIO:
            grad_logvar += grad_kl * (0.5 * expm1_jit(ratio))
        if NEED_PRIOR_LOGVAR:
            grad_prior_logvar -= (0.5 * grad_kl) * (distance * distance + expm1_jit(ratio))
    if KL > 1 and NEED_PRIOR:
        grad_prior_mu *= scale * grad_kl * inverse
        grad_prior_logvar *= 0.5 * scale * grad_kl

    if NEED_MU:
        at = tile_jit(
            grad_mu_ptr, outer, first_line, start, out_outer, out_line, out_position, OUT, UNIT,
            BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        tl.store(at, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=mask)
    if NEED_LOGVAR:
        if CLAMP:
            grad_logvar = tl.where(inside, grad_logvar, 0.0)
        at = tile_jit(
            grad_logvar_ptr, outer, first_line, start, out_outer, out_line, out_position, OUT, UNIT,
            BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        tl.store(at, grad_logvar.to(grad_logvar_ptr.dtype.element_ty), mask=mask)
    if NEED_PRIOR_MU:
        at = tile_jit(
            grad_prior_mu_ptr, outer, first_line, start, out_outer, out_line, out_position,
            OUT, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        tl.store(at, grad_prior_mu.to(grad_prior_mu_ptr.dtype.element_ty), mask=mask)
    if NEED_PRIOR_LOGVAR:
        at = tile_jit(
            grad_prior_logvar_ptr, outer, first_line, start, out_outer, out_line, out_position,
            OUT, UNIT, BLOCK_ROWS, BLOCK_D
        )  # fmt: skip
        tl.store(at, grad_prior_logvar.to(grad_prior_logvar_ptr.dtype.element_ty), mask=mask)


def _over(a: Arguments, lines: Lines) -> int:
    if a.reduce == "batch-mean" and lines.rows:
        return OVER.index("lines")
    return OVER.index("positions" if a.reduce in ("sum", "channels") else "nothing")


def forward(a: Arguments) -> Tensors:
    key = key_of(a)
    plan = kept_for(key)
    if plan is not None:
        return _forward(a, plan, plan.launch.again)
    given, (a, lines, _) = a, prepared(a, None)
    geometry = _forward_geometry(a, lines)

    def run(tile: Tile) -> Tensors:
        plan = _forward_plan(a, lines, geometry, tile)
        if key is not None and _same_tensors(given, a):
            keep(key, plan)
        return _forward(a, plan, plan.launch)

    case = (lines.positions, *geometry.constants.items())
    usual = filling(lines.outer * lines.lines * lines.positions, a.mu)
    return with_tile("latent_forward", case, (a.mu, a.logvar), usual, run)


def _forward_geometry(a: Arguments, lines: Lines) -> Geometry:
    events = a.mu.dim() - 1
    geometry = Geometry.of(
        a,
        lines,
        MU=strides_of(a.mu, lines, events),
        LOGVAR=strides_of(a.logvar, lines, events),
        PRIOR_MU=strides_of(a.prior_mu, lines, events),
        PRIOR_LOGVAR=strides_of(a.prior_logvar, lines, events),
        Z=dense(a.mu, lines),
    )
    samples = SAMPLES_PER_PROGRAM if a.draws and a.num_samples > 1 else a.num_samples
    return geometry.with_constants(
        WRITE_Z=a.write_z,
        KL=KLS.index(a.kl),
        OVER=_over(a, lines),
        PRIOR=a.prior_mu is not None and a.kl != "none",
        SAMPLES=samples,
    )


def _forward_plan(a: Arguments, lines: Lines, geometry: Geometry, tile: Tile) -> Plan:
    block, constants = lines.block(tile), geometry.constants
    line_blocks = -(-lines.lines // block["BLOCK_ROWS"])
    column_blocks = -(-lines.positions // block["BLOCK_D"])
    sample_blocks = -(-a.num_samples // constants["SAMPLES"])
    parts = sample_blocks if a.kl in MONTE_CARLO else 1
    over = OVER[constants["OVER"]]
    sums: tuple[int, ...] = (parts,)
    if over == "positions" and lines.rows and parts * column_blocks == 1:
        sums = (lines.lines,)
    elif over == "positions":
        sums = (parts * column_blocks, lines.outer, lines.lines)
    elif over == "lines":
        sums = (parts * line_blocks, lines.positions)
    launch = Launch(
        latent_forward_kernel,
        (lines.outer * line_blocks * sample_blocks * column_blocks,),
        (lines.outer, *geometry.numbers, *geometry.strides[:-1]),
        constants | block | {"ONE_COLUMN": column_blocks == 1},
        tile.num_warps,
    )
    return Plan(launch, lines, sums)


def _forward(a: Arguments, plan: Plan, start: Callable[..., None]) -> Tensors:
    z = empty_like(a.mu, a.num_samples) if a.write_z else a.mu.new_empty((0,))
    if a.kl == "none":
        sums = a.mu.new_empty((0,), dtype=torch.float32)
    elif OVER[_over(a, plan.lines)] == "nothing":
        sums = empty_like(a.mu, *plan.sums, dtype=torch.float32)
    else:
        sums = a.mu.new_empty(plan.sums, dtype=torch.float32)
    if a.mu.numel() > 0:
        start(a.mu, a.logvar, *_or(a.mu, a.prior_mu, a.prior_logvar), a.noise, z, sums)
    return z, sums if a.kl == "none" else _reduced(sums, a, plan.lines), None


def _same_tensors(given: Arguments, a: Arguments) -> bool:
    # A plan for a copy of a tensor would be wrong for the tensor itself.
    return all(x is y for x, y in zip(given[:5], a[:5], strict=True))


def _or(default: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    # A kernel does not read a tensor that is absent, but takes a pointer for it.
    return tuple(default if x is None else x for x in tensors)


def _reduced(parts: Tensor, a: Arguments, lines: Lines) -> Tensor:
    """The KL from the sums of the programs, the first dimension being the programs."""
    if a.mu.numel() == 0 and a.reduce != "batch-mean":
        shapes = {"sum": a.mu.shape[:1], "channels": a.mu.shape[:2], "none": a.mu.shape}
        return parts.new_empty(shapes[a.reduce])
    if parts.dim() == 1:
        return parts
    kl = parts[0] if len(parts) == 1 else parts.sum(0)
    if a.reduce == "batch-mean":
        rows = a.mu.shape[0]
        return (kl / rows).view(a.mu.shape[1:]) if lines.rows else kl.mean(0)
    if a.reduce == "none":
        return kl
    if lines.rows:
        return kl[0]
    return kl if a.reduce == "channels" else kl.sum(1)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: Needs) -> Tensors:
    grad_z, grad_kl = grads
    # The gradient of a KL of each element may be copied before the kernel reads it.
    same = grad_kl is None or a.reduce in ("sum", "channels")
    key = key_of(a, grad_z, grad_kl, needs=needs) if same else None
    plan = kept_for(key)
    if plan is not None:
        return _backward(a, grad_z, grad_kl, needs, plan.launch.again)
    if a.mu.numel() == 0:
        return _gradients(a, needs)
    given, given_z, (a, lines, grad_z) = a, grad_z, prepared(a, grad_z)
    of_kl, by_kl = _upstream(grad_kl, a, lines)
    geometry = _backward_geometry(a, lines, grad_z, grad_kl, needs)

    def run(tile: Tile) -> Tensors:
        plan = _backward_plan(lines, geometry, by_kl, tile)
        if key is not None and given_z is grad_z and _same_tensors(given, a):
            keep(key, plan)
        return _backward(a, grad_z, of_kl, needs, plan.launch)

    case = (lines.positions, *geometry.constants.items())
    usual = filling(lines.outer * lines.lines * lines.positions, a.mu)
    return with_tile("latent_backward", case, (a.mu, a.logvar), usual, run)


def _backward_geometry(
    a: Arguments, lines: Lines, grad_z: Tensor | None, grad_kl: Tensor | None, needs: Needs
) -> Geometry:
    prior = a.prior_mu is not None and grad_kl is not None
    events = a.mu.dim() - 1
    geometry = Geometry.of(
        a,
        lines,
        0 if grad_z is None else grad_z.stride(0),
        MU=strides_of(a.mu, lines, events),
        LOGVAR=strides_of(a.logvar, lines, events),
        PRIOR_MU=strides_of(a.prior_mu, lines, events),
        PRIOR_LOGVAR=strides_of(a.prior_logvar, lines, events),
        UPSTREAM=strides_of(grad_z, lines, events),
        OUT=dense(a.mu, lines),
    )
    return geometry.with_constants(
        GRAD_Z=grad_z is not None,
        KL=KLS.index(a.kl) if grad_kl is not None else 0,
        OVER=_over(a, lines),
        PRIOR=prior,
        NEED_MU=needs[0],
        NEED_LOGVAR=needs[1],
        NEED_PRIOR_MU=needs[2] and prior,
        NEED_PRIOR_LOGVAR=needs[3] and prior,
    )


def _backward_plan(
    lines: Lines, geometry: Geometry, by_kl: tuple[int, int, int], tile: Tile
) -> Plan:
    block = lines.block(tile)
    line_blocks = -(-lines.lines // block["BLOCK_ROWS"])
    column_blocks = -(-lines.positions // block["BLOCK_D"])
    launch = Launch(
        latent_backward_kernel,
        (lines.outer * line_blocks * column_blocks,),
        (*geometry.numbers, *geometry.strides, *by_kl),
        geometry.constants | block | {"ONE_COLUMN": column_blocks == 1},
        tile.num_warps,
    )
    return Plan(launch, lines, ())


def _backward(
    a: Arguments,
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    needs: Needs,
    start: Callable[..., None],
) -> Tensors:
    found = _gradients(a, needs)
    start(
        *_or(a.mu, grad_z, grad_kl, a.mu, a.logvar, a.prior_mu, a.prior_logvar),
        *(a.noise, *_or(a.mu, *found)),
    )
    return found


def _gradients(a: Arguments, needs: Needs) -> Tensors:
    return tuple(
        empty_like(a.mu, dtype=x.dtype) if need and x is not None else None
        for x, need in zip(a[:4], needs, strict=True)
    )


def _upstream(
    grad_kl: Tensor | None, a: Arguments, lines: Lines
) -> tuple[Tensor | None, tuple[int, int, int]]:
    """The KL's gradient as the kernel reads it, and its strides (outer, line, position)."""
    if grad_kl is None:
        return None, (0, 0, 0)
    if a.reduce == "sum":
        by_row = grad_kl.stride(0)
        return grad_kl, (0, by_row, 0) if lines.rows else (by_row, 0, 0)
    if a.reduce == "channels":
        by_row, by_channel = grad_kl.stride()
        return grad_kl, (by_row, by_channel, 0)
    if a.reduce == "batch-mean":
        grad_kl = (grad_kl / a.mu.shape[0]).expand_as(a.mu)
    if lines.rows and merged_stride(grad_kl, 1) is None:
        grad_kl = grad_kl.contiguous()
    grad_kl = readable(grad_kl)
    strides = strides_of(grad_kl, lines, a.mu.dim() - 1)
    return grad_kl, (strides.outer, strides.line, strides.position)
