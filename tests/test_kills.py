"""SIGKILL at random moments, SIGTERM, and two processes that want one folder."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.kills import command, environment, killed, outcome, undisturbed
from vaez_fast.files import OutputError, claimed

SETTINGS = [
    *("--model", "lyeoni", "--steps", "600", "--batch-size", "20", "--test-samples", "16"),
    *("--checkpoint-seconds", "0"),
]
SEED = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbs, and its seconds."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    undisturbed(SETTINGS, out)  # compiles
    again = out.with_name("again")
    seconds = undisturbed(SETTINGS, again)
    assert outcome(again) == outcome(out)
    return out, seconds


def test_a_run_killed_twice_ends_bit_identical(whole: tuple[Path, float], tmp_path: Path) -> None:
    out, seconds = whole
    run = killed(SETTINGS, tmp_path / "run", out, seconds, 2, random.Random(SEED))
    assert run.identical, run


def test_sigterm_stops_after_the_step_with_a_checkpoint_and_an_exit_status_of_its_own(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    long = [*SETTINGS[:3], "100000", *SETTINGS[4:-1], "1000"]
    process = subprocess.Popen(
        command(*long, "--out", str(out)), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (out / "config.json").exists():
        time.sleep(0.1)
    with pytest.raises(OutputError, match="another run is at work in"), claimed(out):
        pass
    time.sleep(whole[1] - 1)  # into the training
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count("\n") == 1
    assert said.startswith("vaez-fast train: stopped by SIGTERM; ")
    with claimed(out):  # its lock ended with it
        pass
