"""Runs the ops on a GPU, for checks whose inputs and references are on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.kernels.helpers import call
from vaez_kernels import bernoulli_log_prob, linear_bernoulli_log_prob, mixture_log_prob

CUDA = torch.device("cuda")


class _Moved(torch.autograd.Function):
    """A copy on the GPU with the same memory layout, also of a slice or a broadcast tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        whole = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0).to(CUDA)
        return whole.as_strided(x.shape, x.stride(), x.storage_offset())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].cpu()


def to_cuda(x: Tensor) -> Tensor:
    moved: Tensor = _Moved.apply(x)
    return moved


def call_on_cuda(
    mode: str, mu: Tensor, logvar: Tensor, noise: Tensor, samples: int, **offsets: int
) -> tuple[Tensor | None, Tensor | None]:
    """`tests.kernels.helpers.call` with the Triton kernels."""
    z, kl = call(mode, to_cuda(mu), to_cuda(logvar), noise.to(CUDA), samples, **offsets)
    return None if z is None else z.cpu(), None if kl is None else kl.cpu()


def log_prob_on_cuda(logits: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob(to_cuda(logits), to_cuda(x)).cpu()


def mixture_on_cuda(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    left = None if leave_out is None else leave_out.to(CUDA)
    return mixture_log_prob(to_cuda(z), to_cuda(mu), to_cuda(logvar), left).cpu()


def linear_on_cuda(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> Tensor:
    layer = (to_cuda(hidden), to_cuda(weight), to_cuda(bias))
    return linear_bernoulli_log_prob(*layer, to_cuda(x), precision).cpu()
