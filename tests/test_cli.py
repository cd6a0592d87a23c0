"""The command line as a user meets it: what it writes, prints, and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vaez_fast import cli, results
from vaez_fast.cli import main
from vaez_fast.config import LOG_PX_SAMPLES
from vaez_fast.model import VAE

ROOT = Path(__file__).parents[1]
SETTINGS = ["--model", "lyeoni", "--steps", "40", "--batch-size", "50", "--precision", "float32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the command as it stands uninstalled: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "vaez_fast", "train", *SETTINGS, "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def metrics(run: tuple[Path, str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run[0] / "metrics.json").read_text())
    return content


def test_metrics_hold_every_setting_as_run(metrics: dict[str, Any]) -> None:
    assert metrics["schema"] == 1
    config = metrics["config"]
    assert config["model"] == "lyeoni"
    assert config["steps"] == 40
    assert config["epochs"] is None
    assert config["precision"] == "float32"
    assert config["kl"] == "analytic"  # resolved: it was not given
    assert config["num_samples"] == 1
    assert config["test_samples"] == LOG_PX_SAMPLES
    assert config["device"] in ("cpu", "cuda")  # resolved, not "auto"
    assert metrics["arm"] == "elbo/analytic/joint"


def test_metrics_say_where_they_were_measured(metrics: dict[str, Any]) -> None:
    keys = {"python", "torch", "triton", "device", "cpu", "threads", "revision", "dirty"}
    assert keys <= metrics["environment"].keys()
    assert metrics["environment"]["torch"] == torch.__version__


def test_metrics_of_the_test_split_add_up(metrics: dict[str, Any]) -> None:
    test = metrics["test"]
    log_px = {"log_px", "log_px_standard_error", "log_px_samples"}
    assert test.keys() == {"elbo", "rate", "distortion"} | log_px
    assert test["elbo"] == pytest.approx(-(test["rate"] + test["distortion"]))
    assert test["elbo"] < test["log_px"] < 0 < test["rate"]
    assert test["log_px_samples"] == LOG_PX_SAMPLES


def test_metrics_carry_the_curve_and_the_speed(metrics: dict[str, Any]) -> None:
    point = {"phase", "step", "seconds", "split", "elbo", "rate", "distortion"}
    assert all(p.keys() == point for p in metrics["curve"])
    assert metrics["curve"][-1]["step"] == 40
    speed = metrics["speed"]
    names = {"steps", "train_seconds", "images_per_second", "compile_seconds", "eval_seconds"}
    assert speed.keys() == names
    assert speed["images_per_second"] == pytest.approx(40 * 50 / speed["train_seconds"])


def test_the_checkpoint_is_the_model_that_was_tested(run: tuple[Path, str]) -> None:
    checkpoint = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    vae = VAE("lyeoni")
    vae.load_state_dict(checkpoint["model"])
    assert checkpoint["schema"] == 1
    assert checkpoint["config"]["model"] == "lyeoni"
    assert not torch.equal(next(vae.parameters()), next(VAE("lyeoni").parameters()))


def test_the_table_shows_what_was_written(run: tuple[Path, str], metrics: dict[str, Any]) -> None:
    out, printed = run
    for name in ("elbo", "rate", "distortion", "log_px"):
        assert f"{metrics['test'][name]:.2f}" in printed
    assert f"± {metrics['test']['log_px_standard_error']:.2f}" in printed
    assert "lyeoni on mnist-5k (static), elbo/analytic/joint, seed 0, float32" in printed
    assert str(out / "metrics.json") in printed


def test_no_file_is_left_half_written(run: tuple[Path, str]) -> None:
    assert sorted(p.name for p in run[0].iterdir()) == ["checkpoint.pt", "metrics.json"]


def test_a_run_is_not_overwritten(
    run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run[0] / "metrics.json").read_bytes()
    assert main(["train", *SETTINGS, "--out", str(run[0])]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (run[0] / "metrics.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file" / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "out: cannot write in" in error


def test_a_full_disk_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(results.OutputError, match=r"metrics\.json: No space left"):
        results.write_atomically(tmp_path / "metrics.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_flag_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    flags = "data data-root binarize model objective kl decoder beta num-samples epochs steps"
    for flag in f"{flags} batch-size lr precision device seed test-samples out".split():
        assert f"--{flag}" in text
    assert cli.COMMANDS["train"].EXAMPLE in text
