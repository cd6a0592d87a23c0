"""Fewer and smaller cases for `vaez-fast compare`."""

from __future__ import annotations

import pytest

from vaez_kernels.cases import FOLDERS
from vaez_kernels.testing import Shape


def few_cases(monkeypatch: pytest.MonkeyPatch, latent_shapes: tuple[Shape, ...]) -> None:
    """Small sizes of every op, and for the rest of the test."""
    for name in ("noise", "latent"):
        monkeypatch.setattr(FOLDERS[name], "LATENT_SHAPES", latent_shapes)
    few = {"mixture": (7, 5, 3), "linear_bernoulli": (3, 5, 19, 20)}
    for name, module in FOLDERS.items():
        if hasattr(module, "SHAPES"):
            monkeypatch.setattr(module, "SHAPES", (few.get(name, (3, 5, 19)),))
    for module in FOLDERS.values():
        if hasattr(module, "VALUES_SHAPE"):
            monkeypatch.setattr(module, "VALUES_SHAPE", (1, 9, 20))
