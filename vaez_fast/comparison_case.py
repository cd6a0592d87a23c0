"""A call that `vaez-fast compare` makes, and what the three ways to compute it share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import noise_key

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY = noise_key(20, "evaluate", 7)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One call. Its shape: S samples of B rows, D columns (pixels, for the likelihood); M draws, N
    components and D columns for the mixture; S, B, hidden units and pixels for the last layer; S,
    B and a decoder's widths from latents to pixels for importance sampling."""

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: str = "normal"
    halves: bool = False  # mu and logvar are the halves of a (B, 2D) tensor
    called: bool = False  # the decoder is a function, of which the op knows no layers
    row_offset: int = 0

    @property
    def name(self) -> str:
        sizes = "×".join(str(n) for n in self.shape)
        kind = str(self.dtype).removeprefix("torch.")
        about = "halves of a tensor" if self.halves else self.values
        return f"{sizes} {kind}, {'a called decoder' if self.called else about}"


def on_device(device: torch.device, tensors: Tensors) -> Tensors:
    # Halves of one tensor stay that: a plain copy would make them contiguous.
    if "mu" in tensors and not tensors["mu"].is_contiguous():
        both = torch.cat((tensors["mu"], tensors["logvar"]), 1).to(device)
        return dict(zip(("mu", "logvar"), both.chunk(2, 1), strict=True))
    return {name: x.to(device) for name, x in tensors.items()}


def in_float64(tensors: Tensors) -> Tensors:
    """Floating tensors alone become so: integers keep meaning what they do."""
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


def leaves_of(tensors: Tensors) -> Tensors:
    return {n: x.detach().requires_grad_() for n, x in tensors.items() if x.is_floating_point()}


def with_gradients(case: Case, outputs: Tensors, leaves: Tensors, rounded: bool = False) -> Tensors:
    """The outputs and their gradients ("grad mu"), on the CPU.

    `rounded`: the gradients from above are rounded to the case's dtype, as that of z always is.
    """
    grads = torch.autograd.grad(
        list(outputs.values()),
        list(leaves.values()),
        [_upstream(name, output, case.dtype, rounded) for name, output in outputs.items()],
        allow_unused=True,
        materialize_grads=True,
    )
    named = {f"grad {leaf}": grad for leaf, grad in zip(leaves, grads, strict=True)}
    return {name: result.detach().cpu() for name, result in (outputs | named).items()}


def _upstream(name: str, output: Tensor, dtype: torch.dtype, rounded: bool) -> Tensor:
    # The same numbers for every way to compute it, of no special size; of z in the case's dtype.
    generator = torch.Generator().manual_seed(output.numel())
    numbers = torch.randn(output.shape, generator=generator)
    return (numbers.to(dtype) if name == "z" or rounded else numbers).to(output)
