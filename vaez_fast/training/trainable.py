"""Checks that a compiled step trains a model exactly as the model's own code says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd

from ..model import Linear


def check_dtypes(objective: nn.Module) -> None:
    """Check that the parameters of an objective are float32.

    Raises:
        ValueError: one is not.
    """
    for name, p in objective.named_parameters():
        if p.dtype != torch.float32:
            raise ValueError(f"Engine keeps weights in float32: {name} is {p.dtype}")


def converts_inputs(objective: nn.Module) -> bool:
    """Whether all matrices are in layers that convert their input to the matrix's dtype.

    False if there are convolutions.
    """
    return all(
        isinstance(module, Linear) or not (p.dim() == 2 or isinstance(module, _ConvNd))
        for module in objective.modules()
        for p in module.parameters(recurse=False)
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
            "Engine keeps parameters and buffers, and a step of this model changes "
            f"{_list(changed)} too: register it as a buffer"
        )


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    # Bytes, so that NaN equals NaN.
    bytes_of_a, bytes_of_b = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(bytes_of_a, bytes_of_b)


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
