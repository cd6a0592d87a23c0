"""Sampling z and the KL of q(z|x) = N(mu, exp(logvar)) to N(0, I): one kernel pair for the family.

Constexpr flags say whether z is written and which KL is summed; rows never meet, so a data point's
numbers do not depend on its batch. Everything is computed in float32 from inputs of any float type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import (
    goes_through_op,
    is_plain,
    jit,
    launcher,
    no_second_derivative,
    same_backend,
    tl,
    undecorated,
    uses_triton,
)
from ..checks import check_choice, check_count, check_latent, check_noise
from ..compiler import canonical, compiled, has_cpu_compiler, kind
from ..launch import launch
from ..noise import check_offsets, draw, normal_jit
from ..registration import triton_op

MONTE_CARLO = ("total-derivative", "sticking-the-landing")
KLS = ("none", "analytic", *MONTE_CARLO)  # the kernels' KL flag is the index here
# A program draws up to so many samples of its rows; more are spread over programs.
SAMPLES_PER_PROGRAM = 8


@jit
def excess_tail_jit(logvar):  # type: ignore[no-untyped-def]
    """(exp(l) − 1 − l) / l² for |l| ≤ ½: degree-4 minimax, relative error 9.3e-7 in float32.

    One body for Triton and PyTorch. The KL's variance term is exp(l) − 1 − l; as expm1(l) − l it
    would lose its digits where training ends, at l → 0 (measured: 5e-4).
    """
    p = 0.00139146532772
    p = p * logvar + 0.00839541103558
    p = p * logvar + 0.0416674768501
    p = p * logvar + 0.16666280115
    return p * logvar + 0.499999959737


excess_tail = undecorated(excess_tail_jit)


# The Triton kernels.


@jit
def sigma_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l / 2)
    # exp2 saves four instructions: exp multiplies by log₂e first and keeps subnormal results.
    return tl.exp2(0.7213475204444817 * logvar)


@jit
def excess_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l) − 1 − l
    direct = tl.exp2(1.4426950408889634 * logvar) - 1.0 - logvar
    return tl.where(tl.abs(logvar) < 0.5, logvar * logvar * excess_tail_jit(logvar), direct)


@jit
def expm1_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l) − 1
    # Not l + excess: it cancels digits where −l is large, and is NaN at ±∞.
    near = logvar + logvar * logvar * excess_tail_jit(logvar)
    return tl.where(tl.abs(logvar) < 0.5, near, tl.exp2(1.4426950408889634 * logvar) - 1.0)


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
    # Samples vary fastest: with one of them Triton knows, and all this arithmetic folds away.
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
        # Every block of samples has the same analytic KL: the first one writes it.
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
        if NEED_LOGVAR and DRAW:  # else it is 0, and 0·∞ would be NaN
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


def _launch_forward(
    kernel: Any,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    num_samples: int,
    write_z: bool,
    kl: str,
    row_offset: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor]:
    rows, columns = mu.shape
    samples = min(num_samples, SAMPLES_PER_PROGRAM) if _draws(write_z, kl) else num_samples
    sample_blocks = -(-num_samples // samples)
    mu, logvar = _with_contiguous_rows(mu), _with_contiguous_rows(logvar)
    z = mu.new_empty((num_samples, rows, columns) if write_z else (0,))
    kl_blocks = sample_blocks if kl in MONTE_CARLO else 1
    kl_rows = mu.new_empty((kl_blocks, rows) if kl != "none" else (0,), dtype=torch.float32)
    if rows > 0:
        launch(
            kernel,
            "latent_forward",
            columns,
            lambda block_rows: -(-rows // block_rows) * sample_blocks,
            (
                *(mu, logvar, _contiguous(noise), z, kl_rows),
                *(rows, num_samples, row_offset, sample_offset, 1.0 / num_samples),
            ),
            {
                "D": columns,
                "MU_STRIDE": mu.stride(0),
                "LOGVAR_STRIDE": logvar.stride(0),
                "WRITE_Z": write_z,
                "KL": KLS.index(kl),
                "SAMPLES": samples,
            },
        )
    if kl == "none":
        return z, kl_rows
    return z, kl_rows[0] if kl_blocks == 1 else kl_rows.sum(0)


def _launch_backward(
    kernel: Any,
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    num_samples: int,
    kl: str,
    row_offset: int,
    sample_offset: int,
    need_mu: bool,
    need_logvar: bool,
) -> tuple[Tensor, Tensor]:
    rows, columns = mu.shape
    mu, logvar = _with_contiguous_rows(mu), _with_contiguous_rows(logvar)
    grad_mu = mu.new_empty((rows, columns) if need_mu else (0,))
    grad_logvar = mu.new_empty((rows, columns) if need_logvar else (0,))
    if rows > 0:
        launch(
            kernel,
            "latent_backward",
            columns,
            lambda block_rows: -(-rows // block_rows),
            (
                *(_contiguous(grad_z), _contiguous(grad_kl)),
                *(mu, logvar, _contiguous(noise), grad_mu, grad_logvar),
                *(rows, num_samples, row_offset, sample_offset, 1.0 / num_samples),
            ),
            {
                "D": columns,
                "MU_STRIDE": mu.stride(0),
                "LOGVAR_STRIDE": logvar.stride(0),
                "GRAD_Z": grad_z is not None,
                "KL": KLS.index(kl) if grad_kl is not None else 0,
                "NEED_MU": need_mu,
                "NEED_LOGVAR": need_logvar,
            },
        )
    return grad_mu, grad_logvar


# The PyTorch twin. float64 stays float64, all else is computed in float32.


def _excess(logvar: Tensor) -> Tensor:
    if logvar.dtype == torch.float64:
        return torch.expm1(logvar) - logvar
    direct = torch.exp(logvar) - 1.0 - logvar
    return torch.where(logvar.abs() < 0.5, logvar * logvar * excess_tail(logvar), direct)


def _expm1(logvar: Tensor) -> Tensor:  # see expm1_jit
    if logvar.dtype == torch.float64:
        return torch.expm1(logvar)
    near = logvar + logvar * logvar * excess_tail(logvar)
    return torch.where(logvar.abs() < 0.5, near, torch.exp(logvar) - 1.0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _twin_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, write_z: bool, kl: str
) -> tuple[Tensor, Tensor]:
    dtype = mu.dtype
    mu, logvar = _wide(mu), _wide(logvar)
    z = mu.new_empty((0,), dtype=dtype)
    kl_rows = mu.new_empty((0,))
    if kl == "analytic":
        kl_rows = (0.5 * (mu * mu + _excess(logvar))).sum(1)
    if eps is not None:
        wide_z = mu + torch.exp(0.5 * logvar) * eps
        if kl in MONTE_CARLO:
            term = 0.5 * (wide_z - eps) * (wide_z + eps) - 0.5 * logvar
            kl_rows = term.sum(2).mean(0)
        if write_z:
            z = wide_z.to(dtype)
    return z, kl_rows


def _twin_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    kl: str,
    need_mu: bool,
    need_logvar: bool,
) -> tuple[Tensor, Tensor]:
    dtype = mu.dtype
    mu, logvar = _wide(mu), _wide(logvar)
    grad_mu, grad_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    if grad_z is not None:
        assert eps is not None
        wide = _wide(grad_z)
        grad_mu = grad_mu + wide.sum(0)
        grad_logvar = grad_logvar + 0.5 * torch.exp(0.5 * logvar) * (wide * eps).sum(0)
    if grad_kl is not None:
        upstream = grad_kl[:, None]
        if kl == "analytic":
            grad_mu = grad_mu + upstream * mu
            grad_logvar = grad_logvar + upstream * (0.5 * _expm1(logvar))
        elif kl in MONTE_CARLO:
            assert eps is not None
            shift = torch.exp(0.5 * logvar) * eps
            if kl == "total-derivative":
                path = mu + shift
                score = 1.0
            else:  # the path derivative alone, Roeder et al. 2017, equation 8
                path = mu + shift - eps * torch.exp(-0.5 * logvar)
                score = 0.0
            grad_mu = grad_mu + upstream * path.mean(0)
            grad_logvar = grad_logvar + upstream * (0.5 * (path * shift - score)).mean(0)
    none = mu.new_empty((0,), dtype=dtype)
    return (
        grad_mu.to(dtype) if need_mu else none,
        grad_logvar.to(dtype) if need_logvar else none,
    )


# From so many elements on, a compiled call beats the eager ones: 32 against 79 µs at 128×20.
COMPILE_FROM = 1 << 10
_DIMS = {_twin_forward: "BD BD SBD", _twin_backward: "SBD B BD BD SBD"}


def _run_twin(twin: Any, mu: Tensor, eps: Tensor | None, *args: Any) -> Any:
    elements = mu.numel() if eps is None else eps.numel()
    worth_it = mu.device.type == "cpu" and elements >= COMPILE_FROM
    if worth_it and mu.dtype != torch.float64 and has_cpu_compiler():
        args = tuple(canonical(x) for x in args)
        code = compiled(twin, _DIMS[twin], tuple(kind(x) for x in args))
        if code is not None:
            return code(*(x for x in args if isinstance(x, Tensor)))
    return twin(*args)


# Registration. The forward also returns eps where the fallback drew it, for its own backward;
# drawing it again would cost as much as the rest. The kernels return it empty.


def _draws(write_z: bool, kl: str) -> bool:
    return write_z or kl in MONTE_CARLO


@triton_op("vaez::latent_forward", latent_forward_kernel)
def latent_forward_op(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    num_samples: int,
    write_z: bool,
    kl: str,
    row_offset: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    args = (num_samples, write_z, kl, row_offset, sample_offset)
    no_eps = mu.new_empty((0,), dtype=torch.float32)
    if uses_triton(mu):
        kernel = launcher(latent_forward_kernel)
        return (*_launch_forward(kernel, mu, logvar, noise, *args), no_eps)
    eps = None
    if noise is not None and _draws(write_z, kl):
        rows, columns = mu.shape
        eps = torch.ops.vaez.noise_twin(
            noise, num_samples, rows, columns, row_offset, sample_offset, True
        )
    z, kl_rows = _twin_forward(mu, logvar, eps, write_z, kl)
    return z, kl_rows, no_eps if eps is None else eps


@triton_op("vaez::latent_backward", latent_backward_kernel)
def latent_backward_op(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    eps: Tensor,
    num_samples: int,
    kl: str,
    row_offset: int,
    sample_offset: int,
    need_mu: bool,
    need_logvar: bool,
) -> tuple[Tensor, Tensor]:
    needs = (need_mu, need_logvar)
    if uses_triton(mu):
        kernel = launcher(latent_backward_kernel)
        args = (num_samples, kl, row_offset, sample_offset, *needs)
        return _launch_backward(kernel, grad_z, grad_kl, mu, logvar, noise, *args)
    drawn = eps if eps.dim() == 3 else None
    if drawn is None and noise is not None and (grad_z is not None or kl in MONTE_CARLO):
        # The forward ran as a kernel, which saves none: the same numbers once more.
        rows, columns = mu.shape
        drawn = torch.ops.vaez.noise_twin(
            noise, num_samples, rows, columns, row_offset, sample_offset, True
        )
    return _twin_backward(grad_z, grad_kl, mu, logvar, drawn, kl, *needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mu, logvar, noise, num_samples, write_z, kl, row_offset, sample_offset = inputs
    z, kl_rows, eps = output
    # An output that was not asked for is an empty stand-in: no gradient may reach it.
    asked_for = ((z, write_z), (kl_rows, kl != "none"), (eps, False))
    ctx.mark_non_differentiable(*(output for output, asked in asked_for if not asked))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(mu, logvar, noise, eps)
    ctx.args = (num_samples, kl, row_offset, sample_offset)
    ctx.triton = uses_triton(mu)


def _op_backward(
    ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None, _grad_eps: Tensor | None
) -> tuple[Any, ...]:
    mu, logvar, noise, eps = ctx.saved_tensors
    need_mu, need_logvar = ctx.needs_input_grad[:2]
    if grad_z is None and grad_kl is None:
        return (None,) * 8
    with same_backend(ctx.triton):
        grad_mu, grad_logvar = torch.ops.vaez.latent_backward(
            grad_z, grad_kl, mu, logvar, noise, eps, *ctx.args, need_mu, need_logvar
        )
    return (grad_mu if need_mu else None, grad_logvar if need_logvar else None, *(None,) * 6)


latent_forward_op.register_autograd(_op_backward, setup_context=_setup_context)

latent_backward_op.register_autograd(no_second_derivative)


class _Latent(torch.autograd.Function):
    """`latent_forward_op` past the dispatcher, its twin compiled: what an eager call runs."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        noise: Tensor | None,
        num_samples: int,
        write_z: bool,
        kl: str,
        row_offset: int,
        sample_offset: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.args = (num_samples, kl, row_offset, sample_offset)
        ctx.triton = uses_triton(mu)  # backward follows, also outside a `use_backend` block
        eps = None
        if ctx.triton:
            args = (num_samples, write_z, kl, row_offset, sample_offset)
            with torch.cuda.device_of(mu):
                z, kl_rows = _launch_forward(latent_forward_kernel, mu, logvar, noise, *args)
        else:
            if noise is not None and _draws(write_z, kl):
                eps = draw(noise, (num_samples, *mu.shape), row_offset, sample_offset, True)
            z, kl_rows = _run_twin(_twin_forward, mu, eps, mu, logvar, eps, write_z, kl)
        ctx.save_for_backward(mu, logvar, noise, eps)
        return z, kl_rows

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Any, ...]:
        mu, logvar, noise, eps = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if grad_z is None and grad_kl is None:
            return (None,) * 8
        if goes_through_op(grad_z, grad_kl):
            eps = mu.new_empty((0,)) if eps is None else eps
            with same_backend(ctx.triton):
                grads = torch.ops.vaez.latent_backward(
                    grad_z, grad_kl, mu, logvar, noise, eps, *ctx.args, *needs
                )
        elif ctx.triton:
            with torch.cuda.device_of(mu):
                grads = _launch_backward(
                    latent_backward_kernel, grad_z, grad_kl, mu, logvar, noise, *ctx.args, *needs
                )
        else:
            kl = ctx.args[1]
            args = (grad_z, grad_kl, mu, logvar, eps, kl, *needs)
            grads = _run_twin(_twin_backward, mu, eps, *args)
        wanted = (grad if need else None for grad, need in zip(grads, needs, strict=True))
        return (*wanted, *(None,) * 6)


def _latent(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    num_samples: int,
    write_z: bool,
    kl: str,
    row_offset: int,
    sample_offset: int,
) -> tuple[Tensor, Tensor]:
    args = (mu, logvar, noise, num_samples, write_z, kl, row_offset, sample_offset)
    if is_plain(mu, logvar, noise):
        return _Latent.apply(*args)
    z, kl_rows, _ = torch.ops.vaez.latent_forward(*args)
    return z, kl_rows


# The public functions.


def _check_sampling(
    op: str,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int,
    row_offset: int,
    sample_offset: int,
) -> None:
    check_latent(op, mu, logvar)
    check_noise(op, noise, mu.device)
    check_count(op, "num_samples", num_samples, least=1)
    check_offsets(op, num_samples, row_offset, sample_offset)


def rsample(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """Reparameterised samples z = mu + exp(logvar/2)·eps (Kingma & Welling 2014, equation 10).

    eps is `normal(noise, S, B, D)`: the same numbers on every device and backend, in backward as in
    forward, for any S and any B.

    Args:
        mu, logvar: (B, D) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        noise: (2,) int64 on mu's device, from `noise_key`.
        num_samples: S ≥ 1.
        row_offset: the global index of row 0, in a batch that is spread over calls or ranks.
        sample_offset: the index of sample 0, when samples are streamed in chunks.

    Returns:
        z (S, B, D) in mu's dtype. Gradients flow to mu and logvar, in their dtype; there is no
        second derivative. NaN and infinity propagate; B = 0 gives an empty result.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or range.
    """
    _check_sampling("rsample", mu, logvar, noise, num_samples, row_offset, sample_offset)
    return _latent(mu, logvar, noise, num_samples, True, "none", row_offset, sample_offset)[0]


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, I)) in nats, ½ Σ_D (mu² + exp(logvar) − 1 − logvar).

    Kingma & Welling 2014, appendix B. Accurate where training ends: relative error below 1e-5 down
    to a KL of 1e-8, its gradient too.

    Args:
        mu, logvar: (B, D) float32, bfloat16 or float16 of any strides; float64 takes the fallback.

    Returns:
        (B,) float32 (float64 for float64 inputs), one KL for each data point.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape or device.
    """
    check_latent("kl_standard_normal", mu, logvar)
    return _latent(mu, logvar, None, 1, False, "analytic", 0, 0)[1]


def kl_standard_normal_mc(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    estimator: str = "total-derivative",
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """Monte Carlo KL: the mean over S samples of log q(z|x) − log p(z), in nats.

    Args:
        mu, logvar, noise, num_samples, row_offset, sample_offset: as for `rsample`.
        estimator: the gradient. "total-derivative" differentiates everything;
            "sticking-the-landing" keeps the path derivative alone, without the score term (Roeder
            et al. 2017, equation 8): same value, no variance where q = p.

    Returns:
        (B,) float32 (float64 for float64 inputs), one estimate for each data point.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or range.
    """
    op = "kl_standard_normal_mc"
    _check_sampling(op, mu, logvar, noise, num_samples, row_offset, sample_offset)
    check_choice(op, "estimator", estimator, MONTE_CARLO)
    return _latent(mu, logvar, noise, num_samples, False, estimator, row_offset, sample_offset)[1]


def rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor,
    num_samples: int = 1,
    kl: str = "analytic",
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """`rsample` and a KL in one pass over mu and logvar.

    Args:
        mu, logvar, noise, num_samples, row_offset, sample_offset: as for `rsample`.
        kl: "analytic" (`kl_standard_normal`), or an estimator of `kl_standard_normal_mc`, which
            then shares the noise of z.

    Returns:
        z (S, B, D) in mu's dtype, and the KL (B,) in float32 nats (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or range.
    """
    _check_sampling("rsample_kl", mu, logvar, noise, num_samples, row_offset, sample_offset)
    check_choice("rsample_kl", "kl", kl, KLS[1:])
    return _latent(mu, logvar, noise, num_samples, True, kl, row_offset, sample_offset)


__all__ = ["kl_standard_normal", "kl_standard_normal_mc", "rsample", "rsample_kl"]
