"""The latent op's Triton kernels. Constexpr flags: whether z is written, and which KL is summed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import jit, tl
from ..define import Tensors
from ..launch import launch
from ..noise.kernel import normal_jit
from ..scalar import excess_jit, expm1_jit, sigma_jit
from .twin import KLS, MONTE_CARLO, Arguments, draws

# Samples of its rows that one program draws at most; more samples are spread over programs.
SAMPLES_PER_PROGRAM = 8


@jit
def latent_forward_kernel(  # type: ignore[no-untyped-def]
    mu_ptr,  # (B, D), rows MU_STRIDE apart
    logvar_ptr,  # (B, D), rows LOGVAR_STRIDE apart
    noise_ptr,  # (2,) int64
    z_ptr,  # (S, B, D)
    kl_ptr,  # (sample blocks, B) float32
    n_rows,
    num_samples,
    row_offset,
    sample_offset,
    scale,  # 1 / S for a Monte Carlo KL
    D: tl.constexpr,
    MU_STRIDE: tl.constexpr,
    LOGVAR_STRIDE: tl.constexpr,
    WRITE_Z: tl.constexpr,
    KL: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    QUADS: tl.constexpr = (D + 3) // 4
    scale = tl.cast(scale, tl.float32)  # inductor passes Python's floats as float64
    # Sample blocks vary fastest. With one sample Triton knows their number, and removes this
    # arithmetic at compile time.
    sample_blocks = tl.cdiv(num_samples, SAMPLES)
    sample_block = (tl.program_id(0) % sample_blocks).to(tl.int64)
    rows = (tl.program_id(0) // sample_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    kl = tl.zeros((BLOCK_ROWS,), tl.float32)
    if WRITE_Z or KL > 1:
        key = tl.load(noise_ptr)
        step = tl.load(noise_ptr + 1)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mask = (rows < n_rows)[:, None] & (columns < D)[None, :]
        mu_at = mu_ptr + rows[:, None] * MU_STRIDE + columns[None, :]
        logvar_at = logvar_ptr + rows[:, None] * LOGVAR_STRIDE + columns[None, :]
        mu = tl.load(mu_at, mask=mask, other=0.0).to(tl.float32)
        logvar = tl.load(logvar_at, mask=mask, other=0.0).to(tl.float32)
        if KL == 1:
            kl += 0.5 * tl.sum(mu * mu + excess_jit(logvar), 1)
        if WRITE_Z or KL > 1:
            sigma = sigma_jit(logvar)
            quads = start // 4 + tl.arange(0, BLOCK_D // 4)
            quad = (rows + row_offset)[:, None] * QUADS + quads[None, :]
            first = sample_block * SAMPLES
            last = tl.minimum(first + SAMPLES, num_samples)
            if KL > 1:
                terms = (first - last).to(tl.float32) * logvar
            for s in range(first, last):
                sample = tl.cast(s, tl.int64)
                eps = normal_jit(key, step, sample + sample_offset, quad, BLOCK_ROWS, BLOCK_D)
                z = mu + sigma * eps
                if WRITE_Z:
                    z_at = z_ptr + (sample * n_rows + rows)[:, None] * D + columns[None, :]
                    tl.store(z_at, z.to(z_ptr.dtype.element_ty), mask=mask)
                if KL > 1:
                    # Beyond the edge mu = logvar = 0, hence z = eps and the term is 0.
                    terms += (z - eps) * (z + eps)
            if KL > 1:
                kl += (0.5 * scale) * tl.sum(terms, 1)
    if KL > 0:
        # Every block of samples has the same analytic KL, so only the first one writes it.
        mask = (rows < n_rows) & ((KL > 1) | (sample_block == 0))
        tl.store(kl_ptr + sample_block * n_rows + rows, kl, mask=mask)


@jit
def latent_backward_kernel(  # type: ignore[no-untyped-def]
    grad_z_ptr,  # (S, B, D)
    grad_kl_ptr,  # (B,) float32
    mu_ptr,
    logvar_ptr,
    noise_ptr,
    grad_mu_ptr,  # (B, D)
    grad_logvar_ptr,  # (B, D)
    n_rows,
    num_samples,
    row_offset,
    sample_offset,
    scale,
    D: tl.constexpr,
    MU_STRIDE: tl.constexpr,
    LOGVAR_STRIDE: tl.constexpr,
    GRAD_Z: tl.constexpr,
    KL: tl.constexpr,
    NEED_MU: tl.constexpr,
    NEED_LOGVAR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    QUADS: tl.constexpr = (D + 3) // 4
    scale = tl.cast(scale, tl.float32)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    READ_MU: tl.constexpr = KL > 1 or (KL == 1 and NEED_MU)
    READ_LOGVAR: tl.constexpr = KL > 1 or NEED_LOGVAR
    DRAW: tl.constexpr = KL > 1 or (GRAD_Z and NEED_LOGVAR)
    if DRAW:
        key = tl.load(noise_ptr)
        step = tl.load(noise_ptr + 1)
    if KL > 0:
        grad_kl = tl.load(grad_kl_ptr + rows, mask=rows < n_rows, other=0.0)[:, None]
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mask = (rows < n_rows)[:, None] & (columns < D)[None, :]
        grad_mu = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
        grad_logvar = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
        if READ_MU:
            mu_at = mu_ptr + rows[:, None] * MU_STRIDE + columns[None, :]
            mu = tl.load(mu_at, mask=mask, other=0.0).to(tl.float32)
        if READ_LOGVAR:
            logvar_at = logvar_ptr + rows[:, None] * LOGVAR_STRIDE + columns[None, :]
            logvar = tl.load(logvar_at, mask=mask, other=0.0).to(tl.float32)
            sigma = sigma_jit(logvar)
        if KL == 2:
            slope = sigma
        if KL == 3:
            slope = sigma - 1.0 / sigma
        if GRAD_Z or KL > 1:
            for s in range(num_samples):
                sample = tl.cast(s, tl.int64)
                along_z = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
                if GRAD_Z:
                    row_at = (sample * n_rows + rows)[:, None] * D
                    grad_z_at = grad_z_ptr + row_at + columns[None, :]
                    along_z += tl.load(grad_z_at, mask=mask, other=0.0).to(tl.float32)
                if DRAW:
                    quads = start // 4 + tl.arange(0, BLOCK_D // 4)
                    quad = (rows + row_offset)[:, None] * QUADS + quads[None, :]
                    eps = normal_jit(key, step, sample + sample_offset, quad, BLOCK_ROWS, BLOCK_D)
                if KL > 1:
                    along_z += (scale * grad_kl) * (mu + slope * eps)
                grad_mu += along_z
                if DRAW:
                    grad_logvar += along_z * eps
        if NEED_LOGVAR and DRAW:  # otherwise grad_logvar is 0, and 0·∞ would be NaN
            grad_logvar *= 0.5 * sigma
        if KL == 2:
            grad_logvar -= 0.5 * grad_kl
        if KL == 1:
            if NEED_MU:
                grad_mu += grad_kl * mu
            if NEED_LOGVAR:
                grad_logvar += grad_kl * (0.5 * expm1_jit(logvar))
        at = rows[:, None] * D + columns[None, :]
        if NEED_MU:
            tl.store(grad_mu_ptr + at, grad_mu.to(grad_mu_ptr.dtype.element_ty), mask=mask)
        if NEED_LOGVAR:
            out = grad_logvar.to(grad_logvar_ptr.dtype.element_ty)
            tl.store(grad_logvar_ptr + at, out, mask=mask)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def forward(a: Arguments) -> Tensors:
    rows, columns = a.mu.shape
    samples = min(a.num_samples, SAMPLES_PER_PROGRAM) if draws(a) else a.num_samples
    sample_blocks = -(-a.num_samples // samples)
    mu, logvar = _with_contiguous_rows(a.mu), _with_contiguous_rows(a.logvar)
    z = mu.new_empty((a.num_samples, rows, columns) if a.write_z else (0,))
    kl_blocks = sample_blocks if a.kl in MONTE_CARLO else 1
    kl = mu.new_empty((kl_blocks, rows) if a.kl != "none" else (0,), dtype=torch.float32)
    if rows > 0:
        launch(
            latent_forward_kernel,
            "latent_forward",
            columns,
            lambda block_rows: -(-rows // block_rows) * sample_blocks,
            (
                *(mu, logvar, _contiguous(a.noise), z, kl),
                *(rows, a.num_samples, a.row_offset, a.sample_offset, 1.0 / a.num_samples),
            ),
            {
                "D": columns,
                "MU_STRIDE": mu.stride(0),
                "LOGVAR_STRIDE": logvar.stride(0),
                "WRITE_Z": a.write_z,
                "KL": KLS.index(a.kl),
                "SAMPLES": samples,
            },
        )
    if a.kl == "none":
        return z, kl, None
    return z, kl[0] if kl_blocks == 1 else kl.sum(0), None


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    grad_z, grad_kl = grads
    need_mu, need_logvar = needs
    rows, columns = a.mu.shape
    mu, logvar = _with_contiguous_rows(a.mu), _with_contiguous_rows(a.logvar)
    grad_mu = mu.new_empty((rows, columns) if need_mu else (0,))
    grad_logvar = mu.new_empty((rows, columns) if need_logvar else (0,))
    if rows > 0:
        launch(
            latent_backward_kernel,
            "latent_backward",
            columns,
            lambda block_rows: -(-rows // block_rows),
            (
                *(_contiguous(grad_z), _contiguous(grad_kl)),
                *(mu, logvar, _contiguous(a.noise), grad_mu, grad_logvar),
                *(rows, a.num_samples, a.row_offset, a.sample_offset, 1.0 / a.num_samples),
            ),
            {
                "D": columns,
                "MU_STRIDE": mu.stride(0),
                "LOGVAR_STRIDE": logvar.stride(0),
                "GRAD_Z": grad_z is not None,
                "KL": KLS.index(a.kl) if grad_kl is not None else 0,
                "NEED_MU": need_mu,
                "NEED_LOGVAR": need_logvar,
            },
        )
    return grad_mu, grad_logvar
