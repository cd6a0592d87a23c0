"""The stand-in for CUDA, built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal.build import build, reason_to_skip


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built stand-in. Skips if it cannot be built."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("stand_in"))
