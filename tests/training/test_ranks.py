"""Several processes train, evaluate and study like one; if one dies, they end with one message.

Each rank would compile its own steps for half a minute, so steps run uncompiled here.
tests/bench/scaling/test_scaling.py compares ranks that compile with one process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.process import ROOT, environment
from tests.training import rank_worker
from tests.training.uncompiled import uncompiled
from vaez_fast.system.world import ALONE, World
from vaez_fast.training import checkpoint


def torchrun(ranks: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(ranks), *arguments]


# The environment of a machine without a C++ compiler, where steps are not compiled.
UNCOMPILED = {"CXX": "none"}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    with uncompiled():
        return rank_worker.found(ALONE)


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The number of ranks, their results and their folder."""
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        torchrun(request.param, str(Path(rank_worker.__file__)), str(out)),
        env=environment() | UNCOMPILED,
        capture_output=True, text=True, timeout=500, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return request.param, torch.load(out / "found.pt", weights_only=True), out


def test_gradients_of_the_first_step_are_those_of_one_process(
    together: Any, alone: dict[str, Any]
) -> None:
    # float32 sums of 49 rows in another order differ by a few 1e-7 of each tensor's norm.
    for one, many in zip(alone["gradients"], together[1]["gradients"], strict=True):
        assert (one - many).norm() <= 1e-6 * one.norm()


def test_losses_and_the_final_elbo_are_those_of_one_process(
    together: Any, alone: dict[str, Any]
) -> None:
    # Rounding errors of the gradients grow over the steps. With other noise the first loss would
    # already be off by several nats.
    losses = torch.tensor([alone["losses"], together[1]["losses"]])
    assert losses[0, 0] != losses[0, -1]
    assert float((losses[0] - losses[1]).abs().max()) <= 1e-3
    assert together[1]["test"]["elbo"] == pytest.approx(alone["test"]["elbo"], abs=0.1)


def test_a_shared_evaluation_is_that_of_one_process(together: Any, alone: dict[str, Any]) -> None:
    # Each row differs only through the shapes of matrix products: 1e-6 of hundreds of nats.
    assert together[1]["before"] == pytest.approx(alone["before"], rel=1e-6)


def test_a_study_is_shared_and_whole(together: Any) -> None:
    ranks, _, out = together
    record = json.loads((out / "study" / "results.json").read_text())
    made = [json.loads(p.read_text())["rank"] for p in (out / "study").glob("made-*.json")]
    assert len(record["runs"]) == len(made)
    counts = [made.count(rank) for rank in range(ranks)]
    assert max(counts) - min(counts) <= 1
    assert record["environment"]["ranks"] == ranks


def test_a_rank_measures_its_own_images_alone(together: Any) -> None:
    # Ranks share a study's runs, so the others' features are those of other models.
    ranks, _, out = together
    for rank in range(ranks):
        found = json.loads((out / f"frechet-{rank}.json").read_text())["distance"]
        assert found == pytest.approx(rank_worker.frechet_of(rank), rel=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_gloo_outlives_the_group(together: Any) -> None:
    # One that drops its last tensor while Python ends would abort the process.
    ranks, _, out = together
    for rank in range(ranks):
        threads = json.loads((out / f"threads-{rank}.json").read_text())
        assert [name for name in threads["within"] if "gloo" in name]
        assert [name for name in threads["after"] if "gloo" in name] == []


SETTINGS = [
    *("--model", "lyeoni", "--batch-size", "49", "--precision", "float32"),
    *("--test-samples", "8"),
]


def start(out: Path, ranks: int) -> subprocess.Popen[str]:
    """Start ranks that train without end, and return once they have written a checkpoint."""
    endless = ["--steps", "200000", "--checkpoint-seconds", "2", "--out", str(out)]
    process = subprocess.Popen(
        torchrun(ranks, "-m", "vaez_fast", "train", *SETTINGS, *endless),
        env=environment() | UNCOMPILED, stderr=subprocess.PIPE, text=True, cwd=out.parent,
    )  # fmt: skip
    while not (out / checkpoint.NAME).exists():
        assert process.poll() is None
        time.sleep(0.2)
    return process


def said_by(process: subprocess.Popen[str]) -> str:
    """Our single line of stderr, among those of torchrun."""
    _, said = process.communicate(timeout=120)
    ours = [line for line in said.splitlines() if line.startswith("vaez-fast")]
    assert len(ours) == 1, said
    return ours[0]


def last_checkpoint(out: Path) -> str:
    training = checkpoint.read(out / checkpoint.NAME).training
    assert training is not None
    return (
        f"the last good checkpoint is {out / checkpoint.NAME}, after step {training['done']}: "
        f"go on with --resume {out}"
    )


def test_a_rank_that_dies_ends_the_run_with_a_checkpoint_and_one_message(tmp_path: Path) -> None:
    out = tmp_path / "gloo-run"  # must not be mistaken for an error of gloo
    process = start(out, 2)
    before = checkpoint.read(out / checkpoint.NAME).training
    time.sleep(0.5)
    os.kill(_rank_zero(process.pid), signal.SIGKILL)
    said = said_by(process)
    after = checkpoint.read(out / checkpoint.NAME).training
    assert before is not None
    assert after is not None
    assert after["done"] > before["done"]
    expected = f"error: another rank is gone after step {after['done']}; {last_checkpoint(out)}"
    assert said == f"vaez-fast train: {expected}"


def test_sigterm_to_torchrun_stops_all_ranks_with_a_checkpoint_and_one_message(
    tmp_path: Path,
) -> None:
    process = start(tmp_path / "run", 2)
    process.send_signal(signal.SIGTERM)
    said = said_by(process)
    assert said == f"vaez-fast train: stopped by SIGTERM; {last_checkpoint(tmp_path / 'run')}"


def _rank_zero(launcher: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = (p for p in children if b"\0RANK=0\0" in Path(f"/proc/{p}/environ").read_bytes())
    return int(pid)


def test_what_is_wrong_with_all_ranks_is_said_once(tmp_path: Path) -> None:
    missing = ["--data", "mnist", "--data-root", "/proc/none", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        torchrun(2, "-m", "vaez_fast", "train", *missing),
        env=environment(), capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("vaez-fast")]
    assert len(ours) == 1, done.stderr
    assert "/proc/none" in ours[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_shares_are_contiguous_even_and_together_the_whole(size: int, count: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
