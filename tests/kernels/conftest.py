"""The two routes of the fallback: eager at every size, or compiled at every size."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from vaez_kernels import compiler, latent
from vaez_kernels.cases import FOLDERS

# The fallbacks that are compiled from some size on.
TWINS = [
    twin
    for twin in (importlib.import_module(f"vaez_kernels.{folder}.twin") for folder in FOLDERS)
    if hasattr(twin, "COMPILE_FROM")
]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile no fallback but that of the noise stream."""
    for module in (compiler, latent.twin):
        monkeypatch.setattr(module, "compiles", lambda _: False)
    for twin in TWINS:
        monkeypatch.setattr(twin, "COMPILE_FROM", 1 << 62)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile the fallbacks for every size.

    Returns the formulas that the latent, Bernoulli and Gaussian ops asked to be compiled.
    """
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
