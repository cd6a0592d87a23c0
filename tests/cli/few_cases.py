"""Fewer and smaller cases for `vaez-fast compare`."""

from __future__ import annotations

import pytest

from vaez_kernels.cases import ROOMS
from vaez_kernels.testing import Shape


def few_cases(monkeypatch: pytest.MonkeyPatch, latent_shapes: tuple[Shape, ...]) -> None:
    """Small sizes of every op, and for the rest of the test."""
    for name in ("noise", "latent"):
        monkeypatch.setattr(ROOMS[name], "LATENT_SHAPES", latent_shapes)
    few = {"mixture": (7, 5, 3), "linear_bernoulli": (3, 5, 19, 20)}
    for name, room in ROOMS.items():
        if hasattr(room, "SHAPES"):
            monkeypatch.setattr(room, "SHAPES", (few.get(name, (3, 5, 19)),))
    for room in ROOMS.values():
        if hasattr(room, "VALUES_SHAPE"):
            monkeypatch.setattr(room, "VALUES_SHAPE", (1, 9, 20))
