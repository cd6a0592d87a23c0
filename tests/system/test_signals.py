"""Signals end a process at once and with one line, whatever it does; clock jumps do no harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.process import ROOT, environment
from vaez_fast.cli.main import main
from vaez_fast.system import stopping, world
from vaez_fast.system.stopping import Signals, Stopped
from vaez_fast.training.checkpoint import Checkpoint, Keeping

# This covers half a second in which a signal is not noticed, and an interpreter's exit on a busy
# core. torch itself would wait minutes for other ranks.
AT_ONCE = 20.0


@pytest.fixture(scope="module")
def ranks() -> dict[str, Any]:
    """How ranks that waited for others ended: see tests/system/waiting_ranks.py."""
    variables = environment() | {"OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VAEZ_RANK_PATIENCE"):
        variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.waiting_ranks"],
        capture_output=True, text=True, env=variables, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("first waits", "SIGINT"),
        ("first waits", "SIGTERM"),
        ("second waits", "SIGINT"),
        ("in C++", "SIGINT"),
        ("in C++", "SIGTERM"),
    ],
)
def test_a_rank_that_waits_for_others_to_come_ends_at_once(
    where: str, name: str, ranks: dict[str, Any]
) -> None:
    found = ranks[f"{where}, {name}"]
    assert found["status"] == 128 + signal.Signals[name]
    (said,) = found["said"]
    assert said.startswith(f"vaez-fast evaluate: stopped by {name}")
    assert found["seconds"] < AT_ONCE


def test_ranks_that_do_not_come_are_waited_for_as_long_as_was_said(ranks: dict[str, Any]) -> None:
    (said,) = ranks["nobody comes"]["said"]
    assert "only 1 of 2 ranks came within 1 s (VAEZ_RANK_PATIENCE" in said
    (said,) = ranks["no first rank"]["said"]
    assert "the first rank cannot be reached at 127.0.0.1, port" in said
    assert ranks["nobody comes"]["status"] == ranks["no first rank"]["status"] == 1


def test_a_signal_ends_a_rank_that_waits_for_one_that_hangs(ranks: dict[str, Any]) -> None:
    found = ranks["hang"]
    assert (found["status"], found["said"]) == (143, ["vaez-fast x: stopped by SIGTERM"])
    assert found["seconds"] < AT_ONCE


def test_in_a_step_the_other_rank_has_some_seconds_to_come_back(ranks: dict[str, Any]) -> None:
    found = ranks["hang in a step"]
    assert (found["status"], found["said"]) == (143, ["vaez-fast x: stopped by SIGTERM"])
    assert 4.0 < found["seconds"] < AT_ONCE  # tests/system/waiting_ranks.py sets 4 s


def test_a_second_signal_does_not_wait_for_them(ranks: dict[str, Any]) -> None:
    found = ranks["hang in a step, twice"]
    assert (found["status"], found["said"]) == (143, ["vaez-fast x: stopped by SIGTERM"])
    assert found["seconds"] < ranks["hang in a step"]["seconds"] - 1.0


def test_a_rank_that_hangs_is_given_up_when_patience_ends(ranks: dict[str, Any]) -> None:
    found = ranks["hang, patience"]
    said = "vaez-fast x: error: another rank did not answer in time (VAEZ_RANK_PATIENCE)"
    assert (found["status"], found["said"]) == (1, [said])


def test_one_of_torchruns_ranks_says_what_is_wrong_with_the_words(ranks: dict[str, Any]) -> None:
    both = [ranks["mistyped, rank 0"], ranks["mistyped, rank 1"]]
    assert [one["status"] for one in both] == [2, 2]
    assert both[0]["said"] + both[1]["said"] == [
        "vaez-fast train: error: lr must be a number, got 'fast'"
    ]


def test_a_rank_that_reaches_no_other_speaks(ranks: dict[str, Any]) -> None:
    found = ranks["mistyped, no store"]
    assert found["said"] == ["vaez-fast train: error: lr must be a number, got 'fast'"]


class SilentStore:
    """Like a store whose rank is stopped, it does not answer."""

    def add(self, *_: object) -> int:
        time.sleep(60)
        return 0


def test_a_silent_store_makes_a_rank_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "STORE_SECONDS", 0.2)
    one = world.World(1, 2, SilentStore())  # type: ignore[arg-type]
    assert one.first_to_speak()


@pytest.mark.parametrize("size", [None, "1"])
def test_a_rank_that_is_alone_says_what_is_wrong(
    size: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["train", "--lr", "fast"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("word", ["x", "0", "-1", "nan", "inf", "1e12"])
def test_patience_must_be_a_number_of_seconds(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAEZ_RANK_PATIENCE", word)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", "x"]) == 2
    said = "vaez-fast evaluate: error: VAEZ_RANK_PATIENCE must be a number of seconds, above 0"
    assert capsys.readouterr().err.startswith(said)


def test_patience_is_ten_minutes_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAEZ_RANK_PATIENCE", raising=False)
    assert world.patience().total_seconds() == 600
    assert world.patience(7).total_seconds() == 7
    monkeypatch.setenv("VAEZ_RANK_PATIENCE", "2.5")
    assert world.patience(7).total_seconds() == 2.5


@pytest.fixture
def heard() -> Iterator[None]:
    """Python's own handler of SIGINT, which is ignored if a shell starts the tests with &."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_command_ends_with_the_status_of_its_signal(
    name: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vaez_fast.cli.commands import theory

    before = signal.getsignal(signal.Signals[name])
    monkeypatch.setattr(theory, "run", lambda _: os.kill(os.getpid(), signal.Signals[name]))
    assert main(["theory"]) == status
    said = f"vaez-fast theory: stopped by {name}; what was finished is kept\n"
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    """nohup ignores SIGHUP like that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
def test_a_held_signal_waits_and_only_a_later_ctrl_c_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Signals() as signals:
        signals.hold()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)  # torchrun passes one request on as several signals
        assert signals.received == signal.SIGTERM
        now[0] += stopping.PATIENT_SECONDS + 0.1
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            signals.release()
        assert stopped.value.exit_status == 143


def test_what_an_inner_block_was_told_the_outer_need_not_be_told_again() -> None:
    with Signals() as outer:
        with pytest.raises(Stopped), Signals():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun passes on the terminal's signal
        assert outer.received == signal.SIGTERM


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_neither_hastens_nor_delays_checkpoints(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Keeping(tmp_path, seconds=60)
    wall, ticks = time.time(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: ticks)
    monkeypatch.setattr(time, "time", lambda: wall + jump)
    assert not keeping.due()
    ticks += 55.0
    assert not keeping.due()
    ticks += 5.0
    assert keeping.due()
    keeping.keep(Checkpoint({}, {}, 0, {}))
    ticks += 59.0
    assert not keeping.due()
    ticks += 2.0
    assert keeping.due()
