"""Log-density of a mixture of diagonal Gaussians: the aggregate posterior of a VAE.

Scores pass by in tiles and are never kept: a running maximum and a running sum of exponentials are
(Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Differences are taken
before they are squared: the expanded square, a matrix product, would cancel most digits where σ is
small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import pad

from ..backend import (
    goes_through_op,
    is_plain,
    jit,
    launcher,
    no_second_derivative,
    same_backend,
    tl,
    uses_triton,
)
from ..checks import check_indices, check_mixture
from ..compiler import Code, compiled_once, compiled_without_guards, example, has_cpu_compiler
from ..registration import triton_op

# Squares are summed 32 at a time, and then these sums: a single chain of float32 additions would
# err by 6e-7 of a sum of 128 (the worst of 10,000).
SEGMENT = 32


def log_normalisers(logvar: Tensor) -> tuple[Tensor, Tensor]:
    """−½ Σ_D logvar of each component (N,) less the largest finite one, and that one; float64."""
    exact = -0.5 * logvar.sum(1, dtype=torch.float64)
    shift = torch.where(exact.isfinite(), exact, -torch.inf).amax()
    shift = torch.where(shift.isfinite(), shift, 0.0)
    return exact - shift, shift


def log_density(top: Tensor, total: Tensor, shift: Tensor, components: int, D: int) -> Tensor:
    """What the largest score, the sum relative to it (M,) and the shift of all scores stand for."""
    count = total.new_full((), components, dtype=torch.float64)
    log_q = top.double() + total.double().log() + shift - count.log()
    return (log_q - 0.5 * math.log(2.0 * math.pi) * D).to(top.dtype)


# The Triton kernels. A program is one warp with 16 draws and 128 components: a thread has four
# components, which it loads at once, and their scores with all of the draws in registers.

BLOCK_M, BLOCK_N = 16, 128
LARGEST_BLOCK_D = 128
# At up to 255 registers an H100 has room for eight such warps on each of 132 multiprocessors: four
# turns of them.
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
):  # → (BLOCK_M, BLOCK_N); D is looped over
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
        # Not read until here: registers are scarce in the loop.
        skip = tl.load(leave_out_ptr + first_row + lanes)
        scores = tl.where(first + within == skip, -float("inf"), scores)
    return scores


@jit
def mixture_forward_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (D, M) float32, rows z_stride apart, M in whole blocks
    mu_ptr,  # (D, N) float32, rows n_stride apart, N in whole blocks
    inverse_sigma_ptr,  # the same
    log_normaliser_ptr,  # (N,) float32; −inf beyond the components
    leave_out_ptr,  # (M,) int64, M in whole blocks; −1: none
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
            z_ptr,
            mu_ptr,
            inverse_sigma_ptr,
            log_normaliser_ptr,
            leave_out_ptr,
            first_row,
            tile * BLOCK_N,
            z_stride,
            n_stride,
            D,
            LEAVE_OUT,
            SEGMENT,
            BLOCK_M,
            BLOCK_N,
        )
        highest = tl.max(scores, 1)[:, None]
        # A maximum passes NaN by, and −∞ less −∞ would make one of nothing.
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
    rows_of_z_ptr,  # (M, WIDTH) float32: D in whole blocks, too
    rows_of_mu_ptr,  # (N, WIDTH) the same
    precision_ptr,  # (N, WIDTH) the same
    weights_ptr,  # (programs, BLOCK_N, BLOCK_M) float32, where a program puts down one tile
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
    # Weights change hands: for a score a thread has four components and all dimensions, for the
    # gradient four dimensions and all components. Sixteen draws take nearly all 255 registers, so
    # no mask or address is kept that whole blocks can do without.
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
            z_ptr,
            mu_ptr,
            inverse_sigma_ptr,
            log_normaliser_ptr,
            leave_out_ptr,
            first_row,
            first,
            z_stride,
            n_stride,
            D,
            LEAVE_OUT,
            SEGMENT,
            BLOCK_M,
            BLOCK_N,
        )
        top = tl.load(top_ptr + first_row + lanes)
        tl.store(weights_ptr + within * BLOCK_M + lanes, tl.exp(scores - top))
        tl.debug_barrier()
        z = tl.load(rows_of_z_ptr + lanes * WIDTH + dims)
        # The sum rests in the cache meanwhile: beside the scores it would not fit in registers.
        out = tl.load(out_ptr + lanes * WIDTH + dims, mask=tile > split, other=0.0)
        for n in range(BLOCK_N):
            at = (first + n) * WIDTH + dims
            weight = tl.load(weights_ptr + n * BLOCK_M + lanes)
            out += weight * ((z - tl.load(rows_of_mu_ptr + at)) * tl.load(precision_ptr + at))
        tl.store(out_ptr + lanes * WIDTH + dims, out)
        tl.debug_barrier()


class _Prepared(NamedTuple):
    # float32, padded to whole blocks
    z: Tensor  # (D, M)
    mu: Tensor  # (D, N)
    inverse_sigma: Tensor  # (D, N)
    log_normaliser: Tensor  # (N,)
    shift: Tensor  # float64


def _prepared(z: Tensor, mu: Tensor, logvar: Tensor) -> _Prepared:
    exact, shift = log_normalisers(logvar)
    rows, columns = -len_of(z) % BLOCK_M, -len_of(mu) % BLOCK_N
    # Beyond the components σ = 1: of z = ∞, as for all of them, the score is −∞ and not NaN.
    return _Prepared(
        pad(z.float(), (0, 0, 0, rows)).t().contiguous(),
        pad(mu.float(), (0, 0, 0, columns)).t().contiguous(),
        pad(torch.exp(-0.5 * logvar.float()), (0, 0, 0, columns), value=1.0).t().contiguous(),
        pad(exact.float(), (0, columns), value=-torch.inf),
        shift,
    )


def _in_whole_blocks(x: Tensor | None, value: int) -> Tensor | None:
    # of draws
    return None if x is None else pad(x, (0, -len_of(x) % BLOCK_M), value=value).contiguous()


def len_of(x: Tensor) -> int:
    """Rows of x: unlike len, not fixed by tracing."""
    return x.shape[0]


def splits_of(rows: int, tiles: int) -> Any:
    """Among how many programs a block of draws spreads the components.

    Sizes alone decide, so that results do not depend on the device.
    """
    wanted = -(-PROGRAMS // -(-rows // BLOCK_M))
    return torch.sym_min(wanted, tiles)


def block_d_of(D: int) -> int:
    """How many dimensions of the gradient a program has: a power of two."""
    return min(1 << (D - 1).bit_length(), LARGEST_BLOCK_D)


def _launch_forward(
    kernel: Any, z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rows, D = z.shape
    if rows == 0:
        return tuple(z.new_empty((0,), dtype=torch.float32) for _ in range(3))  # type: ignore[return-value]
    prepared = _prepared(z, mu, logvar)
    tiles = prepared.mu.shape[1] // BLOCK_N
    splits = splits_of(rows, tiles)
    tops, totals = (z.new_empty((splits, rows), dtype=torch.float32) for _ in range(2))
    kernel[(-(-rows // BLOCK_M) * splits,)](
        *prepared[:4],
        _in_whole_blocks(leave_out, -1),
        tops,
        totals,
        rows,
        prepared.z.stride(0),
        prepared.mu.stride(0),
        tiles,
        splits,
        D=D,
        LEAVE_OUT=leave_out is not None,
        SEGMENT=SEGMENT,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        num_warps=1,
    )
    top = tops.amax(0)
    finite = torch.where(top == -torch.inf, 0.0, top)
    total = (totals * torch.exp(tops - finite)).sum(0)
    components = len_of(mu) - (0 if leave_out is None else 1)
    return log_density(top, total, prepared.shift, components, D), top, total


def _launch_backward(
    kernel: Any,
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    leave_out: Tensor | None,
    top: Tensor,
    total: Tensor,
) -> Tensor:
    rows, D = z.shape
    if rows == 0:
        return torch.empty_like(z)
    prepared = _prepared(z, mu, logvar)
    tiles = prepared.mu.shape[1] // BLOCK_N
    splits = splits_of(rows, tiles)
    block_d = block_d_of(D)
    blocks, d_blocks = -(-rows // BLOCK_M), -(-D // block_d)
    programs = blocks * splits * d_blocks
    columns = (0, d_blocks * block_d - D)
    components = (*columns, 0, -len_of(mu) % BLOCK_N)
    kernel[(programs,)](
        *prepared[:4],
        _in_whole_blocks(leave_out, -1),
        _in_whole_blocks(top, 0),
        pad(z.float(), (*columns, 0, -rows % BLOCK_M)).contiguous(),
        pad(mu.float(), components).contiguous(),
        pad(torch.exp(-logvar.float()), components).contiguous(),
        z.new_empty((programs, BLOCK_N, BLOCK_M), dtype=torch.float32),
        out := z.new_empty((splits, blocks * BLOCK_M, d_blocks * block_d), dtype=torch.float32),
        blocks * BLOCK_M,
        prepared.z.stride(0),
        prepared.mu.stride(0),
        tiles,
        splits,
        D=D,
        LEAVE_OUT=leave_out is not None,
        SEGMENT=SEGMENT,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_D=block_d,
        num_warps=1,
    )
    return (out.sum(0)[:rows, :D] * (-grad / total)[:, None]).to(z.dtype)


# The PyTorch twin. float64 stays float64, all else is computed in float32.

# Draws that pass a tile side by side, sharing what a CPU core loads of it. On two cores of an AMD
# EPYC 64 G terms take 2.2 s with four or six, 3.1 with eight, whose sums leave the registers.
LANES = 4
# Elements of a tile, dimensions times components: its mu and σ stay in a CPU core's L2, 256 KiB.
TILE = 1 << 15
MOST_COMPONENTS = 512
# Draws at once, and scores of them: a call of compiled code is long beside the waits for threads,
# and its scores stay in L3. Eager code holds D times as many numbers: 4 MiB a tensor on a CPU.
DRAWS_COMPILED, SCORES_COMPILED, MOST_TILES = 1024, 1 << 20, 16
ELEMENTS_EAGER = {"cpu": 1 << 20, "cuda": 1 << 26}
# From so many terms M·N·D on, compiled code is worth its call.
COMPILE_FROM = 1 << 18


class _Tiles(NamedTuple):
    # T tiles of n components; D lies in G segments of 2·E, padded with dimensions where z = mu.
    mu: Tensor  # (T, G, 2, E, n)
    inverse_sigma: Tensor  # (T, G, 2, E, n)
    log_normaliser: Tensor  # (T, n); −inf beyond the components


def _scores(z: Tensor, tiles: _Tiles, skip: Tensor) -> Tensor:
    # z (m, G, 2, E), skip (m,) → (T, m, n). Tiles first: each is a thread's, and all draws pass it.
    def squares(half: int) -> Tensor:
        distance = z[:, :, half, :, None] - tiles.mu[:, None, :, half]  # (T, m, G, E, n)
        t = distance * tiles.inverse_sigma[:, None, :, half]
        return t * t

    total = (squares(0) + squares(1)).sum(3).sum(2, dtype=torch.float64)
    scores = (tiles.log_normaliser[:, None] - 0.5 * total).to(z.dtype)
    count, _, n = scores.shape
    component = torch.arange(count * n, dtype=torch.int32, device=z.device).view(count, 1, n)
    return torch.where(component == skip[:, None], -torch.inf, scores)


def _forward_tiles(
    z: Tensor, skip: Tensor, top: Tensor, total: Tensor, *tiles: Tensor
) -> tuple[Tensor, Tensor]:
    # z (LANES, m, G, 2, E), skip (LANES, m) int32, outside [0, T·n) for none; top and total
    # (LANES, m) so far → the same with these tiles
    tops, totals = [], []
    for lane in range(LANES):
        scores = _scores(z[lane], _Tiles(*tiles), skip[lane])
        highest = torch.maximum(top[lane], scores.amax((0, 2)))
        # −∞ less −∞ would make NaN of nothing.
        finite = torch.where(highest == -torch.inf, 0.0, highest)
        here = torch.exp(scores - finite[:, None]).sum((0, 2))
        tops.append(highest)
        totals.append(total[lane] * torch.exp(top[lane] - finite) + here)
    return torch.stack(tops), torch.stack(totals)


def _backward_tiles(
    z: Tensor,
    skip: Tensor,
    top: Tensor,
    out: Tensor,
    rows_of_mu: Tensor,
    precision: Tensor,
    *tiles: Tensor,
) -> Tensor:
    # rows_of_mu, precision (T, n, D), out (LANES, m, D) so far, D as padded
    # → plus Σ_n exp(score − top)·(z − mu)/σ²
    outs = []
    for lane in range(LANES):
        scores = _scores(z[lane], _Tiles(*tiles), skip[lane])
        weights = torch.exp(scores - top[lane, :, None])[..., None]
        distance = z[lane].flatten(1)[:, None] - rows_of_mu[:, None]  # (T, m, n, D)
        here = (weights * (distance * precision[:, None])).sum(2)
        outs.append(out[lane] + here.sum(0))
    return torch.stack(outs)


class _Plan(NamedTuple):
    # How the twin goes through M draws of D dimensions and N components.
    draws: int
    components: int  # a tile's
    tiles: int

    @classmethod
    def of(cls, z: Tensor, mu: Tensor, compiled: bool) -> _Plan:
        components = max(1, min(MOST_COMPONENTS, TILE // z.shape[1], len(mu) + 15) // 16) * 16
        everything = -(-len(mu) // components)
        if compiled:
            draws = min(DRAWS_COMPILED, -(-len(z) // (2 * LANES)) * 2 * LANES)
            tiles = min(everything, SCORES_COMPILED // (draws * components), MOST_TILES)
            # Compiled code takes sizes above 1.
            return cls(draws, components, max(2, tiles))
        elements = ELEMENTS_EAGER.get(z.device.type, 1 << 20)
        tiles = min(everything, max(1, elements // (2 * LANES * components * z.shape[1])))
        draws = elements // (tiles * components * z.shape[1])
        draws = max(1, draws // (2 * LANES)) * 2 * LANES
        return cls(draws, components, tiles)


def _code(build: Callable[[], Code | None], z: Tensor, mu: Tensor) -> Code | None:
    # what computes some tiles, where that pays
    big = z.numel() * len(mu) >= COMPILE_FROM
    worth_it = z.device.type == "cpu" and z.dtype != torch.float64 and big
    return build() if worth_it and has_cpu_compiler() else None


def _in_segments(z: Tensor) -> Tensor:
    # (M, D) → (M, G, 2, E), in whole lanes of two draws and segments of two halves of two
    M, D = z.shape
    segments = max(2, -(-D // SEGMENT))
    length = max(2, -(-D // (2 * segments)))
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    padded = pad(wide, (0, segments * 2 * length - D, 0, -M % (2 * LANES)))
    return padded.contiguous().view(-1, segments, 2, length)


def _in_lanes(x: Tensor, first: int, draws: int) -> Tensor:
    return x[first : first + draws].view(LANES, -1, *x.shape[1:])


def _skipped(leave_out: Tensor | None, drawn: Tensor, first: int, components: int) -> Tensor:
    # (M,) int32: which of the components from the first on each draw skips; −1 for none
    if leave_out is None:
        return torch.full((len(drawn),), -1, dtype=torch.int32, device=drawn.device)
    here = pad(leave_out - first, (0, len(drawn) - len(leave_out)), value=-1)
    return here.clamp(-1, components).to(torch.int32)


def _tiled(x: Tensor, drawn: Tensor, value: float, plan: _Plan) -> Tensor:
    # (part of N, D) → (T, n, D) of the draws' dtype, filled up with a value
    dims = math.prod(drawn.shape[1:])
    count = max(min(plan.tiles, 2), -(-len(x) // plan.components))
    beyond = (0, dims - x.shape[1], 0, count * plan.components - len(x))
    x = pad(x.to(drawn.dtype), beyond, value=value)
    return x.contiguous().view(count, plan.components, dims)


def _transposed(x: Tensor, drawn: Tensor) -> Tensor:
    # (T, n, D) → (T, G, 2, E, n)
    x = x.transpose(1, 2).contiguous()
    return x.view(len(x), *drawn.shape[1:], x.shape[2])


def _twin_forward(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    exact, shift = log_normalisers(logvar)
    code = _code(_compiled_forward, z, mu)
    drawn, plan = _in_segments(z), _Plan.of(z, mu, code is not None)
    top = drawn.new_full((len(drawn),), -torch.inf)
    total = torch.zeros_like(top)
    step = code or _forward_tiles
    for _, skip, tiles in _passing(drawn, mu, logvar, exact, leave_out, plan):
        for m in range(0, len(drawn), plan.draws):
            so_far = (_in_lanes(x, m, plan.draws) for x in (drawn, skip, top, total))
            tops, totals = step(*so_far, *tiles)
            top[m : m + plan.draws] = tops.flatten()
            total[m : m + plan.draws] = totals.flatten()
    top, total = top[: len(z)], total[: len(z)]
    components = len(mu) - (0 if leave_out is None else 1)
    return log_density(top, total, shift, components, z.shape[1]), top, total


def _passing(
    drawn: Tensor,
    mu: Tensor,
    logvar: Tensor,
    exact: Tensor,
    leave_out: Tensor | None,
    plan: _Plan,
) -> Iterator[tuple[int, Tensor, _Tiles]]:
    # → the first of some components, which of them each draw skips, and their tiles
    at_once = plan.tiles * plan.components
    for first in range(0, len(mu), at_once):
        part = slice(first, first + at_once)
        # Beyond the components σ = 1: of z = ∞, as for all of them, the score is −∞ and not NaN.
        inverse_sigma = torch.exp(-0.5 * logvar[part].to(drawn.dtype))
        tiles = _Tiles(
            _transposed(_tiled(mu[part], drawn, 0.0, plan), drawn),
            _transposed(_tiled(inverse_sigma, drawn, 1.0, plan), drawn),
            _tiled(exact[part, None], drawn, -torch.inf, plan)[..., 0].contiguous(),
        )
        yield first, _skipped(leave_out, drawn, first, at_once), tiles


def _twin_backward(
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    leave_out: Tensor | None,
    top: Tensor,
    total: Tensor,
) -> Tensor:
    exact, _ = log_normalisers(logvar)
    code = _code(_compiled_backward, z, mu)
    drawn, plan = _in_segments(z), _Plan.of(z, mu, code is not None)
    top = pad(top, (0, len(drawn) - len(z)))
    out = torch.zeros_like(drawn).flatten(1)
    step = code or _backward_tiles
    for first, skip, tiles in _passing(drawn, mu, logvar, exact, leave_out, plan):
        part = slice(first, first + plan.tiles * plan.components)
        rows_of_mu = _tiled(mu[part], drawn, 0.0, plan)
        precision = _tiled(torch.exp(-logvar[part].to(drawn.dtype)), drawn, 1.0, plan)
        for m in range(0, len(drawn), plan.draws):
            so_far = (_in_lanes(x, m, plan.draws) for x in (drawn, skip, top, out))
            outs = step(*so_far, rows_of_mu, precision, *tiles)
            out[m : m + plan.draws] = outs.flatten(0, 1)
    return (out[: len(z), : z.shape[1]] * (-grad / total)[:, None]).to(z.dtype)


@compiled_once
def _compiled_forward() -> Any:
    z, skip, top, total, _, _, _, *tiles = _examples()
    return compiled_without_guards(_forward_tiles, z, skip, top, total, *tiles)


@compiled_once
def _compiled_backward() -> Any:
    z, skip, top, _, *rest = _examples()
    return compiled_without_guards(_backward_tiles, z, skip, top, *rest)


def _examples() -> list[Tensor]:
    # No two sizes are equal, nor tensors the same: tracing would take them for one and the same.
    m, count, segments, length, n = 250, 6, 5, 14, 256
    D = segments * 2 * length
    skip = example(LANES, m, dtype=torch.int32)
    of_draws = [(LANES, m), (LANES, m), (LANES, m, D)]
    of_tiles = [(count, n, D)] * 2 + [(count, segments, 2, length, n)] * 2 + [(count, n)]
    shapes: list[tuple[int, ...]] = [*of_draws, *of_tiles]
    return [example(LANES, m, segments, 2, length), skip, *(example(*s) for s in shapes)]


# Registration. The twin stays opaque: it loops over as many tiles as there are.


@custom_op("vaez::mixture_twin_forward", mutates_args=())
def mixture_twin_forward(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _twin_forward(z, mu, logvar, leave_out)


@mixture_twin_forward.register_fake
def _(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    log_q, top, total = (z.new_empty(z.shape[:1], dtype=wide) for _ in range(3))
    return log_q, top, total


@custom_op("vaez::mixture_twin_backward", mutates_args=())
def mixture_twin_backward(
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    leave_out: Tensor | None,
    top: Tensor,
    total: Tensor,
) -> Tensor:
    return _twin_backward(grad, z, mu, logvar, leave_out, top, total)


@mixture_twin_backward.register_fake
def _(
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    leave_out: Tensor | None,
    top: Tensor,
    total: Tensor,
) -> Tensor:
    return z.new_empty(z.shape)


@triton_op("vaez::mixture_forward", mixture_forward_kernel)
def mixture_forward_op(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if uses_triton(z):
        return _launch_forward(launcher(mixture_forward_kernel), z, mu, logvar, leave_out)
    return torch.ops.vaez.mixture_twin_forward(z, mu, logvar, leave_out)


@triton_op("vaez::mixture_backward", mixture_backward_kernel)
def mixture_backward_op(
    grad: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    leave_out: Tensor | None,
    top: Tensor,
    total: Tensor,
) -> Tensor:
    args = (grad, z, mu, logvar, leave_out, top, total)
    if uses_triton(z):
        return _launch_backward(launcher(mixture_backward_kernel), *args)
    return torch.ops.vaez.mixture_twin_backward(*args)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, top, total = output
    ctx.mark_non_differentiable(top, total)
    ctx.save_for_backward(*inputs, top, total)
    ctx.triton = uses_triton(inputs[0])


def _op_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    with same_backend(ctx.triton):
        grad_z = torch.ops.vaez.mixture_backward(grad, *ctx.saved_tensors)
    return grad_z, None, None, None


mixture_forward_op.register_autograd(_op_backward, setup_context=_setup_context)
mixture_backward_op.register_autograd(no_second_derivative)


class _Mixture(torch.autograd.Function):
    """`mixture_forward_op` past the dispatcher: what an eager call runs."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None
    ) -> Tensor:
        ctx.triton = uses_triton(z)  # backward follows, also outside a `use_backend` block
        if ctx.triton:
            with torch.cuda.device_of(z):
                out = _launch_forward(mixture_forward_kernel, z, mu, logvar, leave_out)
        else:
            out = _twin_forward(z, mu, logvar, leave_out)
        log_q, top, total = out
        ctx.save_for_backward(z, mu, logvar, leave_out, top, total)
        return log_q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if goes_through_op(grad):
            return _op_backward(ctx, grad)
        if ctx.triton:
            with torch.cuda.device_of(grad):
                grad_z = _launch_backward(mixture_backward_kernel, grad, *ctx.saved_tensors)
        else:
            grad_z = _twin_backward(grad, *ctx.saved_tensors)
        return grad_z, None, None, None


# The public function.


def mixture_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    """log q(z) in nats, log 1/N Σ_n N(z; mu_n, diag exp(logvar_n)): the aggregate posterior's.

    Of a VAE's posteriors q(z|x_n) this is the mixture of all (Hoffman and Johnson, "ELBO surgery",
    2016). On a CPU within 1e-4 + 3e-7·|log q| of float64 for D = 128, σ from e⁻⁴ to 1. No score is
    kept: a CPU needs tens of MiB and a float64 copy of logvar, a GPU two to four copies of the
    inputs and, backward, 8 KiB for each program (one for 16 draws, or more where draws are few).

    Args:
        z: (M, D) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        mu, logvar: (N, D) of z's dtype, N ≥ 1. No gradient flows to them.
        leave_out: (M,) int64, a component for each z that its mixture goes without (the mean is
            over the N − 1 others; N ≥ 2). Where z was drawn from component n, leaving n out gives
            the leave-one-out density. Indices are looked at on a CPU alone, where that does not
            synchronise; elsewhere, and in compiled code, one outside [0, N) leaves none out, and
            the sum is divided by N − 1 all the same.

    Returns:
        (M,) float32 (float64 for float64 inputs). The gradient, with respect to z alone and in its
        dtype, is −Σ_n r_n (z − mu_n)/σ²_n, where r_n is the component's responsibility for z; there
        is no second derivative. NaN and infinity propagate as the formula says; M = 0 gives an
        empty result.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or range; mu or
            logvar requires a gradient.
    """
    check_mixture("mixture_log_prob", z, mu, logvar, leave_out)
    if is_plain(z, mu, logvar, leave_out):
        if leave_out is not None and leave_out.device.type == "cpu":
            check_indices("mixture_log_prob", "leave_out", leave_out, len(mu))
        return _Mixture.apply(z, mu, logvar, leave_out)
    log_q, _, _ = torch.ops.vaez.mixture_forward(z, mu, logvar, leave_out)
    return log_q


__all__ = ["mixture_log_prob"]
