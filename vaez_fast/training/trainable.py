"""Checks that a compiled step trains a model exactly as the model's own code says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ..model import Linear

PARTS = ("encoder", "decoder", "posterior", "prior")


def check_parameters(objective: nn.Module, precision: torch.dtype) -> None:
    """Check the parameters of an objective, which have names like "vae.encoder.0.weight".

    Raises:
        ValueError: a parameter is outside the parts of the model, frozen, or not float32; or a
            bfloat16 matrix belongs to a layer that does not convert its input.
    """
    for at, module in objective.named_modules():
        for own, p in module.named_parameters(at, recurse=False):
            if own.split(".")[1:2] not in ([part] for part in PARTS):
                raise ValueError(
                    "Engine trains what vae.encoder and vae.decoder, vae.posterior and vae.prior "
                    f"hold: {own} is outside them"
                )
            if not p.requires_grad:
                raise ValueError(
                    f"Engine trains every parameter: {own} is frozen (requires_grad=False)"
                )
            if p.dtype != torch.float32:
                raise ValueError(f"Engine keeps weights in float32: {own} is {p.dtype}")
            if p.dim() == 2 and precision != torch.float32 and not isinstance(module, Linear):
                raise ValueError(
                    f"Engine in {precision} wants matrices in vaez_fast.model.Linear layers, which "
                    f"convert what they are given: {own} is in another ({type(module)!r})"
                )


@contextmanager
def same_attributes(model: nn.Module) -> Iterator[None]:
    """Refuse a block that sets or changes a module's attributes: a compiled step would not.

    Raises:
        ValueError: the block did so; the attributes are restored.
    """
    before = [(path, module, dict(vars(module))) for path, module in model.named_modules()]
    tensors = [
        (f"{path}.{name}", value, value._version, value.detach().clone())
        for path, _, attributes in before
        for name, value in attributes.items()
        if isinstance(value, Tensor)
    ]
    changed = []
    try:
        yield
    finally:
        for path, module, old in before:
            now = vars(module)
            names = [n for n in old | now if n not in old or n not in now or now[n] is not old[n]]
            changed += [f"{path}.{name}" for name in names]
            now.clear()
            now.update(old)
        for name, value, version, copy in tensors:
            if value._version != version:
                changed.append(name)
                value.detach().copy_(copy)
    if changed:
        raise ValueError(f"Engine trains models whose forward changes nothing: {_list(changed)}")


def check_fixed(
    graph: GraphModule, tensors: Sequence[Tensor], fixed: Sequence[tuple[str, Tensor]]
) -> None:
    """Run a traced step on copies of its arguments, and check those that it should only read.

    Args:
        graph: the step, not yet compiled.
        tensors: its arguments.
        fixed: names and tensors of the arguments that a checkpoint does not hold.

    Raises:
        ValueError: the step changes one of the fixed tensors.
    """
    copies = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    copy_of = {id(t): copy for t, copy in zip(tensors, copies, strict=True)}
    versions = {key: copy._version for key, copy in copy_of.items()}
    graph(*copies)
    changed = []
    for name, t in fixed:
        copy = copy_of[id(t)]
        # Batch normalisation writes without increasing the version, so bytes are compared too.
        if copy._version != versions[id(t)] or not _same_bytes(copy, t):
            changed.append(name)
    if changed:
        raise ValueError(
            "Engine trains parameters alone, and a step of this model changes "
            f"{_list(changed)} too (as batch normalisation does)"
        )


def check_same(given: dict[str, Tensor], left: dict[str, Tensor]) -> None:
    """Check that the forward replaced no tensor of `given`; `functional_call` returns `left`."""
    changed = [name for name, tensor in given.items() if left[name] is not tensor]
    if changed:
        raise ValueError(
            f"Engine trains parameters alone, and this model's forward replaces {_list(changed)}"
        )


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    # Bytes, so that NaN equals NaN.
    bytes_of_a, bytes_of_b = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(bytes_of_a, bytes_of_b)


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
