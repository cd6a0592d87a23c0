"""Fixtures of the tests that damage a copy of a folder with whole results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vaez_fast import data
from vaez_fast.data import Dataset
from vaez_fast.runs import trained
from vaez_fast.study import grid


@pytest.fixture
def at(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the test module's folder `whole`, as the working directory."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("mnist-5k")


@pytest.fixture
def load_once(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command gets `digits`, whatever data it asks for."""
    for module in (data, trained, grid):
        monkeypatch.setattr(module, "load", lambda *_: digits)
