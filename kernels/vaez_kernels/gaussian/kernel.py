"""The Gaussian likelihood's Triton kernels. A program computes some rows of one sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import jit, tl
from ..bernoulli.kernel import readable
from ..define import Tensors
from ..launch import launch
from ..scalar import sigma_jit
from .twin import Arguments


@jit
def gaussian_rows_jit(n_rows, BLOCK_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # → sample, rows (BLOCK_ROWS,), and which rows exist
    row_blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    sample = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return sample, rows, rows < n_rows


@jit
def standardised_jit(mean_at, logvar_at, x_at, mask):  # type: ignore[no-untyped-def]
    # → (x − mean)/σ, logvar and 1/σ; beyond the mask 0, 0 and 1
    mean = tl.load(mean_at, mask=mask, other=0.0).to(tl.float32)
    logvar = tl.load(logvar_at, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_at, mask=mask, other=0).to(tl.float32)
    inverse_sigma = sigma_jit(-logvar)
    return (x - mean) * inverse_sigma, logvar, inverse_sigma


@jit
def gaussian_forward_kernel(  # type: ignore[no-untyped-def]
    mean_ptr,  # (S, B, P), samples mean_sample_stride apart, rows MEAN_STRIDE
    logvar_ptr,  # (S, B, P), rows LOGVAR_STRIDE apart
    x_ptr,  # (B, P), rows X_STRIDE apart
    out_ptr,  # (S, B) float32
    n_rows,
    mean_sample_stride,
    logvar_sample_stride,
    P: tl.constexpr,
    MEAN_STRIDE: tl.constexpr,
    LOGVAR_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample, rows, live = gaussian_rows_jit(n_rows, BLOCK_ROWS)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for start in range(0, P, BLOCK_D):
        pixels = start + tl.arange(0, BLOCK_D)[None, :]
        mask = live[:, None] & (pixels < P)
        t, logvar, _ = standardised_jit(
            mean_ptr + sample * mean_sample_stride + rows[:, None] * MEAN_STRIDE + pixels,
            logvar_ptr + sample * logvar_sample_stride + rows[:, None] * LOGVAR_STRIDE + pixels,
            x_ptr + rows[:, None] * X_STRIDE + pixels,
            mask,
        )
        sums += t * t + logvar
    total = tl.sum(sums, 1) + 1.8378770664093453 * P
    tl.store(out_ptr + sample * n_rows + rows, -0.5 * total, mask=live)


@jit
def gaussian_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,  # (S, B) float32, of any strides
    mean_ptr,
    logvar_ptr,
    x_ptr,
    grad_mean_ptr,  # (S, B, P)
    grad_logvar_ptr,  # (S, B, P)
    n_rows,
    grad_sample_stride,
    grad_row_stride,
    mean_sample_stride,
    logvar_sample_stride,
    P: tl.constexpr,
    MEAN_STRIDE: tl.constexpr,
    LOGVAR_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    NEED_MEAN: tl.constexpr,
    NEED_LOGVAR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sample, rows, live = gaussian_rows_jit(n_rows, BLOCK_ROWS)
    grad_at = grad_ptr + sample * grad_sample_stride + rows * grad_row_stride
    grad = tl.load(grad_at, mask=live, other=0.0)[:, None]
    for start in range(0, P, BLOCK_D):
        pixels = start + tl.arange(0, BLOCK_D)[None, :]
        mask = live[:, None] & (pixels < P)
        t, _, inverse_sigma = standardised_jit(
            mean_ptr + sample * mean_sample_stride + rows[:, None] * MEAN_STRIDE + pixels,
            logvar_ptr + sample * logvar_sample_stride + rows[:, None] * LOGVAR_STRIDE + pixels,
            x_ptr + rows[:, None] * X_STRIDE + pixels,
            mask,
        )
        at = (sample * n_rows + rows[:, None]) * P + pixels
        if NEED_MEAN:  # tl.store rounds to the tensor's dtype
            tl.store(grad_mean_ptr + at, grad * (t * inverse_sigma), mask=mask)
        if NEED_LOGVAR:
            tl.store(grad_logvar_ptr + at, grad * (0.5 * (t * t - 1.0)), mask=mask)


def _launch(
    kernel: Any,
    name: str,
    a: Arguments,
    upstream: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    flags: dict[str, bool],
) -> None:
    samples, rows, pixels = a.mean.shape
    mean, logvar, x = readable(a.mean), readable(a.logvar), readable(a.x)
    strides = [stride for grad in upstream for stride in grad.stride()]
    launch(
        kernel,
        name,
        pixels,
        lambda block_rows: -(-rows // block_rows) * samples,
        (*upstream, mean, logvar, x, *outputs, rows, *strides, mean.stride(0), logvar.stride(0)),
        {
            "P": pixels,
            "MEAN_STRIDE": mean.stride(1),
            "LOGVAR_STRIDE": logvar.stride(1),
            "X_STRIDE": x.stride(0),
            **flags,
        },
    )


def forward(a: Arguments) -> Tensors:
    out = a.mean.new_empty(a.mean.shape[:2], dtype=torch.float32)
    if a.mean.shape[1] > 0:
        _launch(gaussian_forward_kernel, "gaussian_forward", a, (), (out,), {})
    return (out,)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    gradients = tuple(a.mean.new_empty(a.mean.shape if need else (0,)) for need in needs)
    if a.mean.shape[1] > 0:
        flags = {"NEED_MEAN": needs[0], "NEED_LOGVAR": needs[1]}
        kernel, name = gaussian_backward_kernel, "gaussian_backward"
        _launch(kernel, name, a, grads, gradients, flags)
    return gradients
