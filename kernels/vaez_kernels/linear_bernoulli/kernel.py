"""The last layer's Triton kernels. A row is one sample of one image: rows r = s·B + b.

Forward: a program holds the hidden units of a block of rows and walks along pixels.

Backward takes a chunk of rows at a time, so small that the chunk's residuals g·(x − sigmoid(l))
stay in a GPU's cache (unless 128 rows are too many for it). A kernel computes the logits once more
and writes the residuals, and a product kernel multiplies them by the weights and by the hidden
units.

If a launch would have too few programs, each takes a part of its sum, and a last launch adds the
parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import jit, tl
from ..bernoulli.kernel import readable
from ..define import Tensors
from ..launch import (
    FEW_LAYER_TILES,
    HELD_BYTES,
    LAYER_TILES,
    ProductTile,
    blocks_of,
    run_kept,
    with_tile,
)
from ..scalar import dot_jit, log_jit
from .logits import hidden_jit, logits_jit, place_jit, streamed_jit, targets_jit, weight_jit
from .product import linear_bernoulli_product_kernel, linear_bernoulli_sum_kernel
from .twin import FACTORS, Arguments, grad_x

# A launch gets about this many programs, and more than half of them, if its work can be divided:
# two for each of the 132 multiprocessors of an H100. A constant, so that results do not depend on
# the device.
PROGRAMS = 264
# Parts that a program adds at once, and elements of each.
SUMS = {"PARTS": 16, "BLOCK": 128}
# Bytes of a chunk's residuals, of the 40 to 50 MB of an A100's or H100's L2 cache, and its fewest
# rows: with fewer, a product would read the weights too often.
CHUNK, CHUNK_ROWS = 32 << 20, 128


@jit
def linear_bernoulli_forward_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,  # (R, H), rows ROW_STRIDE apart
    weight_ptr,  # (P, H), of any strides
    bias_ptr,  # (P,)
    x_ptr,  # (B, P), rows X_STRIDE apart
    out_ptr,  # (parts, R) float32
    n_rows,
    n_images,
    parts,
    part,  # pixels of a program: whole blocks, of at most FACTORS
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    HELD: tl.constexpr,  # whether a block holds all hidden units
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):
    first_row = (tl.program_id(0) // parts).to(tl.int64) * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    live = rows < n_rows
    _, images = place_jit(first_row, n_images, BLOCK_ROWS)
    first = (tl.program_id(0) % parts) * part
    if HELD:
        h = tl.arange(0, BLOCK_H)
        hidden = hidden_jit(hidden_ptr, rows, live, h, H, ROW_STRIDE, BFLOAT16)
    # One logarithm for all pixels of a lane: its factors 1 + e^−|l| ≤ 2 are multiplied.
    factors = tl.full((BLOCK_ROWS, BLOCK_P), 1.0, tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
    for start in tl.range(first, min(first + part, P), BLOCK_P, num_stages=STAGES):
        pixels = start + tl.arange(0, BLOCK_P)
        if HELD:
            weight = weight_jit(weight_ptr, pixels, h, P, H, P_STRIDE, H_STRIDE, BFLOAT16)
            zeros = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
            product = dot_jit(hidden, weight, zeros, PRECISION)
        else:
            product = streamed_jit(
                hidden_ptr, weight_ptr, rows, live, pixels, P, H, ROW_STRIDE, P_STRIDE, H_STRIDE,
                BFLOAT16, PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H, STAGES
            )  # fmt: skip
        logits = logits_jit(product, bias_ptr, pixels, P, BLOCK_P)
        x = targets_jit(x_ptr, images, live, pixels, P, X_STRIDE)
        factors += factors * tl.exp2(tl.abs(logits) * -1.4426950408889634)
        sums += x * logits - tl.maximum(logits, 0.0)
    out_at = out_ptr + (tl.program_id(0) % parts).to(tl.int64) * n_rows + rows
    tl.store(out_at, tl.sum(sums - log_jit(factors), 1), mask=live)


@jit
def linear_bernoulli_residual_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,  # (S, B) float32, of any strides
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    residual_ptr,  # (rows of the chunk, P), rows `residual_stride` apart: g·(x − sigmoid(l))
    grad_bias_ptr,  # (parts, P) float32
    first_row,  # of the chunk
    end_row,
    n_images,
    grad_sample_stride,
    grad_image_stride,
    residual_stride,
    parts,
    part,  # rows of a program: whole blocks
    P: tl.constexpr,
    H: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    P_STRIDE: tl.constexpr,
    H_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    HELD: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Programs hold weights and walk along rows, so that the bias's gradient is one sum at the end.
    pixels = (tl.program_id(0) // parts) * BLOCK_P + tl.arange(0, BLOCK_P)
    first = (tl.program_id(0) % parts) * part  # in the chunk
    n_rows = end_row - first_row
    if HELD:
        h = tl.arange(0, BLOCK_H)
        weight = weight_jit(weight_ptr, pixels, h, P, H, P_STRIDE, H_STRIDE, BFLOAT16)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
    for start in tl.range(first, min(first + part, n_rows), BLOCK_ROWS, num_stages=STAGES):
        in_chunk = start + tl.arange(0, BLOCK_ROWS)
        rows = tl.cast(first_row, tl.int64) + in_chunk
        live = in_chunk < n_rows
        if HELD:
            hidden = hidden_jit(hidden_ptr, rows, live, h, H, ROW_STRIDE, BFLOAT16)
            zeros = tl.zeros((BLOCK_ROWS, BLOCK_P), tl.float32)
            product = dot_jit(hidden, weight, zeros, PRECISION)
        else:
            product = streamed_jit(
                hidden_ptr, weight_ptr, rows, live, pixels, P, H, ROW_STRIDE, P_STRIDE, H_STRIDE,
                BFLOAT16, PRECISION, BLOCK_ROWS, BLOCK_P, BLOCK_H, STAGES
            )  # fmt: skip
        logits = logits_jit(product, bias_ptr, pixels, P, BLOCK_P)
        # Beyond the last row hidden units are zeros, and zero times an infinite weight is NaN.
        logits = tl.where(live[:, None], logits, 0.0)
        samples, images = place_jit(tl.cast(first_row, tl.int64) + start, n_images, BLOCK_ROWS)
        x = targets_jit(x_ptr, images, live, pixels, P, X_STRIDE)
        grad_at = grad_ptr + samples * grad_sample_stride + images * grad_image_stride
        grad = tl.load(grad_at, mask=live, other=0.0)
        residual = grad[:, None] * (x - tl.sigmoid(logits))
        sums += residual
        at = residual_ptr + in_chunk[:, None].to(tl.int64) * residual_stride + pixels[None, :]
        mask = live[:, None] & (pixels < P)[None, :]
        tl.store(at, residual.to(residual_ptr.dtype.element_ty), mask=mask)
    bias_at = grad_bias_ptr + (tl.program_id(0) % parts).to(tl.int64) * P + pixels
    tl.store(bias_at, tl.sum(sums, 0), mask=pixels < P)


class _Layer:
    """A call's operands as the kernels read them."""

    def __init__(self, a: Arguments) -> None:
        self.samples, self.images, self.width = a.hidden.shape
        self.pixels = a.weight.shape[0]
        self.rows = self.samples * self.images
        self.hidden = readable(a.hidden).reshape(self.rows, self.width)
        self.weight, self.bias, self.x = a.weight, a.bias.contiguous(), readable(a.x)
        self.tensors = (self.hidden, self.weight, self.bias, self.x)
        rounds = a.precision == "bfloat16" and self.hidden.dtype == torch.float32
        float32 = self.hidden.dtype == torch.float32 and not rounds
        self.operand = torch.bfloat16 if rounds else self.hidden.dtype
        self.kind = "16 bits" if not float32 else "tf32" if a.precision == "tf32" else "float32"
        precision = "tf32" if a.precision == "tf32" else "ieee"
        self.constants = {"BFLOAT16": rounds, "PRECISION": precision}
        # For which a tile may be the fastest.
        self.case = (self.kind, self.width, self.pixels, *self.weight.stride())

    def tile(self, of: str, rows: Any, columns: Any, terms: Any = 1) -> ProductTile:
        """The tile for an output of this size. A size that a trace keeps open gets the usual one.

        `terms`: the length of a sum that several programs may share.
        """
        usual = LAYER_TILES[of][self.kind]
        tiles = blocks_of(rows, usual.rows) * blocks_of(columns, usual.pixels)
        programs = tiles * blocks_of(terms, usual.hidden)
        few = isinstance(programs, int) and programs < PROGRAMS // 2
        return FEW_LAYER_TILES[of][self.kind] if few else usual

    def of_logits(self, tile: ProductTile) -> dict[str, Any]:
        """The constants of a kernel that computes logits."""
        units = max(16, 1 << (self.width - 1).bit_length())
        held = self.kind == "16 bits" and units * self.hidden.itemsize <= HELD_BYTES
        return {
            "P": self.pixels,
            "H": self.width,
            "ROW_STRIDE": self.hidden.stride(0),
            "P_STRIDE": self.weight.stride(0),
            "H_STRIDE": self.weight.stride(1),
            "X_STRIDE": self.x.stride(0),
            "HELD": held,
            **self.constants,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_P": tile.pixels,
            "BLOCK_H": units if held else tile.hidden,
            "STAGES": tile.stages,
        }


def _parts(size: Any, block: int, others: Any, most: Any = None) -> tuple[Any, Any]:
    """How many programs share `size` elements, and how many elements each of them takes.

    Args:
        size: the length of a sum.
        block: elements that a program takes at once.
        others: how many programs there are without sharing.
        most: the number of blocks that one program may take.
    """
    blocks = blocks_of(size, block)
    wanted = torch.sym_max(1, PROGRAMS // others)
    part = blocks_of(blocks, torch.sym_min(blocks, wanted))
    part = block * (part if most is None else torch.sym_min(most, part))
    return blocks_of(size, part), part


def _sums(parts: Any, size: Any, out: Tensor) -> Tensor:
    """Where the programs of a launch store their parts: `out` itself if there is one part.

    Otherwise a flat tensor of `size` numbers a part. A trace can keep the number of parts open.
    """
    if isinstance(parts, int) and parts == 1:
        return out
    return torch.empty(parts * size, dtype=torch.float32, device=out.device)


def _add(sums: Tensor, parts: Any, size: Any, out: Tensor, first: Any = 0) -> None:
    """Write the sums over the parts to `out`, from element `first` on, if they are not there."""
    if sums is not out:
        numbers = (first, size, parts)
        programs = blocks_of(size, SUMS["BLOCK"])
        run_kept(linear_bernoulli_sum_kernel, programs, (sums, out), numbers, SUMS, 4)


def forward(a: Arguments) -> Tensors:
    of = _Layer(a)
    log_prob = of.hidden.new_empty((of.samples, of.images), dtype=torch.float32)

    def run(tile: ProductTile) -> None:
        row_blocks = blocks_of(of.rows, tile.rows)
        parts, part = _parts(of.pixels, tile.pixels, row_blocks, most=FACTORS)
        sums = _sums(parts, of.rows, log_prob)
        run_kept(
            linear_bernoulli_forward_kernel,
            row_blocks * parts,
            (*of.tensors, sums),
            (of.rows, of.images, parts, part),
            of.of_logits(tile),
            tile.num_warps,
        )
        _add(sums, parts, of.rows, log_prob)

    if of.rows > 0:
        usual = of.tile("logits", of.rows, of.pixels)
        with_tile("linear_bernoulli_forward", of.case, of.tensors, usual, run)
    return (log_prob,)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, ...]) -> Tensors:
    (grad,) = grads
    need_hidden, need_weight, need_bias, need_x = needs
    of_layer: Tensors = (None, None, None)
    if need_hidden or need_weight or need_bias:
        of_layer = grad_layer(a, grad, need_hidden, need_weight, need_bias)
    return *of_layer, grad_x(a, grad) if need_x else None


def grad_layer(
    a: Arguments, grad: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool
) -> Tensors:
    """The gradients of hidden units, weights and bias, those that are needed."""
    of = _Layer(a)
    if of.rows == 0:
        return tuple(torch.zeros_like(t) for t in (a.hidden, a.weight, a.bias))
    padded = 16 * blocks_of(of.pixels, 16)  # so that Triton aligns accesses to 16 bytes
    chunk = max(CHUNK_ROWS, CHUNK // (padded * of.operand.itemsize) // CHUNK_ROWS * CHUNK_ROWS)
    one = chunk >= of.rows
    residuals = of.hidden.new_empty((of.rows if one else chunk, padded), dtype=of.operand)
    of_hidden = of.hidden.new_empty(of.hidden.shape) if need_hidden else None
    of_weight = of_bias = None
    start = 0
    # Not a range, which would fix the number of rows in a trace. So it fixes the number of chunks.
    while start < of.rows:
        end = of.rows if one else min(start + chunk, of.rows)
        # The sums of several chunks are rounded once, at the end.
        bias_part = of.bias.new_empty((of.pixels,), dtype=of.bias.dtype if one else torch.float32)
        _write_residuals(of, grad, start, end, residuals, bias_part, need_bias)
        if need_bias:
            of_bias = bias_part if of_bias is None else of_bias + bias_part
        residual = residuals[: end - start, : of.pixels]
        if need_weight:
            dtype = of.weight.dtype if one else torch.float32
            part = of.weight.new_empty((of.pixels, of.width), dtype=dtype)
            hidden = of.hidden if one else of.hidden[start:end]
            _multiply(of, residual.t(), hidden, part, open_rows=False)
            of_weight = part if of_weight is None else of_weight + part
        if of_hidden is not None:
            _multiply(of, residual, of.weight, of_hidden, open_rows=True, first_row=start)
        start += chunk
    return (
        None if of_hidden is None else of_hidden.view(a.hidden.shape),
        None if of_weight is None else of_weight.to(a.weight.dtype),
        None if of_bias is None else of_bias.to(a.bias.dtype),
    )


def _write_residuals(
    of: _Layer,
    grad: Tensor,
    start: Any,
    end: Any,
    residuals: Tensor,
    of_bias: Tensor,
    need_sums: bool,
) -> None:
    # Residuals of the rows from `start` to `end`, and their sums over these rows if needed.
    rows, pixels = end - start, of.pixels

    def run(tile: ProductTile) -> None:
        pixel_blocks = blocks_of(pixels, tile.pixels)
        parts, part = _parts(rows, tile.rows, pixel_blocks)
        sums = _sums(parts, pixels, of_bias)
        sizes = (start, end, of.images, *grad.stride(), residuals.stride(0))
        run_kept(
            linear_bernoulli_residual_kernel,
            pixel_blocks * parts,
            (grad, *of.tensors, residuals, sums),
            (*sizes, parts, part),
            of.of_logits(tile),
            tile.num_warps,
        )
        if need_sums:
            _add(sums, parts, pixels, of_bias)

    usual = of.tile("logits", rows, pixels)
    with_tile("linear_bernoulli_residual", of.case, (grad, *of.tensors), usual, run)


def _multiply(
    of: _Layer, a: Tensor, b: Tensor, out: Tensor, open_rows: bool, first_row: Any = 0
) -> None:
    # Writes a·b to `out`, from `first_row` on. Either the rows of `a` or the terms are the rows of
    # a chunk. The chunk's part of `out` is not passed as a view, which a trace would copy.
    (rows, terms), columns = a.shape, b.shape[1]
    sizes = {"ROWS": 0, "TERMS": terms} if open_rows else {"ROWS": rows, "TERMS": 0}
    strides = {
        "A_ROW_STRIDE": a.stride(0),
        "A_TERM_STRIDE": a.stride(1),
        "B_TERM_STRIDE": b.stride(0),
        "B_COLUMN_STRIDE": b.stride(1),
    }

    def run(tile: ProductTile) -> None:
        tiles = blocks_of(rows, tile.rows) * blocks_of(columns, tile.pixels)
        # A trace with an open number of rows also serves many rows, which need no sharing.
        many = open_rows and not isinstance(tiles, int)
        parts, part = (1, terms) if many else _parts(terms, tile.hidden, tiles)
        sums = _sums(parts, rows * columns, out)
        block = {
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.pixels,
            "BLOCK_TERMS": tile.hidden,
            "STAGES": tile.stages,
        }
        run_kept(
            linear_bernoulli_product_kernel,
            tiles * parts,
            (a, b, sums),
            (first_row if sums is out else 0, rows if open_rows else terms, parts, part),
            {**sizes, "COLUMNS": columns, **strides, **of.constants, **block},
            tile.num_warps,
        )
        _add(sums, parts, rows * columns, out, first_row * columns)

    usual = of.tile("product", rows, columns, terms)
    case = (of.kind, open_rows, columns, *strides.values())
    with_tile("linear_bernoulli_product", case, (a, b), usual, run)
