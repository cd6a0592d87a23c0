"""Records launched kernels, unwritten memory, and bytes moved, for the interpreted tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor


def watch(monkeypatch: pytest.MonkeyPatch, *launchers: tuple[ModuleType, str]) -> list[str]:
    """A list of the launchers called from now on. Also fills fresh memory with NaN."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poison(out: Tensor) -> Tensor:
        # Not while the fallback is traced: torch.compile would see an in-place write to an input.
        if torch.compiler.is_compiling() or not out.is_floating_point():
            return out
        return out.fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    seen: list[str] = []
    for module, name in launchers:
        monkeypatch.setattr(module, name, _counted(getattr(module, name), name, seen))
    return seen


def _counted(function: Any, name: str, seen: list[str]) -> Any:
    def counted(*args: Any) -> Any:
        seen.append(name)
        return function(*args)

    return counted


class Access(NamedTuple):
    kind: str  # load or store
    addresses: np.ndarray  # those that the mask allows
    width: int  # bytes of an element
    values: np.ndarray  # of a store


@contextmanager
def accesses(touch_memory: bool = True) -> Iterator[list[Access]]:
    """Records all loads and stores. With `touch_memory` off, loads return zeros."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype, interpreter_builder

    builder = type(interpreter_builder)
    seen: list[Access] = []

    def note(kind: str, pointers: Any, mask: Any, values: Any) -> None:
        chosen = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        width = pointers.get_element_ty().primitive_bitwidth // 8
        values = np.broadcast_to(values, chosen.shape)[chosen]
        seen.append(Access(kind, pointers.data[chosen].ravel(), width, values))

    load, store = builder.create_masked_load, builder.create_masked_store

    def noted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        note("load", pointers, mask, 0)
        if touch_memory:
            return load(self, pointers, mask, *rest, **named)
        element = pointers.get_element_ty()
        return TensorHandle(np.zeros(pointers.data.shape, _get_np_dtype(element)), element)

    def noted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask, value.data)
        return store(self, pointers, value, mask, *rest) if touch_memory else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", noted_load)
        patch.setattr(builder, "create_masked_store", noted_store)
        yield seen


class Traffic(NamedTuple):
    loaded: int
    stored: int
    key: int

    @classmethod
    def of(cls, seen: list[Access]) -> Traffic:
        sums = {"load": 0, "store": 0, "key": 0}
        for kind, addresses, width, _ in seen:
            sums["key" if kind == "load" and width == 8 else kind] += addresses.size * width
        return cls(sums["load"], sums["store"], sums["key"])


def far_launch(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Any,
    program: int | tuple[int, int, int],
    *args: Any,
    **constants: Any,
) -> list[Access]:
    """The loads and stores of one program of a launch of any size, without memory accesses."""
    place = (program, 0, 0) if isinstance(program, int) else program
    from triton.runtime.interpreter import TensorHandle, interpreter_builder, tl

    def program_id(_: Any, axis: int) -> Any:
        return TensorHandle(np.array([place[axis]], dtype=np.int32), tl.int32)

    with monkeypatch.context() as patch, accesses(touch_memory=False) as seen:
        patch.setattr(type(interpreter_builder), "create_get_program_id", program_id)
        kernel[(1,)](*args, **constants)
    return seen


def addresses(tensor: torch.Tensor, rows: range, columns: int, stride: int, base: int) -> set[int]:
    at = np.array(rows, dtype=object)[:, None] * stride + np.arange(columns, dtype=object) + base
    return set((at * tensor.element_size() + tensor.data_ptr()).ravel())


def touched(seen: list[Access], kind: str, width: int) -> list[set[int]]:
    return [
        {int(a) for a in access.addresses}
        for access in seen
        if access.kind == kind and access.width == width and access.addresses.size > 0
    ]


def tensors(count: int) -> list[torch.Tensor]:
    # Only their addresses are used.
    return [torch.zeros(1) for _ in range(count)]
