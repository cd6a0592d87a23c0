"""Closed streams, odd terminals and odd environments: runs continue, and no file is damaged."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bench.process import environment
from vaez_fast.system.progress import Progress, waiting
from vaez_fast.training import checkpoint

CLOSE = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}
COMBINATIONS = [
    chosen for count in (1, 2, 3) for chosen in itertools.combinations(CLOSE, count)
]  # fmt: skip
# Without a C++ compiler steps run eagerly, and a warning is written to stderr as well.
TINY = [
    *("train", "--model", "lyeoni", "--steps", "4", "--batch-size", "20", "--test-samples", "1"),
    *("--precision", "float32"),
]


def vaez_fast(
    *words: str | bytes, closed: tuple[str, ...] = (), python: tuple[str, ...] = (),
    folder: Path | None = None, **variables: str | None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run the command from a shell; a variable that is None is unset."""
    env = {**environment(), "CXX": "none", **variables}
    redirected = " ".join(CLOSE[name] for name in closed)
    script = f'exec "$@" {redirected}'
    return subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, *python, "-m", "vaez_fast", *words],
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True, text=True, errors="surrogateescape", timeout=120, cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize("closed", COMBINATIONS, ids="+".join)
def test_what_only_prints_fails_where_it_cannot_and_says_so_where_it_can(
    closed: tuple[str, ...],
) -> None:
    for words in (["--help"], ["--version"], ["train", "--help"], ["env"], ["evaluate", "x"]):
        if words[0] in ("env", "evaluate") and "stdout" not in closed:
            continue
        done = vaez_fast(*words, closed=closed)
        if "stdout" not in closed:
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout
        else:
            said = "vaez-fast: error: cannot write the output: stdout is closed\n"
            assert done.returncode == 1, words
            assert done.stderr == ("" if "stderr" in closed else said)


@pytest.mark.parametrize("closed", COMBINATIONS, ids="+".join)
def test_a_bad_flag_ends_with_2_and_is_never_told_to_stdout(closed: tuple[str, ...]) -> None:
    done = vaez_fast("train", "--modle", "burda", closed=closed)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == (0 if "stderr" in closed else 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run with a closed stderr: its folder and its finished process."""
    out = tmp_path_factory.mktemp("closed") / "run"
    return out, vaez_fast(*TINY, "--out", str(out), closed=("stderr",))


def assert_whole(out: Path) -> None:
    names = ["checkpoint.pt", "config.json", "metrics.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "metrics.json").read_text())["config"]["steps"] == 4
    assert checkpoint.read(out / "checkpoint.pt").training is None


def test_training_goes_on_without_stderr(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = run
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 steps in" in done.stdout
    assert_whole(out)


def test_training_goes_on_without_any_stream(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = vaez_fast(*TINY, "--out", str(out), closed=("stdin", "stdout", "stderr"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_whole(out)


def test_an_odd_environment_changes_no_number(
    run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """No home, no folder for temporary files, ASCII, a narrow terminal, no asserts, odd bytes."""
    odd = os.fsencode(tmp_path) + b"/\xff"
    strange = vaez_fast(
        *TINY, "--out", odd, python=("-O",), HOME=None, TMPDIR="/proc/none", LC_ALL="C",
        PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", COLUMNS="1", PYTHONHASHSEED="7",
    )  # fmt: skip
    assert strange.returncode == 0, strange.stderr
    test = [
        json.loads((folder / "metrics.json").read_text())["test"]
        for folder in (Path(os.fsdecode(odd)), run[0])
    ]
    assert test[0] == test[1]


def test_help_and_refusals_stand_odd_terminals_locales_and_bytes(tmp_path: Path) -> None:
    for variables in (
        {"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "-5"}, {"COLUMNS": "x"}, {"HOME": None},
        {"TMPDIR": "/proc/none"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):  # fmt: skip
        done = vaez_fast("train", "--help", python=("-W", "error"), **variables)
        assert (done.returncode, done.stderr) == (0, ""), variables
        assert "--checkpoint-seconds" in done.stdout
    for words in ([b"\xff"], ["train", b"--\xff"], ["train", "--lr", b"\xff"]):
        done = vaez_fast(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("vaez-fast")
        assert done.stderr.count("\n") == 1


def test_a_folder_that_was_deleted_is_an_error_in_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    command = [sys.executable, "-m", "vaez_fast", "theory", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("vaez-fast theory: error: cannot use the current folder: ")
    assert done.stderr.count("\n") == 1


def test_a_terminal_that_is_closed_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    terminal = open(theirs, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", terminal)
    with waiting("compiling", show=True), Progress(2, "training", show=True) as progress:
        progress.advance()
        os.close(ours)  # from now on every write to the terminal fails
        with pytest.raises(OSError, match="Input/output"):
            os.write(theirs, b"x")
        progress.note("a bound")
        progress.advance()
    with suppress(OSError):  # its buffer cannot be flushed
        terminal.close()


@pytest.mark.parametrize("closed", COMBINATIONS, ids="+".join)
def test_no_file_takes_the_descriptor_of_a_closed_stream(
    closed: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        "import os, subprocess, sys; from vaez_fast.system.messages import open_closed_streams\n"
        "closed = sorted(open_closed_streams())\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    print('noise', file=sys.stderr); print('noise'); sys.stdin.read(0)\n"
        "    os.write(2, b'noise')\n"  # like a C++ library
        "    subprocess.run(['sh', '-c', 'echo noise; echo noise >&2'], check=True)\n"
        "    file.write(' '.join([str(file.fileno() > 2), *closed]))\n"
    )
    redirected = " ".join(CLOSE[name] for name in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", code, "file"],
        cwd=tmp_path, env=environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "file").read_text().split() == ["True", *sorted(closed)]
    assert (done.stdout == b"") == ("stdout" in closed)
    assert (done.stderr == b"") == ("stderr" in closed)
