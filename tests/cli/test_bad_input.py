"""Every public function and command answers bad input with one error that names the argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cli.bad_inputs import CALLS, COMMAND_LINES, KEY, LOGVAR, MU, SETTINGS, forced
from tests.system.bad_files import FILES
from vaez_fast import data
from vaez_fast.cli.main import COMMANDS, main
from vaez_kernels import kl_standard_normal, rsample

loaded = functools.cache(data.load)  # parsed once for all tests


@pytest.fixture(autouse=True)
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", loaded)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case[2])
def test_a_call_is_refused_with_the_argument_named(
    case: tuple[Callable[[], object], type[Exception], str],
) -> None:
    call, kind, message = case
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def short(value: object) -> str:
    return (" ".join(value) if isinstance(value, list) else str(value))[:60]


@pytest.mark.parametrize(("flags", "message"), SETTINGS, ids=short)
def test_a_setting_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", *flags, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vaez-fast train: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(("words", "message"), COMMAND_LINES, ids=short)
def test_a_command_line_is_refused_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"vaez-fast {words[0]}: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_long_and_every_command_is_in_it() -> None:
    typed = [words for words, _ in COMMAND_LINES]
    assert len(CALLS) + len(SETTINGS) + len(COMMAND_LINES) + len(FILES) >= 60
    assert {words[0] for words in typed} == set(COMMANDS)
    assert len({tuple(words) for words in typed}) == len(typed)


def test_an_unknown_command_names_the_nearest_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    commands = (
        "train, evaluate, sample, latents, article, sweep, remedies, theory, compare, report, env"
    )
    assert captured.err == (
        f"vaez-fast: error: no command 'trian'; did you mean train? (there are {commands})\n"
    )


def test_without_a_command_there_is_help_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "exit status: 0 done; 1 the run failed" in captured.err


def test_triton_forced_where_it_cannot_run_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here, and triton runs on it")
    with pytest.raises(RuntimeError, match=r"backend 'triton' was forced"):
        forced("triton")


def test_an_unknown_backend_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VAEZ_BACKEND", "numpy")
    with pytest.raises(ValueError, match="VAEZ_BACKEND must be one of torch, triton"):
        rsample(MU, LOGVAR, KEY)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE says several ranks, and "),
    ],
    ids=["no number", "no RANK"],
)
def test_half_of_torchruns_variables_are_refused(
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vaez-fast train: error: {message}")
    assert error.count("\n") == 1


def test_a_tensor_of_bad_values_is_not_an_error() -> None:
    bad: Tensor = torch.full((1, 4), float("nan"))
    assert kl_standard_normal(bad, bad).isnan().all()
