"""Fixtures for all tests of `bench.gpu`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest-xdist's variables: a pytest that a test starts is no worker of this one."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
