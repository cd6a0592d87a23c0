"""The mixture's density in PyTorch, a tile of components at a time.

It is computed in float64 for float64 inputs and else in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..compiler import Code, compiled_once, compiled_without_guards, example, has_cpu_compiler
from ..define import Tensors

# Squares are summed 32 at a time, and then these sums are added: a single chain of float32
# additions would have a relative error of 6e-7 for a sum of 128 (the worst of 10,000).
SEGMENT = 32
# Draws that are computed side by side and share each load from a tile. On two cores of an AMD EPYC,
# 64 G terms take 2.2 s with four or six lanes, and 3.1 s with eight, whose sums do not fit in
# registers.
LANES = 4
# Elements of a tile, dimensions × components: its mu and σ, 256 KiB, stay in a CPU core's L2 cache.
TILE = 1 << 15
MOST_COMPONENTS = 512
# Draws and scores of one call: so many that threads rarely wait in compiled code, yet few enough
# for the L3 cache. Eager code stores D times as many numbers: 4 MiB per tensor
# on a CPU.
DRAWS_COMPILED, SCORES_COMPILED, MOST_TILES = 1024, 1 << 20, 16
ELEMENTS_EAGER = {"cpu": 1 << 20, "cuda": 1 << 26}
# From this number of terms M·N·D on, compiled code is faster than eager.
COMPILE_FROM = 1 << 18


class Arguments(NamedTuple):
    z: Tensor  # (M, D)
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    leave_out: Tensor | None  # (M,) int64


def log_normalisers(logvar: Tensor) -> tuple[Tensor, Tensor]:
    """−½ Σ_D logvar of each component (N,) minus the largest finite one, and that one; float64."""
    exact = -0.5 * logvar.sum(1, dtype=torch.float64)
    shift = torch.where(exact.isfinite(), exact, -torch.inf).amax()
    shift = torch.where(shift.isfinite(), shift, 0.0)
    return exact - shift, shift


def log_density(a: Arguments, top: Tensor, total: Tensor, shift: Tensor) -> Tensor:
    """log q(z) (M,) from the largest score, the sum relative to it, and the shift of all scores."""
    components = a.mu.shape[0] - (0 if a.leave_out is None else 1)
    count = total.new_full((), components, dtype=torch.float64)
    log_q = top.double() + total.double().log() + shift - count.log()
    return (log_q - 0.5 * math.log(2.0 * math.pi) * a.z.shape[1]).to(top.dtype)


class _Tiles(NamedTuple):
    # T tiles of n components. D is split into G segments of 2·E, padded with dimensions where
    # z = mu.
    mu: Tensor  # (T, G, 2, E, n)
    inverse_sigma: Tensor  # (T, G, 2, E, n)
    log_normaliser: Tensor  # (T, n); −inf beyond the components


def _scores(z: Tensor, tiles: _Tiles, skip: Tensor) -> Tensor:
    # z (m, G, 2, E), skip (m,) → (T, m, n). Tiles come first, so that a thread takes a tile and
    # computes all draws with it.
    def squares(half: int) -> Tensor:
        distance = z[:, :, half, :, None] - tiles.mu[:, None, :, half]  # (T, m, G, E, n)
        t = distance * tiles.inverse_sigma[:, None, :, half]
        return t * t

    total = (squares(0) + squares(1)).sum(3).sum(2, dtype=torch.float64)
    scores = (tiles.log_normaliser[:, None] - 0.5 * total).to(z.dtype)
    count, _, n = scores.shape
    component = torch.arange(count * n, dtype=torch.int32, device=z.device).view(count, 1, n)
    return torch.where(component == skip[:, None], -torch.inf, scores)


def forward_tiles(
    z: Tensor, skip: Tensor, top: Tensor, total: Tensor, *tiles: Tensor
) -> tuple[Tensor, Tensor]:
    # z (LANES, m, G, 2, E), skip (LANES, m) int32, outside [0, T·n) for none; top and total
    # (LANES, m) of earlier tiles → top and total with these tiles
    tops, totals = [], []
    for lane in range(LANES):
        scores = _scores(z[lane], _Tiles(*tiles), skip[lane])
        highest = torch.maximum(top[lane], scores.amax((0, 2)))
        # −∞ − (−∞) would be NaN although no input is.
        finite = torch.where(highest == -torch.inf, 0.0, highest)
        here = torch.exp(scores - finite[:, None]).sum((0, 2))
        tops.append(highest)
        totals.append(total[lane] * torch.exp(top[lane] - finite) + here)
    return torch.stack(tops), torch.stack(totals)


def backward_tiles(
    z: Tensor,
    skip: Tensor,
    top: Tensor,
    out: Tensor,
    rows_of_mu: Tensor,
    precision: Tensor,
    *tiles: Tensor,
) -> Tensor:
    # rows_of_mu, precision (T, n, D), out (LANES, m, D) of earlier tiles, D padded
    # → out + Σ_n exp(score − top)·(z − mu)/σ²
    outs = []
    for lane in range(LANES):
        scores = _scores(z[lane], _Tiles(*tiles), skip[lane])
        weights = torch.exp(scores - top[lane, :, None])[..., None]
        distance = z[lane].flatten(1)[:, None] - rows_of_mu[:, None]  # (T, m, n, D)
        here = (weights * (distance * precision[:, None])).sum(2)
        outs.append(out[lane] + here.sum(0))
    return torch.stack(outs)


class Plan(NamedTuple):
    # How the fallback splits M draws of D dimensions and N components.
    draws: int
    components: int  # per tile
    tiles: int

    @classmethod
    def of(cls, z: Tensor, mu: Tensor, compiled: bool) -> Plan:
        components = max(1, min(MOST_COMPONENTS, TILE // z.shape[1], len(mu) + 15) // 16) * 16
        everything = -(-len(mu) // components)
        if compiled:
            draws = min(DRAWS_COMPILED, -(-len(z) // (2 * LANES)) * 2 * LANES)
            tiles = min(everything, SCORES_COMPILED // (draws * components), MOST_TILES)
            # Compiled code needs sizes above 1.
            return cls(draws, components, max(2, tiles))
        elements = ELEMENTS_EAGER.get(z.device.type, 1 << 20)
        tiles = min(everything, max(1, elements // (2 * LANES * components * z.shape[1])))
        draws = elements // (tiles * components * z.shape[1])
        draws = max(1, draws // (2 * LANES)) * 2 * LANES
        return cls(draws, components, tiles)


def _code(build: Callable[[], Code | None], z: Tensor, mu: Tensor) -> Code | None:
    # compiled code for some tiles, if it is faster
    big = z.numel() * len(mu) >= COMPILE_FROM
    worth_it = z.device.type == "cpu" and z.dtype != torch.float64 and big
    return build() if worth_it and has_cpu_compiler() else None


def _in_segments(z: Tensor) -> Tensor:
    # (M, D) → (M, G, 2, E), padded so that each lane has at least two draws, and each segment two
    # halves of at least two
    M, D = z.shape
    segments = max(2, -(-D // SEGMENT))
    length = max(2, -(-D // (2 * segments)))
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    padded = pad(wide, (0, segments * 2 * length - D, 0, -M % (2 * LANES)))
    return padded.contiguous().view(-1, segments, 2, length)


def _in_lanes(x: Tensor, first: int, draws: int) -> Tensor:
    return x[first : first + draws].view(LANES, -1, *x.shape[1:])


def _skipped(leave_out: Tensor | None, drawn: Tensor, first: int, components: int) -> Tensor:
    # (M,) int32: the component, counted from `first`, that each draw skips; −1 for none
    if leave_out is None:
        return torch.full((len(drawn),), -1, dtype=torch.int32, device=drawn.device)
    here = pad(leave_out - first, (0, len(drawn) - len(leave_out)), value=-1)
    return here.clamp(-1, components).to(torch.int32)


def _tiled(x: Tensor, drawn: Tensor, value: float, plan: Plan) -> Tensor:
    # (part of N, D) → (T, n, D) in the draws' dtype, padded with `value`
    dims = math.prod(drawn.shape[1:])
    count = max(min(plan.tiles, 2), -(-len(x) // plan.components))
    beyond = (0, dims - x.shape[1], 0, count * plan.components - len(x))
    x = pad(x.to(drawn.dtype), beyond, value=value)
    return x.contiguous().view(count, plan.components, dims)


def _transposed(x: Tensor, drawn: Tensor) -> Tensor:
    # (T, n, D) → (T, G, 2, E, n)
    x = x.transpose(1, 2).contiguous()
    return x.view(len(x), *drawn.shape[1:], x.shape[2])


def forward(a: Arguments) -> Tensors:
    exact, shift = log_normalisers(a.logvar)
    code = _code(compiled_forward, a.z, a.mu)
    drawn, plan = _in_segments(a.z), Plan.of(a.z, a.mu, code is not None)
    top = drawn.new_full((len(drawn),), -torch.inf)
    total = torch.zeros_like(top)
    step = code or forward_tiles
    for _, skip, tiles in _passing(a, drawn, exact, plan):
        for m in range(0, len(drawn), plan.draws):
            so_far = (_in_lanes(x, m, plan.draws) for x in (drawn, skip, top, total))
            tops, totals = step(*so_far, *tiles)
            top[m : m + plan.draws] = tops.flatten()
            total[m : m + plan.draws] = totals.flatten()
    top, total = top[: len(a.z)], total[: len(a.z)]
    return log_density(a, top, total, shift), top, total


def _passing(
    a: Arguments, drawn: Tensor, exact: Tensor, plan: Plan
) -> Iterator[tuple[int, Tensor, _Tiles]]:
    # → for each group of components: the first, which of them each draw skips, and their tiles
    at_once = plan.tiles * plan.components
    for first in range(0, len(a.mu), at_once):
        part = slice(first, first + at_once)
        # Beyond the components σ = 1, so that z = ∞ has the score −∞ there, as everywhere, not NaN.
        inverse_sigma = torch.exp(-0.5 * a.logvar[part].to(drawn.dtype))
        tiles = _Tiles(
            _transposed(_tiled(a.mu[part], drawn, 0.0, plan), drawn),
            _transposed(_tiled(inverse_sigma, drawn, 1.0, plan), drawn),
            _tiled(exact[part, None], drawn, -torch.inf, plan)[..., 0].contiguous(),
        )
        yield first, _skipped(a.leave_out, drawn, first, at_once), tiles


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool]) -> Tensors:
    (grad,), (top, total) = grads, kept
    exact, _ = log_normalisers(a.logvar)
    code = _code(compiled_backward, a.z, a.mu)
    drawn, plan = _in_segments(a.z), Plan.of(a.z, a.mu, code is not None)
    top = pad(top, (0, len(drawn) - len(a.z)))
    out = torch.zeros_like(drawn).flatten(1)
    step = code or backward_tiles
    for first, skip, tiles in _passing(a, drawn, exact, plan):
        part = slice(first, first + plan.tiles * plan.components)
        rows_of_mu = _tiled(a.mu[part], drawn, 0.0, plan)
        precision = _tiled(torch.exp(-a.logvar[part].to(drawn.dtype)), drawn, 1.0, plan)
        for m in range(0, len(drawn), plan.draws):
            so_far = (_in_lanes(x, m, plan.draws) for x in (drawn, skip, top, out))
            outs = step(*so_far, rows_of_mu, precision, *tiles)
            out[m : m + plan.draws] = outs.flatten(0, 1)
    return ((out[: len(a.z), : a.z.shape[1]] * (-grad / total)[:, None]).to(a.z.dtype),)


def like_the_results(a: Arguments) -> Tensors:
    """Empty tensors of the results' shapes, dtypes and devices."""
    wide = torch.promote_types(a.z.dtype, torch.float32)
    return tuple(a.z.new_empty(a.z.shape[:1], dtype=wide) for _ in range(3))


@compiled_once
def compiled_forward() -> Any:
    z, skip, top, total, _, _, _, *tiles = _examples()
    return compiled_without_guards(forward_tiles, z, skip, top, total, *tiles)


@compiled_once
def compiled_backward() -> Any:
    z, skip, top, _, *rest = _examples()
    return compiled_without_guards(backward_tiles, z, skip, top, *rest)


def _examples() -> list[Tensor]:
    # All sizes differ, and so do all tensors: tracing would treat equal ones as the same.
    m, count, segments, length, n = 250, 6, 5, 14, 256
    D = segments * 2 * length
    skip = example(LANES, m, dtype=torch.int32)
    of_draws = [(LANES, m), (LANES, m), (LANES, m, D)]
    of_tiles = [(count, n, D)] * 2 + [(count, segments, 2, length, n)] * 2 + [(count, n)]
    shapes: list[tuple[int, ...]] = [*of_draws, *of_tiles]
    return [example(LANES, m, segments, 2, length), skip, *(example(*s) for s in shapes)]
