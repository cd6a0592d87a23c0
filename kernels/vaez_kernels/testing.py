"""Parts shared by the ops' case.py files: calls and their gradients, checks, and timed calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from .error_bounds import Check
from .noise import noise_key

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY = noise_key(20, "evaluate", 7)
VALUES_SHAPE = (3, 33, 20)  # the shape of cases with special values
LATENT_SHAPES = (  # S, B, D
    *((1, 1, 1), (8, 7, 3), (3, 7, 19), (1, 129, 20)),
    *((3, 129, 20), (1, 33, 128), (3, 1, 257), (1, 7, 1000)),
)
LARGE_LATENT_SHAPES = ((1, 8192, 128), (8, 2048, 128))

Tensors = dict[str, Tensor]
Arguments = dict[str, Any]  # of a public function, by name


# Calls that are compared with float64 and with textbook code in the same dtype.


@dataclass(frozen=True)
class Case:
    """One call.

    Its shape is (S samples, B rows, D columns or pixels) for latents and likelihoods; (M draws, N
    components, D columns) for the mixture; (S, B, hidden units, pixels) for the last layer; and S,
    B and the decoder's widths from latents to pixels for importance sampling.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: str = "normal"
    halves: bool = False  # the first two tensors are the halves of one tensor
    called: bool = False  # the decoder is a function whose layers the op does not know
    row_offset: int = 0

    @property
    def name(self) -> str:
        sizes = "×".join(str(n) for n in self.shape)
        kind = str(self.dtype).removeprefix("torch.")
        about = "halves of a tensor" if self.halves else self.values
        return f"{sizes} {kind}, {'a called decoder' if self.called else about}"


def on_device(device: torch.device, arguments: Arguments) -> Arguments:
    """The arguments, with tensors and a decoder on `device`. Tensors keep their strides."""

    def moved(x: Tensor) -> Tensor:
        # `to` would make a contiguous copy of one half of a tensor.
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)

    return {
        name: moved(x) if isinstance(x, Tensor) else x.to(device) if isinstance(x, Module) else x
        for name, x in arguments.items()
    }


def in_float64(arguments: Arguments) -> Arguments:
    """The arguments, with floating-point tensors and a decoder converted to float64."""
    return {
        name: x.double()
        if isinstance(x, Module) or (isinstance(x, Tensor) and x.is_floating_point())
        else x
        for name, x in arguments.items()
    }


def with_gradients(
    case: Case,
    function: Callable[..., Tensors],
    arguments: Arguments,
    leaves: tuple[str, ...],
    rounded: bool = False,
) -> Tensors:
    """The outputs of `function(case, arguments)`, and their gradients ("grad mu"), on the CPU.

    Args:
        leaves: the names of the arguments with a gradient, if they are floating-point.
        rounded: whether upstream gradients are rounded to the case's dtype. That of z always is.
    """
    floats = [name for name in leaves if arguments[name].is_floating_point()]
    of = {name: arguments[name].detach().requires_grad_() for name in floats}
    results = outputs = function(case, arguments | of)
    if of:
        grads = torch.autograd.grad(
            list(outputs.values()),
            list(of.values()),
            [_upstream(name, output, case.dtype, rounded) for name, output in outputs.items()],
            allow_unused=True,
            materialize_grads=True,
        )
        results = outputs | {f"grad {leaf}": grad for leaf, grad in zip(of, grads, strict=True)}
    return {name: result.detach().cpu() for name, result in results.items()}


def _upstream(name: str, output: Tensor, dtype: torch.dtype, rounded: bool) -> Tensor:
    # The same numbers for every implementation. They are standard normal; for z, in the case's
    # dtype.
    generator = torch.Generator().manual_seed(output.numel())
    numbers = torch.randn(output.shape, generator=generator)
    return (numbers.to(dtype) if name == "z" or rounded else numbers).to(output)


# Calls that are timed, and checked before that.

Function = Callable[..., Any]  # the case's inputs → its outputs
Shape = tuple[int, ...]


class TimedCase(Protocol):
    """An op's inputs and upstream gradients on one device, and a check of its outputs."""

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """The outputs of `forward`, followed by the gradients if `backward`."""

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Check the result of `run`, for our op or for a baseline."""

    def advance(self) -> None:
        """Advance our noise by one step, on the device; does nothing for an op without noise."""


@dataclass(frozen=True)
class Timed:
    """How an op is timed."""

    title: str
    case: Callable[[Shape, torch.dtype, torch.device], TimedCase]
    ours: Callable[[Any], Function]  # from the case
    textbook: Function
    launch_bound: tuple[Shape, ...]  # small enough that launches matter: also timed as a CUDA graph
    large: dict[str, tuple[Shape, ...]]  # by device type
    least_bytes: Callable[[Shape, int, bool], int]  # shape, bytes per number, with backward
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    # Bytes that our kernels move, if more than the least.
    kernel_bytes: Callable[[Shape, bool], int] | None = None
    # Whether the op works in tiles, which read operands several times. The bytes of the fallback,
    # which compiles one tile and runs many, are then not counted. Those of the kernels are known
    # only from `kernel_bytes`.
    tiled: bool = False
    # Whether the op multiplies bfloat16, for which some processors have no instruction.
    products: bool = False
    cpu_options: dict[str, Any] = field(default_factory=dict)  # the best for torch.compile on CPUs
