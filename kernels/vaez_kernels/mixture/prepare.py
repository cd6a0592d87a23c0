"""The mixture's first launch: operands as the main kernels read them."""

from __future__ import annotations

from ..backend import jit, jit_with_run_time, tl
from ..scalar import exp_jit


@jit
def block_jit(  # type: ignore[no-untyped-def]
    x_ptr, rows, columns, n_rows, n_columns, row_stride, column_stride
):  # → (rows, columns) float32, 0 beyond the tensor
    at = rows * tl.cast(row_stride, tl.int64) + columns * tl.cast(column_stride, tl.int64)
    return tl.load(x_ptr + at, mask=(rows < n_rows) & (columns < n_columns), other=0.0).to(
        tl.float32
    )


@jit_with_run_time("n_rows", "n_components", "tiles", "D", "width")
def mixture_prepare_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (M, D)
    mu_ptr,  # (N, D)
    logvar_ptr,  # (N, D)
    z_out_ptr,  # (D, M) float32, M padded to whole blocks, as below
    mu_out_ptr,  # (D, N) float32, N padded to whole blocks, as below
    inverse_sigma_ptr,  # (D, N) float32
    log_normaliser_ptr,  # (N,) float64: −½ Σ_D logvar; −inf beyond the components
    highest_ptr,  # (tiles,) float64: the largest finite normaliser of each tile
    rows_of_z_ptr,  # (M, WIDTH) float32, for backward alone
    rows_of_mu_ptr,  # (N, WIDTH) float32, likewise
    precision_ptr,  # (N, WIDTH) float32, likewise
    n_rows,  # draws
    n_components,
    tiles,
    z_row_stride,
    z_column_stride,
    mu_row_stride,
    mu_column_stride,
    logvar_row_stride,
    logvar_column_stride,
    z_stride,
    n_stride,
    D,
    width,  # D for forward
    BACKWARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # The first programs take a tile of components each, the others as many draws.
    z_stride, n_stride = tl.cast(z_stride, tl.int64), tl.cast(n_stride, tl.int64)
    if tl.program_id(0) < tiles:
        rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        sums = tl.zeros((BLOCK_N, COLUMNS), tl.float64)
        for start in range(0, width, COLUMNS):
            d = start + tl.arange(0, COLUMNS)[None, :]
            mu = block_jit(mu_ptr, rows, d, n_components, D, mu_row_stride, mu_column_stride)
            # Beyond the components σ = 1, so that z = ∞ has the score −∞ there, as everywhere, not
            # NaN.
            logvar = block_jit(
                logvar_ptr, rows, d, n_components, D, logvar_row_stride, logvar_column_stride
            )
            sums += logvar.to(tl.float64)
            at = d * n_stride + rows
            tl.store(mu_out_ptr + at, mu, mask=d < D)
            tl.store(inverse_sigma_ptr + at, exp_jit(-0.5 * logvar), mask=d < D)
            if BACKWARD:
                at = rows * width + d
                tl.store(rows_of_mu_ptr + at, mu, mask=d < width)
                tl.store(precision_ptr + at, exp_jit(-logvar), mask=d < width)
        exact = -0.5 * tl.sum(sums, 1)[:, None]
        exact = tl.where(rows < n_components, exact, -float("inf"))
        tl.store(log_normaliser_ptr + rows, exact)
        finite = tl.where(tl.abs(exact) < float("inf"), exact, -float("inf"))
        tl.store(highest_ptr + tl.program_id(0), tl.max(tl.max(finite, 1), 0))
    else:
        rows = (tl.program_id(0) - tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        live = rows < z_stride
        for start in range(0, width, COLUMNS):
            d = start + tl.arange(0, COLUMNS)[None, :]
            z = block_jit(z_ptr, rows, d, n_rows, D, z_row_stride, z_column_stride)
            tl.store(z_out_ptr + d * z_stride + rows, z, mask=live & (d < D))
            if BACKWARD:
                tl.store(rows_of_z_ptr + rows * width + d, z, mask=live & (d < width))


@jit
def shift_jit(highest_ptr, tiles):  # type: ignore[no-untyped-def]
    # → the largest finite normaliser, float64; 0 if there is none. Scores are relative to it,
    # because float32 would lose digits of large normalisers.
    best = tl.full((32,), -float("inf"), tl.float64)
    for start in range(0, tiles, 32):
        at = start + tl.arange(0, 32)
        best = tl.maximum(best, tl.load(highest_ptr + at, mask=at < tiles, other=-float("inf")))
    shift = tl.max(best, 0)
    return tl.where(shift == -float("inf"), 0.0, shift)
