"""The two routes of the fallback: eager at every size, or compiled at every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vaez_kernels import bernoulli, compiler, gaussian, latent, linear_bernoulli, mixture

OPS = (bernoulli, gaussian, latent, linear_bernoulli, mixture)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile no fallback."""
    for op in OPS:
        monkeypatch.setattr(op.twin, "COMPILE_FROM", 1 << 62)


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
    for op in OPS:
        monkeypatch.setattr(op.twin, "COMPILE_FROM", 1)
    return asked
