"""Inputs and comparisons that the tests of all likelihoods share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Tensor]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(function: Function, *parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The values, and the gradients of their sum."""
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    values = function(*leaves)
    return values.detach(), torch.autograd.grad(values.sum(), leaves)


def assert_gradients_are_differences(function: Function, *parameters: Tensor) -> None:
    """Float64 gradients against central differences, by PyTorch's gradcheck."""
    leaves = [parameter.detach().double().requires_grad_() for parameter in parameters]
    assert torch.autograd.gradcheck(function, leaves)


def assert_the_same_if_traced(function: Function, *parameters: Tensor) -> None:
    """Values and gradients, of a graph that was traced with other values, and under torch.compile.

    Not by inductor, whose C++ takes a minute for the counts.
    """
    wanted = gradients(function, *parameters)

    def both(*leaves: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return gradients(function, *leaves)

    traced = make_fx(both)(*(torch.zeros_like(parameter) for parameter in parameters))
    torch.testing.assert_close(traced(*parameters), wanted, rtol=1e-6, atol=1e-6)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, *parameters), wanted, rtol=1e-6, atol=1e-6)
