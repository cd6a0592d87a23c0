"""How a launch of the latent kernels divides a batch, and which lengths and strides it passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import is_traced
from ..launch import CANDIDATES, Tile
from .layout import empty_like, is_channels_last, merged_stride, readable
from .twin import Arguments

# Which of a tensor's strides is 1.
NEITHER, POSITIONS, LINES = range(3)


class Lines(NamedTuple):
    """How the kernels divide a batch: into `outer` times `lines` lines of `positions`."""

    rows: bool  # whether lines are rows; otherwise they are the channels of a row
    outer: int
    lines: int
    positions: int
    apart: bool  # whether positions are apart in memory, and lines side by side

    def block(self, tile: Tile) -> dict[str, int]:
        """The shape of a tile."""
        if self.apart:
            lines = min(_power(self.lines), tile.elements // 4)
            columns = min(max(4, _power(self.positions)), tile.elements // lines)
            return {"BLOCK_ROWS": lines, "BLOCK_D": columns}
        block = tile.block(self.positions)
        if not self.rows:  # the number of channels does not change from batch to batch
            block["BLOCK_ROWS"] = min(block["BLOCK_ROWS"], _power(self.lines))
        return block


class Strides(NamedTuple):
    """The strides of a tensor along rows, lines and positions, and which of them is 1."""

    outer: int
    line: int
    position: int
    step: int

    def in_units(self, unit: int) -> tuple[int, int, int]:
        if self.step == POSITIONS:
            return self.outer // unit, self.line // unit, 0
        if self.step == LINES:
            return self.outer // unit, 0, self.position // unit
        return self.outer, self.line, self.position


ABSENT = Strides(0, 0, 0, NEITHER)


def _power(n: int) -> int:
    return 1 << (int(n) - 1).bit_length()


def lines_of(a: Arguments) -> Lines:
    rows, channels, *positions = a.mu.shape
    size = math.prod(positions)
    of = [x for x in (a.mu, a.logvar, a.prior_mu, a.prior_logvar) if x is not None]
    if a.reduce != "channels" and all(merged_stride(x, 1) is not None for x in of):
        apart = a.mu.dim() == 2 and a.mu.stride(0) == 1 and a.mu.stride(1) > 1
        return Lines(True, 1, rows, channels * size, apart)
    return Lines(False, rows, channels, size, is_channels_last(a.mu))


def strides_of(x: Tensor | None, lines: Lines, events: int) -> Strides:
    """Of a tensor (…, B, *event) whose event has this many dimensions."""
    if x is None:
        return ABSENT
    batch = x.dim() - events - 1
    first = batch + (1 if lines.rows else 2)
    outer, line = (0, x.stride(batch)) if lines.rows else x.stride()[batch : batch + 2]
    position = merged_stride(x, first)
    assert position is not None  # see lines_of and readable
    if position == 1:
        return Strides(outer, line, position, POSITIONS)
    return Strides(outer, line, position, LINES if line == 1 else NEITHER)


LARGEST = Tile(max(tile.elements for tile in CANDIDATES), 8)


def near(x: Tensor, lines: Lines, events: int) -> Tensor:
    """x itself, or a contiguous copy if 32 bits are too few for the offsets in a tile."""
    strides, block = strides_of(x, lines, events), lines.block(LARGEST)
    extent = block["BLOCK_ROWS"] * strides.line + block["BLOCK_D"] * strides.position
    return x if extent < 2**31 else x.contiguous()


def dense(mu: Tensor, lines: Lines) -> Strides:
    """Of the tensors that `empty_like(mu)` makes."""
    row = math.prod(mu.shape[1:])
    if is_channels_last(mu):
        return Strides(row, 1, mu.shape[1], LINES)
    return Strides(row, row if lines.rows else lines.positions, 1, POSITIONS)


def _unit(lines: Lines, by_sample: int, of: list[Strides], itemsize: int) -> int:
    """Elements in which all lengths and distances can be counted: 16 bytes of them, 4 or 1."""
    lengths = [lines.positions, by_sample]
    for strides in of:
        if strides.step == POSITIONS:
            lengths += strides.outer, strides.line
        elif strides.step == LINES:
            lengths += strides.outer, strides.position, lines.lines
    return next(unit for unit in (16 // itemsize, 4, 1) if all(n % unit == 0 for n in lengths))


LARGEST_FLOAT = torch.finfo(torch.float32).max


def bounds_of(a: Arguments) -> tuple[float, float]:
    """The bounds of the clamp, as a launch passes them."""
    if not a.clamps:
        return 0.0, 0.0
    if not is_traced(a.mu):
        return a.low, a.high
    # Inductor 2.11 writes an infinite number into its source as `inf`, which is not defined there.
    return max(a.low, -LARGEST_FLOAT), min(a.high, LARGEST_FLOAT)


class Geometry(NamedTuple):
    """What a launch passes about the shape and the layout of its tensors."""

    numbers: tuple[Any, ...]  # from `n_lines` to `free_bits`
    strides: tuple[int, ...]  # of all tensors, and from sample to sample
    constants: dict[str, Any]

    @classmethod
    def of(cls, a: Arguments, lines: Lines, by_sample: int = 0, **tensors: Strides) -> Geometry:
        row = math.prod(a.mu.shape[1:])
        itemsize = min(x.element_size() for x in a[:4] if x is not None)
        unit = _unit(lines, by_sample, list(tensors.values()), itemsize)
        line_unit = unit if lines.apart else 1
        return cls(
            (
                *(lines.lines // line_unit, lines.positions // unit, -(-row // 4)),
                *(a.num_samples, a.row_offset, a.sample_offset, 1.0 / a.num_samples),
                *(*bounds_of(a), a.free_bits),
            ),
            (
                *(n for strides in tensors.values() for n in strides.in_units(unit)),
                by_sample // unit,
            ),
            {name: strides.step for name, strides in tensors.items()}
            | {
                "UNIT": unit,
                "LINE_UNIT": line_unit,
                "ROWS": lines.rows,
                "WHOLE": lines.rows or lines.positions % 4 == 0,
                "CLAMP": a.clamps,
                "FREE": a.free_bits > 0.0,
                "ONE_SAMPLE": a.num_samples == 1,
            },
        )

    def with_constants(self, **constants: Any) -> Geometry:
        return self._replace(constants=self.constants | constants)


def _with_inputs(a: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    return a._replace(
        mu=change(a.mu),
        logvar=change(a.logvar),
        prior_mu=None if a.prior_mu is None else change(a.prior_mu),
        prior_logvar=None if a.prior_logvar is None else change(a.prior_logvar),
    )


def prepared(a: Arguments, grad_z: Tensor | None) -> tuple[Arguments, Lines, Tensor | None]:
    """Tensors that the kernels can read in place, and how they divide the batch."""
    a = _with_inputs(a, readable)
    lines, events = lines_of(a), a.mu.dim() - 1
    noise = None if a.noise is None else a.noise.contiguous()
    a = _with_inputs(a, lambda x: near(x, lines, events))._replace(noise=noise)
    if grad_z is not None:
        readable_here = merged_stride(grad_z, 2 if lines.rows else min(3, grad_z.dim())) is not None
        if not readable_here or strides_of(grad_z, lines, events).step != dense(a.mu, lines).step:
            # Reading it element by element would take longer than a copy.
            grad_z = empty_like(a.mu, a.num_samples).copy_(grad_z)
        grad_z = near(grad_z, lines, events)
    return a, lines, grad_z
