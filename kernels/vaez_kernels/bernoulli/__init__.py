"""Log-likelihood of pixels under independent Bernoullis with given logits.

Targets are the same for all samples: the kernels hold a tile of them while the samples pass by.
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
from ..checks import check_pixels
from ..compiler import canonical, compiled, has_cpu_compiler, kind
from ..launch import launch
from ..registration import triton_op

# A program sums up to so many samples of its rows; more are spread over programs.
SAMPLES_PER_PROGRAM = 8
# From so many logits on, a compiled call beats the eager ones.
COMPILE_FROM = 1 << 10


@jit
def log1p_unit_jit(t):  # type: ignore[no-untyped-def]
    """ln(1 + t) for 0 ≤ t ≤ 1: t + t²·q(t), degree-7 minimax, relative error 1.7e-7 in float32.

    One body for Triton, which has no log1p, and PyTorch. log(1 + t) loses a small t's digits and is
    slower: compiled, a forward of 128×784 takes 0.15 ms on a CPU core, this one 0.09.
    """
    q = 0.00536482149
    q = q * t - 0.0300657813
    q = q * t + 0.0792045183
    q = q * t - 0.137538009
    q = q * t + 0.191536543
    q = q * t - 0.248571635
    q = q * t + 0.333213226
    q = q * t - 0.49999648
    return t + t * t * q


log1p_unit = undecorated(log1p_unit_jit)


# The Triton kernels.


@jit
def place_jit(num_samples, SAMPLES: tl.constexpr, BLOCK_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # → first sample, rows (1, BLOCK_ROWS, 1); neighbours share rows, whose targets L2 then holds
    blocks = tl.cdiv(num_samples, SAMPLES)
    first_row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS
    rows = first_row + tl.arange(0, BLOCK_ROWS)[None, :, None]
    return (tl.program_id(0) % blocks).to(tl.int64) * SAMPLES, rows


@jit
def samples_jit(  # type: ignore[no-untyped-def]
    first, rows, n_rows, num_samples, SAMPLES: tl.constexpr, LANES: tl.constexpr, passed
):  # → samples (LANES, 1, 1) after those passed, and which of them exist in which row
    lanes = passed + tl.arange(0, LANES)[:, None, None]
    samples = first + lanes
    return samples, (rows < n_rows) & (lanes < SAMPLES) & (samples < num_samples)


@jit
def targets_jit(x_ptr, rows, pixels, mask, X_STRIDE: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    # A thread would take eight bytes of targets at once, and the logits' gradient, written four at
    # a time, would pass through shared memory: the hint deals targets out as the logits are.
    at = tl.max_contiguous(x_ptr + rows * X_STRIDE + pixels, (1, 1, VECTOR))
    return tl.load(at, mask=mask, other=0).to(tl.float32)


@jit
def bernoulli_forward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # (S, B, P), samples sample_stride apart, rows ROW_STRIDE
    x_ptr,  # (B, P), rows X_STRIDE apart
    out_ptr,  # (S, B) float32
    n_rows,
    num_samples,
    sample_stride,
    P: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    SAMPLES: tl.constexpr,
    LANES: tl.constexpr,  # a power of two, at least SAMPLES
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr,
):
    first, rows = place_jit(num_samples, SAMPLES, BLOCK_ROWS)
    samples, live = samples_jit(first, rows, n_rows, num_samples, SAMPLES, LANES, 0)
    sums = tl.zeros((LANES, BLOCK_ROWS, BLOCK_D), tl.float32)
    for start in range(0, P, BLOCK_D):
        pixels = start + tl.arange(0, BLOCK_D)[None, None, :]
        x = targets_jit(x_ptr, rows, pixels, (rows < n_rows) & (pixels < P), X_STRIDE, VECTOR)
        at = logits_ptr + samples * sample_stride + rows * ROW_STRIDE + pixels
        # Beyond the edge x = 0 and the logit is so low that the term is 0 without a mask.
        logits = tl.load(at, mask=live & (pixels < P), other=-10000.0).to(tl.float32)
        tail = log1p_unit_jit(tl.exp2(tl.abs(logits) * -1.4426950408889634))
        sums += x * logits - tl.maximum(logits, 0.0) - tail
    tl.store(out_ptr + samples * n_rows + rows, tl.sum(sums, 2)[:, :, None], mask=live)


@jit
def bernoulli_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,  # (S, B) float32, of any strides
    logits_ptr,
    x_ptr,
    grad_logits_ptr,  # (S, B, P)
    grad_x_ptr,  # (B, P)
    n_rows,
    num_samples,
    grad_sample_stride,
    grad_row_stride,
    sample_stride,
    P: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    NEED_LOGITS: tl.constexpr,
    NEED_X: tl.constexpr,  # then a program sees all samples
    SAMPLES: tl.constexpr,
    LANES: tl.constexpr,  # a power of two
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr,
):
    first, rows = place_jit(num_samples, SAMPLES, BLOCK_ROWS)
    AT_ONCE: tl.constexpr = SAMPLES <= LANES
    if AT_ONCE:  # not once for each tile
        samples, live = samples_jit(first, rows, n_rows, num_samples, SAMPLES, LANES, 0)
        grad_at = grad_ptr + samples * grad_sample_stride + rows * grad_row_stride
        grad = tl.load(grad_at, mask=live, other=0.0)
    for start in range(0, P, BLOCK_D):
        pixels = start + tl.arange(0, BLOCK_D)[None, None, :]
        mask = (rows < n_rows) & (pixels < P)
        if NEED_LOGITS:
            x = targets_jit(x_ptr, rows, pixels, mask, X_STRIDE, VECTOR)
        if NEED_X:
            grad_x = tl.zeros((1, BLOCK_ROWS, BLOCK_D), tl.float32)
        for i in range(0, SAMPLES, LANES):
            if not AT_ONCE:
                samples, live = samples_jit(first, rows, n_rows, num_samples, SAMPLES, LANES, i)
                grad_at = grad_ptr + samples * grad_sample_stride + rows * grad_row_stride
                grad = tl.load(grad_at, mask=live, other=0.0)
            inside = live & (pixels < P)
            at = logits_ptr + samples * sample_stride + rows * ROW_STRIDE + pixels
            logits = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            if NEED_LOGITS:
                out = grad * (x - tl.sigmoid(logits))  # tl.store rounds to the tensor's dtype
                out_at = grad_logits_ptr + (samples * n_rows + rows) * P + pixels
                tl.store(out_at, out, mask=inside)
            if NEED_X:
                grad_x += tl.sum(grad * logits, 0)[None, :, :]
        if NEED_X:
            tl.store(grad_x_ptr + rows * P + pixels, grad_x, mask=mask)


def readable(x: Tensor) -> Tensor:
    """`x` as kernels read it: bytes for bools, and the last dimension contiguous."""
    x = x.view(torch.uint8) if x.dtype == torch.bool else x  # a bool's byte is 0 or 1
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(
    kernel: Any,
    name: str,
    args: tuple[Any, ...],
    logits: Tensor,
    x: Tensor,
    samples: int,
    flags: dict[str, bool],
) -> None:
    # with so many samples a program; a power of two of them, up to eight, at once
    num_samples, rows, pixels = logits.shape
    lanes = 1 << (min(samples, SAMPLES_PER_PROGRAM) - 1).bit_length()
    launch(
        kernel,
        name,
        pixels,
        lambda block_rows: -(-rows // block_rows) * -(-num_samples // samples),
        args,
        {
            "P": pixels,
            "ROW_STRIDE": logits.stride(1),
            "X_STRIDE": x.stride(0),
            "SAMPLES": samples,
            "LANES": lanes,
            "VECTOR": min(16 // logits.element_size(), 8 if pixels > 4 else 4),
            **flags,
        },
        lanes=lanes,
    )


def _balanced(num_samples: int) -> int:
    # nine samples are five and four, not eight and one
    return -(-num_samples // -(-num_samples // SAMPLES_PER_PROGRAM))


def _launch_forward(kernel: Any, logits: Tensor, x: Tensor) -> Tensor:
    num_samples, rows, _ = logits.shape
    logits, x = readable(logits), readable(x)
    out = logits.new_empty((num_samples, rows), dtype=torch.float32)
    if rows > 0:
        args = (logits, x, out, rows, num_samples, logits.stride(0))
        _launch(kernel, "bernoulli_forward", args, logits, x, _balanced(num_samples), {})
    return out


def _launch_backward(
    kernel: Any, grad: Tensor, logits: Tensor, x: Tensor, need_logits: bool, need_x: bool
) -> tuple[Tensor, Tensor]:
    num_samples, rows, _ = logits.shape
    logits, targets = readable(logits), readable(x)
    grad_logits = logits.new_empty(logits.shape if need_logits else (0,))
    grad_x = x.new_empty(x.shape if need_x else (0,))
    if rows > 0:
        samples = num_samples if need_x else _balanced(num_samples)
        tensors = (grad, logits, targets, grad_logits, grad_x)
        args = (*tensors, rows, num_samples, *grad.stride(), logits.stride(0))
        flags = {"NEED_LOGITS": need_logits, "NEED_X": need_x}
        _launch(kernel, "bernoulli_backward", args, logits, targets, samples, flags)
    return grad_logits, grad_x


# The PyTorch twin. float64 stays float64, all else is computed in float32.


def bernoulli_twin(logits: Tensor, x: Tensor) -> Tensor:
    """logits (S, B, P), x (B, P) → (S, B)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    # Not exp: inductor keeps an exp that is used more than once in memory, and loops twice.
    t = torch.exp2(logits.abs() * -1.4426950408889634)
    tail = torch.log1p(t) if t.dtype == torch.float64 else log1p_unit(t)
    return (x.to(wide) * logits - logits.clamp(min=0.0) - tail).sum(2)


def _twin_backward(
    logits: Tensor, x: Tensor, grad: Tensor, need_logits: bool, need_x: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    grad_logits, grad_x = logits.new_empty((0,)), x.new_empty((0,))
    if need_logits:
        residual = x.to(wide) - torch.sigmoid(logits.to(wide))
        grad_logits = (grad[..., None] * residual).to(logits.dtype)
    if need_x:
        grad_x = (grad[..., None] * logits.to(wide)).sum(0).to(x.dtype)
    return grad_logits, grad_x


def _run_twin(twin: Any, *tensors: Tensor, needs: tuple[bool, ...] = ()) -> Any:
    logits = tensors[0]
    worth_it = logits.device.type == "cpu" and logits.numel() >= COMPILE_FROM
    if worth_it and logits.dtype != torch.float64 and has_cpu_compiler():
        tensors = tuple(canonical(t) for t in tensors)
        code = compiled(twin, "SBP BP SB", (*(kind(t) for t in tensors), *needs))
        if code is not None:
            return code(*tensors)
    return twin(*tensors, *needs)


# Registration.


@triton_op("vaez::bernoulli_forward", bernoulli_forward_kernel)
def bernoulli_forward_op(logits: Tensor, x: Tensor) -> Tensor:
    if uses_triton(logits):
        return _launch_forward(launcher(bernoulli_forward_kernel), logits, x)
    return bernoulli_twin(logits, x)


@triton_op("vaez::bernoulli_backward", bernoulli_backward_kernel)
def bernoulli_backward_op(
    grad: Tensor, logits: Tensor, x: Tensor, need_logits: bool, need_x: bool
) -> tuple[Tensor, Tensor]:
    if uses_triton(logits):
        kernel = launcher(bernoulli_backward_kernel)
        return _launch_backward(kernel, grad, logits, x, need_logits, need_x)
    return _twin_backward(logits, x, grad, need_logits, need_x)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    with same_backend(ctx.triton):
        grads = torch.ops.vaez.bernoulli_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.triton = uses_triton(inputs[0])


bernoulli_forward_op.register_autograd(_op_backward, setup_context=_setup_context)
bernoulli_backward_op.register_autograd(no_second_derivative)


class _Bernoulli(torch.autograd.Function):
    """`bernoulli_forward_op` past the dispatcher, its twin compiled: what an eager call runs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        _setup_context(ctx, (logits, x), logits)
        if ctx.triton:
            with torch.cuda.device_of(logits):
                return _launch_forward(bernoulli_forward_kernel, logits, x)
        return _run_twin(bernoulli_twin, logits, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if goes_through_op(grad):
            return _op_backward(ctx, grad)
        logits, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if ctx.triton:
            with torch.cuda.device_of(logits):
                grads = _launch_backward(bernoulli_backward_kernel, grad, logits, x, *needs)
        else:
            grads = _run_twin(_twin_backward, logits, x, grad, needs=needs)
        return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


# The public function.


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x|z) in nats, Σ_P x·l − softplus(l), for pixels that are independent Bernoullis.

    Kingma & Welling 2014, appendix C.1. A pixel's ln(1 + e^−|l|) errs by less than 1.5e-7 nats, and
    by less than 3e-7 + 8e-8·|l| of itself; all else is float32's rounding.

    Args:
        logits: (S, B, P) float32, bfloat16 or float16 of any strides; float64 takes the fallback.
        x: (B, P) targets, the same for all S samples, of any strides: uint8 or bool holding 0 and
            1, or float32, bfloat16, float16 or float64 in [0, 1]. Values are not looked at.

    Returns:
        (S, B) float32 (float64 for float64 logits). Gradients flow to logits and to a floating x,
        in their dtype; there is no second derivative. NaN propagates, and infinity as x·l −
        softplus(l) says: 0·∞ and ∞ − ∞ are NaN. B = 0 gives an empty result.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape or device.
    """
    check_pixels("bernoulli_log_prob", logits, x)
    if is_plain(logits, x):
        return _Bernoulli.apply(logits, x)
    return torch.ops.vaez.bernoulli_forward(logits, x)


__all__ = ["bernoulli_log_prob"]
