"""The Bernoulli likelihood in PyTorch, in float64 for float64 inputs and else in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..compiler import run
from ..define import Tensors
from ..scalar import log1p_unit


class Arguments(NamedTuple):
    logits: Tensor  # (S, B, P)
    x: Tensor  # (B, P)


def forward_formula(logits: Tensor, x: Tensor) -> Tensor:
    """logits (S, B, P), x (B, P) → (S, B)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    # exp2 instead of exp, because inductor stores an exp that is used more than once in memory and
    # loops twice.
    t = torch.exp2(logits.abs() * -1.4426950408889634)
    tail = torch.log1p(t) if t.dtype == torch.float64 else log1p_unit(t)
    return (x.to(wide) * logits - logits.clamp(min=0.0) - tail).sum(2)


def backward_formula(
    logits: Tensor, x: Tensor, grad: Tensor, need_logits: bool, need_x: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    grad_logits, grad_x = logits.new_empty((0,)), x.new_empty((0,))
    if need_logits:
        residual = x.to(wide) - torch.sigmoid(logits.to(wide))
        grad_logits = (grad[..., None] * residual).to(logits.dtype).contiguous()
    if need_x:
        grad_x = (grad[..., None] * logits.to(wide)).sum(0).to(x.dtype).contiguous()
    return grad_logits, grad_x


def forward(a: Arguments) -> Tensors:
    return (run(forward_formula, "SBP BP", a.logits, *a),)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    args = (a.logits, a.x, *grads, *needs)
    found: Tensors = run(backward_formula, "SBP BP SB", a.logits, *args)
    return found
