"""The Bernoulli likelihood's Triton kernels.

All samples have the same targets, so a program keeps a tile of targets for all of its samples. Rows
of more than `PIXELS_PER_PROGRAM` pixels are divided over programs, each of which sums its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import jit, tl
from ..define import Tensors
from ..launch import launch
from ..scalar import log1p_unit_jit
from .twin import Arguments

# Samples of its rows that one program sums at most; more samples are spread over programs, except
# in backward if targets have a gradient, which is a sum over all samples.
SAMPLES_PER_PROGRAM = 8
# Eight rows of 196,608 pixels, an image of 256 × 256 × 3, give 384 programs and not eight: more
# than a GPU has multiprocessors. The parts do not depend on the GPU or the batch; the order in
# which PyTorch adds them may.
PIXELS_PER_PROGRAM = 4096


@jit
def place_jit(num_samples, SAMPLES: tl.constexpr, PARTS: tl.constexpr, BLOCK_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # → first sample, rows (1, BLOCK_ROWS, 1), part of the row. Neighbouring programs share targets,
    # so that these are in the L2 cache.
    blocks = tl.cdiv(num_samples, SAMPLES)
    block = tl.program_id(0) // blocks
    rows = (block // PARTS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :, None]
    return (tl.program_id(0) % blocks).to(tl.int64) * SAMPLES, rows, block % PARTS


@jit
def samples_jit(  # type: ignore[no-untyped-def]
    first, rows, n_rows, num_samples, SAMPLES: tl.constexpr, LANES: tl.constexpr, passed
):  # → samples (LANES, 1, 1), after `passed` others, and which of them exist in which row
    lanes = passed + tl.arange(0, LANES)[:, None, None]
    samples = first + lanes
    return samples, (rows < n_rows) & (lanes < SAMPLES) & (samples < num_samples)


@jit
def targets_jit(x_ptr, rows, pixels, mask, X_STRIDE: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    # Without the hint a thread would load eight bytes of targets at once. The logits' gradient,
    # which is written four numbers at a time, would then have to pass through shared memory. The
    # hint distributes targets over threads in the same way as logits.
    at = tl.max_contiguous(x_ptr + rows * X_STRIDE + pixels, (1, 1, VECTOR))
    return tl.load(at, mask=mask, other=0).to(tl.float32)


@jit
def bernoulli_forward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # (S, B, P), samples sample_stride apart, rows ROW_STRIDE
    x_ptr,  # (B, P), rows X_STRIDE apart
    out_ptr,  # (PARTS, S, B) float32
    n_rows,
    num_samples,
    sample_stride,
    P: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,  # pixels of a part
    SAMPLES: tl.constexpr,
    LANES: tl.constexpr,  # a power of two, at least SAMPLES
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr,
):
    first, rows, part = place_jit(num_samples, SAMPLES, PARTS, BLOCK_ROWS)
    samples, live = samples_jit(first, rows, n_rows, num_samples, SAMPLES, LANES, 0)
    sums = tl.zeros((LANES, BLOCK_ROWS, BLOCK_D), tl.float32)
    tl.static_assert(PARTS == 1 or PART % BLOCK_D == 0)
    for start in range(0, PART, BLOCK_D):
        pixels = part * PART + start + tl.arange(0, BLOCK_D)[None, None, :]
        x = targets_jit(x_ptr, rows, pixels, (rows < n_rows) & (pixels < P), X_STRIDE, VECTOR)
        at = logits_ptr + samples * sample_stride + rows * ROW_STRIDE + pixels
        # Beyond the edge x = 0 and the logit is so low that the term is 0 without a mask.
        logits = tl.load(at, mask=live & (pixels < P), other=-10000.0).to(tl.float32)
        tail = log1p_unit_jit(tl.exp2(tl.abs(logits) * -1.4426950408889634))
        sums += x * logits - tl.maximum(logits, 0.0) - tail
    at = out_ptr + (part.to(tl.int64) * num_samples + samples) * n_rows + rows
    tl.store(at, tl.sum(sums, 2)[:, :, None], mask=live)


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
    NEED_X: tl.constexpr,  # if set, each program takes all samples
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    SAMPLES: tl.constexpr,
    LANES: tl.constexpr,  # a power of two
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VECTOR: tl.constexpr,
):
    first, rows, part = place_jit(num_samples, SAMPLES, PARTS, BLOCK_ROWS)
    AT_ONCE: tl.constexpr = SAMPLES <= LANES
    if AT_ONCE:  # load once instead of for each tile
        samples, live = samples_jit(first, rows, n_rows, num_samples, SAMPLES, LANES, 0)
        grad_at = grad_ptr + samples * grad_sample_stride + rows * grad_row_stride
        grad = tl.load(grad_at, mask=live, other=0.0)
    tl.static_assert(PARTS == 1 or PART % BLOCK_D == 0)
    for start in range(0, PART, BLOCK_D):
        pixels = part * PART + start + tl.arange(0, BLOCK_D)[None, None, :]
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
    """`x` as kernels read it: bools viewed as bytes, and the last dimension contiguous."""
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
    # `samples` per program; a power of two of them, up to eight, at once
    num_samples, rows, pixels = logits.shape
    lanes = 1 << (min(samples, SAMPLES_PER_PROGRAM) - 1).bit_length()
    parts = _parts(pixels)
    launch(
        kernel,
        name,
        pixels,
        lambda block_rows: parts * -(-rows // block_rows) * -(-num_samples // samples),
        args,
        {
            "P": pixels,
            "ROW_STRIDE": logits.stride(1),
            "X_STRIDE": x.stride(0),
            "PARTS": parts,
            "PART": PIXELS_PER_PROGRAM if parts > 1 else pixels,
            "SAMPLES": samples,
            "LANES": lanes,
            "VECTOR": min(16 // logits.element_size(), 8 if pixels > 4 else 4),
            **flags,
        },
        lanes=lanes,
    )


def _parts(pixels: int) -> int:
    return max(1, -(-pixels // PIXELS_PER_PROGRAM))


def _balanced(num_samples: int) -> int:
    # nine samples are split into five and four, not eight and one
    return -(-num_samples // -(-num_samples // SAMPLES_PER_PROGRAM))


def forward(a: Arguments) -> Tensors:
    num_samples, rows, pixels = a.logits.shape
    logits, x = readable(a.logits), readable(a.x)
    parts = _parts(pixels)
    shape = (num_samples, rows) if parts == 1 else (parts, num_samples, rows)
    out = logits.new_empty(shape, dtype=torch.float32)
    if rows > 0:
        args = (logits, x, out, rows, num_samples, logits.stride(0))
        samples = _balanced(num_samples)
        _launch(bernoulli_forward_kernel, "bernoulli_forward", args, logits, x, samples, {})
    return (out if parts == 1 else out.sum(0),)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    (grad,) = grads
    need_logits, need_x = needs
    num_samples, rows, _ = a.logits.shape
    logits, x = readable(a.logits), readable(a.x)
    grad_logits = logits.new_empty(logits.shape if need_logits else (0,))
    grad_x = a.x.new_empty(x.shape if need_x else (0,))
    if rows > 0:
        samples = num_samples if need_x else _balanced(num_samples)
        tensors = (grad, logits, x, grad_logits, grad_x)
        args = (*tensors, rows, num_samples, *grad.stride(), logits.stride(0))
        flags = {"NEED_LOGITS": need_logits, "NEED_X": need_x}
        kernel, name = bernoulli_backward_kernel, "bernoulli_backward"
        _launch(kernel, name, args, logits, x, samples, flags)
    return grad_logits, grad_x
