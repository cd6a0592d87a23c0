"""These tests are collected only in a process that runs on the stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if "REHEARSAL_DEVICE" in os.environ else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with failing captures come last: torch 2.11's allocator cannot free after them."""
    items.sort(key=lambda item: item.path.name == "test_capture.py")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Reset durations, the memory limit and the executor after each test."""
    from tests.rehearsal import stand_in

    yield
    stand_in.forget_durations()
    stand_in.set_memory(80 << 30)
    stand_in.set_executor()
