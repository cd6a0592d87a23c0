"""The products of the last layer's gradients, and sums that several programs share."""

from __future__ import annotations

from ..backend import jit, tl
from ..scalar import dot_jit


@jit
def linear_bernoulli_product_kernel(  # type: ignore[no-untyped-def]
    a_ptr,  # (rows, terms), of any strides
    b_ptr,  # (terms, columns), of any strides
    out_ptr,  # (parts, rows, columns), from row `first_row` on
    first_row,
    open_size,
    parts,
    part,  # terms of a program: whole blocks, or all
    ROWS: tl.constexpr,  # 0 for open_size: the number of rows of a chunk varies
    TERMS: tl.constexpr,  # likewise
    COLUMNS: tl.constexpr,
    A_ROW_STRIDE: tl.constexpr,
    A_TERM_STRIDE: tl.constexpr,
    B_TERM_STRIDE: tl.constexpr,
    B_COLUMN_STRIDE: tl.constexpr,
    BFLOAT16: tl.constexpr,  # whether b is rounded to it, as a is already
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
    STAGES: tl.constexpr,
):
    n_rows = open_size if ROWS == 0 else ROWS
    n_terms = open_size if TERMS == 0 else TERMS
    first = (tl.program_id(0) % parts) * part
    tile = tl.program_id(0) // parts
    column_tiles = tl.cdiv(COLUMNS, BLOCK_COLUMNS)
    rows = (tile // column_tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (tile % column_tiles) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    a_at = a_ptr + rows[:, None] * A_ROW_STRIDE
    b_at = b_ptr + columns[None, :].to(tl.int64) * B_COLUMN_STRIDE
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in tl.range(first, min(first + part, n_terms), BLOCK_TERMS, num_stages=STAGES):
        terms = (start + tl.arange(0, BLOCK_TERMS)).to(tl.int64)
        a_mask = (rows < n_rows)[:, None] & (terms < n_terms)[None, :]
        a = tl.load(a_at + terms[None, :] * A_TERM_STRIDE, mask=a_mask, other=0.0)
        b_mask = (terms < n_terms)[:, None] & (columns < COLUMNS)[None, :]
        b = tl.load(b_at + terms[:, None] * B_TERM_STRIDE, mask=b_mask, other=0.0)
        if BFLOAT16:
            b = b.to(tl.bfloat16)
        sums = dot_jit(a, b, sums, PRECISION)
    row_of_out = first_row + (tl.program_id(0) % parts).to(tl.int64) * n_rows + rows
    out_at = out_ptr + row_of_out[:, None] * COLUMNS + columns[None, :]
    mask = (rows < n_rows)[:, None] & (columns < COLUMNS)[None, :]
    tl.store(out_at, sums.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def linear_bernoulli_sum_kernel(  # type: ignore[no-untyped-def]
    parts_ptr,  # (parts, size) float32
    out_ptr,  # (size,), from element `first` on
    first,
    size,
    n_parts,
    PARTS: tl.constexpr,  # that are read at once
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    parts = tl.arange(0, PARTS)[:, None]
    sums = tl.zeros((PARTS, BLOCK), tl.float32)
    for start in range(0, n_parts, PARTS):
        part_at = parts_ptr + (start + parts).to(tl.int64) * size + at[None, :]
        mask = (start + parts < n_parts) & (at < size)[None, :]
        sums += tl.load(part_at, mask=mask, other=0.0)
    out = tl.sum(sums, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + first + at, out, mask=at < size)
