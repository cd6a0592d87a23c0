"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.training.uncompiled import uncompiled


@pytest.fixture(scope="module")
def uncompiled_steps() -> Iterator[None]:
    """The tests of this module run their training steps uncompiled."""
    with uncompiled():
        yield
