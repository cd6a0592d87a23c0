"""`python -m bench COMMAND`: every command is listed, explains itself and fails in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS, main
from bench.process import ROOT, environment

# A call of each command that cannot succeed, and the end of its one line.
WRONG = {
    "report": (["absent.json", "--out", "out"], "absent.json: No such file or directory"),
    "compare": (["absent.json", "absent.json"], "absent.json: No such file or directory"),
    "history": (["absent", "--out", "out"], "absent: no such folder"),
    "summary": (["absent.json"], "absent.json: No such file or directory"),
    "speedrun": (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    "ablation": (["--seeds", "1"], "--seeds must be at least 2, got 1"),
    "likelihood": (["absent", "--out", "out"], "absent"),
    "reproduction": (["--cells", "static/2", "--out", "out"], "got 'static/2'"),
    "scaling": (["--report", "absent"], "absent/results.json"),
    "soak": (["--steps", "10", "--out", "out"], "--steps must be at least 1000, got 10"),
    "parts": (["--out", "file/out"], "file"),
    "growth": (["--out", "file/out"], "file"),
    "repeat": (["absent.json"], "absent.json"),
    "revisions": (["no-such-commit", "--out", "out"], "git rev-parse"),
    "bounds": (["--measured", "absent.json", "--out", "out"], "absent.json"),
    "gpu": (["nothing", "--out", "out"], "invalid choice: 'nothing'"),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def status_of(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


def test_every_command_is_listed() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m bench {name} ")
    assert f"`python -m bench {name} " in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_a_call_that_cannot_succeed_ends_with_one_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    arguments, said = WRONG[name]
    assert status_of([name, *arguments]) in (1, 2)
    *usage, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench.{name}: error: ")
    assert said in line
    assert not usage or usage[0].startswith(f"usage: python -m bench {name} ")


def test_an_unknown_command_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert main([]) == 2
    unknown, missing = capsys.readouterr().err.splitlines()
    names = ", ".join(COMMANDS)
    assert unknown == f"bench: error: no such command: 'speed'; expected one of {names}"
    assert missing == f"bench: error: no command was given; expected one of {names}"


def test_the_longer_name_of_the_gpu_command_works() -> None:
    assert import_module("bench.gpu.__main__").main is import_module(COMMANDS["gpu"][0]).main
