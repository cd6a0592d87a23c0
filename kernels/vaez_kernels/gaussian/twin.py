"""The Gaussian likelihood in PyTorch, in float64 for float64 inputs and else in float32."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..compiler import run
from ..define import Tensors


class Arguments(NamedTuple):
    mean: Tensor  # (S, B, P)
    logvar: Tensor  # (S, B, P)
    x: Tensor  # (B, P)


def forward_formula(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, logvar, x = mean.to(wide), logvar.to(wide), x.to(wide)
    t = (x - mean) * torch.exp(-0.5 * logvar)
    return -0.5 * (t * t + logvar + math.log(2.0 * math.pi)).sum(2)


def backward_formula(
    mean: Tensor, logvar: Tensor, x: Tensor, grad: Tensor, need_mean: bool, need_logvar: bool
) -> tuple[Tensor, Tensor]:
    dtype, wide = mean.dtype, torch.promote_types(mean.dtype, torch.float32)
    mean, logvar, x, upstream = mean.to(wide), logvar.to(wide), x.to(wide), grad[..., None]
    inverse_sigma = torch.exp(-0.5 * logvar)
    t = (x - mean) * inverse_sigma
    none = mean.new_empty((0,), dtype=dtype)
    return (
        (upstream * (t * inverse_sigma)).to(dtype).contiguous() if need_mean else none,
        (upstream * (0.5 * (t * t - 1.0))).to(dtype).contiguous() if need_logvar else none,
    )


def forward(a: Arguments) -> Tensors:
    return (run(forward_formula, "SBP SBP BP", a.mean, *a),)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    found: Tensors = run(backward_formula, "SBP SBP BP SB", a.mean, *a, *grads, *needs)
    return found
