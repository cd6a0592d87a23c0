"""Run a command, and see what it prints and which files it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaez_fast.cli.main import main


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def line(words: list[str], capsys: pytest.CaptureFixture[str], status: int | None = None) -> str:
    """Run a command that must fail; return its one line of stderr, its only output."""
    capsys.readouterr()
    found = main(words)
    assert found in (1, 2) if status is None else found == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vaez-fast {words[0]}: error: ")
    assert captured.err.count("\n") == 1
    return captured.err
