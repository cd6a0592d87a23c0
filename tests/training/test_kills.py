"""SIGKILL at random moments, other signals, and two processes that claim one folder."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.process import environment
from bench.soak.kills import command, killed, outcome, undisturbed
from vaez_fast.system.files import OutputError, claimed
from vaez_fast.training import checkpoint

STEPS = 1500
SETTINGS = [
    *("--model", "lyeoni", "--steps", str(STEPS), "--batch-size", "20", "--test-samples", "16"),
    *("--checkpoint-seconds", "0"),
]
SEED = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An undisturbed run, and the seconds that it trains."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, undisturbed(SETTINGS, out)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A training process that has written a checkpoint."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (out / checkpoint.NAME).exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def steps_done(out: Path) -> int:
    training = checkpoint.read(out / checkpoint.NAME).training
    assert training is not None
    return int(training["done"])


def test_a_run_killed_twice_ends_bit_identical(whole: tuple[Path, float], tmp_path: Path) -> None:
    out, seconds = whole
    run = killed(SETTINGS, tmp_path / "run", out, seconds, 2, random.Random(SEED))
    assert run.identical, run
    assert any(step is not None and 0 < step < STEPS for step in run.steps), run


def test_sigterm_stops_after_the_step_and_the_run_goes_on_bit_identical(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, *SETTINGS, "--out", str(out))
    with pytest.raises(OutputError, match="another run is at work in"), claimed(out):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    step = steps_done(out)
    assert 0 < step < STEPS
    assert said == (
        f"vaez-fast train: stopped by SIGTERM; the last good checkpoint is "
        f"{out / checkpoint.NAME}, after step {step}: go on with --resume {out}\n"
    )
    subprocess.run(
        command("--resume", str(out)), env=environment(), check=True, capture_output=True
    )
    assert outcome(out) == outcome(whole[0])


def test_signals_while_nothing_is_trained_yet_end_the_run_at_once_and_quietly(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(*SETTINGS, "--out", str(out)), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (out / "config.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # torchrun also passes on a terminal's Ctrl-C
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said == "vaez-fast train: stopped by SIGINT; there is no checkpoint yet\n"
