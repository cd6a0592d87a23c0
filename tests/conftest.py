"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.uncompiled import uncompiled


@pytest.fixture(scope="module")
def uncompiled_steps() -> Iterator[None]:
    """No test of this module compiles its training steps."""
    with uncompiled():
        yield
