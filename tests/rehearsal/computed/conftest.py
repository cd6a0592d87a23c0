"""These tests are collected only in a process that computes results."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    test = collection_path.name.startswith("test_")
    return True if test and not config.pluginmanager.hasplugin("tests.rehearsal.results") else None
