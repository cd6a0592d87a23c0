"""Full disks, losses that are not finite, memory that runs out: one error, and no state is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.process import environment
from tests.system.commands import contents, line
from tests.system.fake_run import make_run
from vaez_fast import data
from vaez_fast.cli.main import main
from vaez_fast.data import Dataset
from vaez_fast.system import files
from vaez_fast.system.files import OutputError
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training import phases as regime

pytestmark = pytest.mark.usefixtures("uncompiled_steps", "load_once")

ROOT = Path(__file__).parents[2]
# The same for all runs here, so that they share one traced step.
SETTINGS = [
    *("--model", "lyeoni", "--steps", "120", "--batch-size", "20", "--test-samples", "1"),
    *("--precision", "float32", "--checkpoint-seconds", "0"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole training run, `run`."""
    at = tmp_path_factory.mktemp("whole")
    make_run(at / "run")
    return at


# Disks.


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_checkpoint_that_cannot_be_replaced_is_still_there(
    call: str, code: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(whole / "run" / "checkpoint.pt", tmp_path)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    old = checkpoints.read(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    class Full:
        """A file on a disk that is full."""

        write = refuse
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    def full(handle: int, _: str) -> Full:
        os.close(handle)
        return Full()

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr(os, "open", refuse)
        if call == "write":
            patch.setattr(os, "fdopen", full)
        if call == "fsync":
            patch.setattr(os, "fsync", refuse)
        if call == "replace":
            patch.setattr(os, "replace", refuse)
        with pytest.raises(OutputError) as raised:
            checkpoints.write(path, replace(old, step=old.step + 1))
    assert str(raised.value) == f"out: cannot write {path}: {os.strerror(code)}"
    assert path.read_bytes() == before
    assert checkpoints.read(path).step == old.step
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_file_larger_than_allowed_is_refused_by_the_kernel_and_leaves_the_old_one(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copy(whole / "run" / "checkpoint.pt", tmp_path)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OutputError, match=r"cannot write .*: File too large"):
            checkpoints.write(path, checkpoints.read(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vaez_fast", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT, timeout=60,
        )  # fmt: skip
    said = "vaez-fast: error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


# Training.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *_: digits)
        assert main(["train", *SETTINGS, "--out", str(out)]) == 0
    return measured_in(out)


def measured_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())["test"]
    return found


def failing_at(name: str, write: Callable[..., None]) -> Callable[..., None]:
    def write_or_fail(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OutputError(f"out: cannot write {path}: No space left on device")
        write(path, content)

    return write_or_fail


def test_a_disk_that_is_full_when_metrics_are_written_loses_nothing(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", failing_at("metrics.json", files.write_atomically))
        said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert f"cannot write {out / 'metrics.json'}: No space left" in said
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    assert main(["train", "--resume", str(out)]) == 0
    assert measured_in(out) == undisturbed
    assert checkpoints.read(out / "checkpoint.pt").training is None


def test_a_disk_that_is_full_in_training_leaves_the_checkpoint_before(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real, written = tmp_path / "run", os.fsync, 0

    def full_later(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 4:  # after config.json and the first checkpoint, each with its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_later)
        said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert f"cannot write {out / 'checkpoint.pt'}: No space left" in said
    kept = checkpoints.read(out / "checkpoint.pt")
    assert kept.training is not None
    assert kept.training["done"] == 64
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    assert main(["train", "--resume", str(out)]) == 0
    assert measured_in(out) == undisturbed


@pytest.fixture
def breaks_at_step_81(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Learning rates that make the loss infinite from step 81 on."""

    def rates(lr: float, steps: int) -> torch.Tensor:
        found = lr * torch.ones(steps, dtype=torch.float64)
        found[79:] = 1e20
        return found

    with monkeypatch.context() as patch:
        patch.setattr(regime, "warmup_cosine", rates)
        yield patch


def test_a_loss_that_is_not_finite_says_where_and_keeps_the_last_good_checkpoint(
    breaks_at_step_81: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert "the loss of elbo/analytic/joint is not finite at step 81 (" in said
    assert "a smaller lr than 0.002 may help" in said
    kept = out / "checkpoint.pt"
    assert f"; the last good checkpoint is {kept}, after step 64" in said
    content = checkpoints.read(kept)
    assert content.training is not None
    ((state,),) = content.training["engines"]
    assert all(bool(w.isfinite().all()) for w in state["weights"].values())
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    breaks_at_step_81.undo()
    assert main(["train", "--resume", str(out)]) == 0
    assert np.isfinite(list(measured_in(out).values())).all()


def test_a_loss_that_is_not_finite_at_once_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *SETTINGS, "--out", str(tmp_path / "run"), "--checkpoint-seconds", "60"]
    said = line([*words, "--lr", "1e20"], capsys, 1)
    assert "elbo/analytic/joint is not finite at step 2 (" in said
    assert said.endswith("; there is no checkpoint yet\n")
    assert contents(tmp_path) == {}


def test_memory_that_runs_out_names_the_settings_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *SETTINGS, "--num-samples", "4000000000", "--out", str(tmp_path / "run")]
    said = line(words, capsys, 1)
    asked = "out of memory with batch_size 20, num_samples 4000000000 and model 'lyeoni': a lower "
    assert asked in said
    assert contents(tmp_path) == {}


def test_more_samples_than_memory_holds_name_the_count(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(whole / "run"), "--count", str(2**32 - 1), "--out", str(tmp_path / "s")]
    said = "vaez-fast sample: error: memory ran out; it may fit with a smaller count\n"
    assert line(words, capsys, 1) == said


def test_weights_that_overflow_are_refused(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = at / "run" / "checkpoint.pt"
    kept = checkpoints.read(path)
    kept.model["decoder.4.bias"].fill_(3e38)
    checkpoints.write(path, kept)
    said = line(["evaluate", str(at / "run"), "--json"], capsys, 1)
    assert "run: a measured number is not finite: its weights are damaged" in said


def test_two_runs_in_one_root_do_not_meet(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """One folder is claimed while a run in the other folder begins and ends."""
    with files.claimed(tmp_path / "a"):
        assert main(["train", *SETTINGS, "--out", str(tmp_path / "b")]) == 0
    assert measured_in(tmp_path / "b") == undisturbed
    assert all(name.startswith("b/") for name in contents(tmp_path))


def test_a_folder_at_work_is_refused_to_a_second_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.claimed(tmp_path / "a"):
        said = line(["train", *SETTINGS, "--out", str(tmp_path / "a")], capsys, 1)
    assert "another run is at work in" in said
