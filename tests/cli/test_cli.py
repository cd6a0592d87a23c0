"""The command line: what it writes, prints and refuses."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.process import ROOT, environment
from vaez_fast.cli import main as cli
from vaez_fast.cli import settings
from vaez_fast.cli.commands import train
from vaez_fast.cli.main import main
from vaez_fast.cli.parser import Parser
from vaez_fast.config import LOG_PX_SAMPLES
from vaez_fast.model import VAE
from vaez_fast.runs import trained
from vaez_fast.system import files
from vaez_fast.system.errors import is_out_of_memory
from vaez_fast.system.progress import waiting

SETTINGS = ["--model", "lyeoni", "--steps", "40", "--batch-size", "50", "--precision", "float32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the command from the checkout, not installed: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    command = [sys.executable, "-m", "vaez_fast", "train", *SETTINGS, "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=500
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
    assert config["kl"] == "analytic"  # the default for this objective, filled in
    assert config["num_samples"] == 1
    assert config["test_samples"] == LOG_PX_SAMPLES
    assert config["device"] in ("cpu", "cuda")  # what "auto" chose
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
    assert checkpoint["schema"] == 2
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
    names = ["checkpoint.pt", "config.json", "metrics.json"]
    assert sorted(path.name for path in run[0].iterdir()) == names


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
    with pytest.raises(files.OutputError, match=r"metrics\.json: No space left"):
        files.write_atomically(tmp_path / "metrics.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_gives_the_runs_own_numbers_to_the_last_digit(
    run: tuple[Path, str], metrics: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run[0]), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["runs"]
    assert again["metrics"] == metrics["test"]
    assert main(["evaluate", str(run[0]), "--split", "validation", "--test-samples", "3"]) == 0
    printed = capsys.readouterr().out
    assert "validation split, nats per image" in printed
    assert "3 importance samples" in printed


def test_a_run_can_be_run_again_from_its_own_record(
    run: tuple[Path, str], metrics: dict[str, Any]
) -> None:
    options = Parser("train", train).settings(["--config", str(run[0] / "metrics.json")])
    assert asdict(settings.train_config(options)) == metrics["config"]


@pytest.mark.parametrize("name", cli.COMMANDS)
class TestEveryCommand:
    def test_its_example_parses(self, name: str) -> None:
        example = command(name).EXAMPLE.split()
        assert example[:2] == ["vaez-fast", name]
        assert parser(name).settings(example[2:]).given

    def test_its_help_shows_each_setting_and_the_example(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"example:\n  {command(name).EXAMPLE}" in text
        for action in parser(name)._actions:
            assert action.help
            assert "".join(action.option_strings[-1:]) in text
            assert str(action.metavar or "") in text

    def test_its_help_says_each_default(self, name: str) -> None:
        for action in parser(name)._actions:
            if action.option_strings and action.nargs != 0 and action.default is not None:
                assert "default" in (action.help or "")

    def test_it_takes_a_file_and_refuses_what_it_does_not_know(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "settings.toml"
        file.write_text("nonsense = 1\n")
        positional = ["x"] * (name in ("evaluate", "sample", "latents", "report"))
        assert main([name, *positional, "--config", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"vaez-fast {name}: error: config: {file}: no setting 'nonsense'")
        assert error.count("\n") == 1


def command(name: str) -> Any:
    return importlib.import_module(f"vaez_fast.cli.commands.{name}")


def parser(name: str) -> Parser:
    return Parser(name, command(name))


def test_help_needs_no_torch_and_no_command_draws_before_it_must() -> None:
    code = (
        "import sys, importlib, vaez_fast.cli.main as cli\n"
        "assert cli.main(['--help']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "for name in cli.COMMANDS: importlib.import_module(f'vaez_fast.cli.commands.{name}')\n"
        "heavy = ('torchvision', 'mlxtend', 'scipy', 'sklearn', 'torchmetrics', 'matplotlib')\n"
        "assert not [m for m in heavy if m in sys.modules]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "exit status: 0 done" in done.stdout


def test_an_output_that_nobody_reads_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vaez_fast", "--help"],
        stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "exhaust", [lambda: torch.empty(2**60), lambda: bytearray(2**62)], ids=["torch", "host"]
)
def test_memory_that_runs_out_is_one_line_that_says_what_helps(
    exhaust: Callable[[], object],
    run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trained, "draw", lambda *_: exhaust())
    assert main(["sample", str(run[0]), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error == "vaez-fast sample: error: memory ran out; it may fit with a smaller count\n"


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(command("theory"), "run", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["theory"])


def test_interrupted_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command("theory"), "run", interrupted)
    assert main(["theory"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_wait_is_named_on_a_terminal_alone_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream, show, wanted in (
        (Terminal(), True, "compiling …\r\033[K"),
        (Terminal(), False, ""),
        (io.StringIO(), True, ""),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        with waiting("compiling", show=show):
            pass
        assert stream.getvalue() == wanted
