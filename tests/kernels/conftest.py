"""The two routes of the fallback: eager at every size, or compiled at every size."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from vaez_kernels import compiler
from vaez_kernels.cases import ROOMS

# The fallbacks that are compiled from some size on, except importance sampling's, whose size is
# that of a tile.
TWINS = [
    twin
    for twin in (importlib.import_module(f"vaez_kernels.{room}.twin") for room in ROOMS)
    if hasattr(twin, "COMPILE_FROM") and "importance" not in twin.__name__
]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile no fallback."""
    for twin in TWINS:
        monkeypatch.setattr(twin, "COMPILE_FROM", 1 << 62)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile the fallback for every size; returns the functions that were requested."""
    if not compiler.has_cpu_compiler():
        pytest.skip("no C++ compiler: the fallback only runs eager")
    asked = []

    def counted(function: Callable[..., Any], *variant: Any) -> Any:
        asked.append(function)
        return compiled(function, *variant)

    compiled = compiler.compiled
    monkeypatch.setattr(compiler, "compiled", counted)
    for twin in TWINS:
        monkeypatch.setattr(twin, "COMPILE_FROM", 1)
    return asked
