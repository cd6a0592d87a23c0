"""What the interpreted tests watch: which kernels are launched, and memory left unwritten."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def watch(monkeypatch: pytest.MonkeyPatch, *launchers: tuple[ModuleType, str]) -> list[str]:
    """The names of the launchers called from now on; fresh memory is full of NaN."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poison(out: Tensor) -> Tensor:
        # Not while the fallback is traced: torch.compile would find an input written in place.
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
