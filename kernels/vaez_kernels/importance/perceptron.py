"""The layers of a decoder that is a multilayer perceptron, for fused code."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh"}


class Perceptron(NamedTuple):
    """Linear layers with one activation between them; weights (out, in), biases (out,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str  # "relu" or "tanh"

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """A weight in `dtype`, its bias in float32, the next weight, …; all contiguous."""
        return [
            tensor.contiguous()
            for weight, bias in zip(self.weights, self.biases, strict=True)
            for tensor in (weight.to(dtype), bias.float())
        ]


def taken_apart(decoder: Any) -> Perceptron | None:
    """The layers of `nn.Sequential(Linear, ReLU | Tanh, Linear, …, Linear)`; None for all else.

    A subclass of nn.Linear is accepted if it sets `is_affine = True` itself, to state that its
    forward is x Wᵀ + b. Layers with hooks or parametrizations may compute something else, and so
    may any other module.
    """
    if type(decoder) is not nn.Sequential or any(map(_has_hooks, (decoder, *decoder))):
        return None
    modules = list(decoder)
    linear = [m for m in modules[::2] if isinstance(m, nn.Linear) and _is_affine(m)]
    kinds = {ACTIVATIONS.get(type(m)) for m in modules[1::2]}
    if len(modules) != 2 * len(linear) - 1 or len(kinds) != 1:
        return None
    (activation,) = kinds
    if activation is None or any(m.weight.dtype == torch.float64 for m in linear):
        return None
    weights = tuple(m.weight.detach() for m in linear)
    biases = (
        w.new_zeros(len(w)) if m.bias is None else m.bias
        for m, w in zip(linear, weights, strict=True)
    )
    return Perceptron(weights, tuple(bias.detach() for bias in biases), activation)


def _is_affine(module: nn.Linear) -> bool:
    # The attribute of the class itself: a subclass that inherits it may compute something else.
    known = type(module) is nn.Linear or vars(type(module)).get("is_affine", False)
    return known and "forward" not in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
