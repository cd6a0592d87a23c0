"""The soak: growth of memory, the moments of the kills, and what a resumed run must reproduce."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.soak import kills
from bench.soak import run as soak
from bench.soak.kills import Killed, killed, outcome, undisturbed
from tests.system.fake_run import make_run
from vaez_fast.drawing.page import markdown
from vaez_fast.model import VAE
from vaez_fast.training import checkpoint
from vaez_fast.training.checkpoint import Checkpoint


def rising(before: float, after: float, settled: int = 2_000) -> Callable[[int], float]:
    """Resident MiB by step: 500, then one slope until it settles and another one after that."""
    return lambda step: 500 + before * min(step, settled) + after * max(0, step - settled)


class TestMemory:
    def measured(
        self, mib: Callable[[int], float], steps: int, folder: Path, patch: pytest.MonkeyPatch
    ) -> dict[str, Any]:
        """What `soak.memory` records of a stub training with this memory."""
        at = [0]

        def train(
            config: Any, _: Any, *, observe: Any, observe_at: Iterable[int], keeping: Any, **__: Any
        ) -> Any:
            assert config.steps == steps
            assert keeping.folder == folder
            for step in observe_at:
                at[0] = step
                observe("vae", step, VAE("lyeoni"))
            return SimpleNamespace(train_seconds=12.0)

        patch.setattr(soak, "train", train)
        patch.setattr(soak, "load", lambda _: None)
        patch.setattr(soak, "resident_mib", lambda: mib(at[0]))
        return soak.memory(steps, folder)

    def test_growth_is_counted_from_where_memory_settles_to_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.measured(rising(0.05, 0.001), 10_000, tmp_path, monkeypatch)
        assert found["settled_after"] == 2_000
        assert found["growth_mib"] == pytest.approx(0.001 * 8_000)
        assert [step for step, _ in found["points"]] == list(range(100, 10_001, 100))
        assert found["points"][0] == (100, pytest.approx(505.0))
        assert found["train_seconds"] == 12.0

    def test_a_short_run_settles_in_its_first_half(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.measured(rising(0.05, 0.002, 1_000), 2_000, tmp_path, monkeypatch)
        assert found["settled_after"] == 1_000
        assert found["growth_mib"] == pytest.approx(0.002 * 1_000)

    def test_what_is_freed_again_is_no_growth(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.measured(rising(0.05, -0.001), 10_000, tmp_path, monkeypatch)
        assert found["growth_mib"] == pytest.approx(-8.0)

    def test_resident_memory_sees_what_is_allocated(self) -> None:
        before = soak.resident_mib()
        # mmap takes new memory; a tensor could reuse memory that an earlier test freed.
        with mmap.mmap(-1, 64 << 20) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            assert 60 < soak.resident_mib() - before < 80


def story(step: int | None = 90, *, identical: bool = True, whole: bool = False) -> dict[str, Any]:
    return {"seconds": [3.25], "steps": [step], "whole": [whole], "identical": identical}


def record(growth: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    memory = {
        "config": {"model": "altosaar", "data": "mnist-5k", "batch_size": 128},
        "steps": 20_000, "train_seconds": 60.0, "points": [(100, 500.0), (20_000, 501.0)],
        "settled_after": 2_000, "growth_mib": growth,
    }  # fmt: skip
    machine = {"device": "a CPU", "torch": "2.11", "python": "3.11"}
    return {"date": "2026-01-02", "environment": machine, "memory": memory, "kills": runs}


@pytest.mark.parametrize(
    ("growth", "runs", "passes"),
    [
        (0.5, [story(), story(), story(None)], True),
        (-20.0, [story()], True),
        (7.99, [story()], True),
        (8.0, [story()], False),
        (0.5, [story(), story(identical=False), story()], False),
        (
            0.5,
            [story(), story(None)],
            False,
        ),  # half of the runs did not resume: too many
        (0.5, [story(0), story(0), story(None)], True),
    ],
)
def test_a_soak_passes_if_memory_is_flat_and_resumed_runs_are_identical(
    growth: float,
    runs: list[dict[str, Any]],
    passes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = record(growth, runs)
    assert soak.passed(whole) == passes
    asked: dict[str, int] = {}
    monkeypatch.setattr(soak, "memory", lambda n, _: asked.update(steps=n) or whole["memory"])
    monkeypatch.setattr(soak, "kills", lambda n, _: asked.update(kills=n) or runs)
    monkeypatch.setattr(soak, "environment", lambda: whole["environment"])
    monkeypatch.setattr("sys.argv", ["soak", "--out", str(tmp_path), "--steps", "3000"])
    assert soak.main() == (0 if passes else 1)
    assert asked == {"steps": 3_000, "kills": 20}
    held = json.loads((tmp_path / "results.json").read_text())
    assert held["kills"] == runs
    assert f"rises by {growth:+.2f} MiB in all; 8 would fail" in capsys.readouterr().out


def test_the_page_tells_each_kill() -> None:
    runs = [story(1200), story(None), story(1500, whole=True), story(7, identical=False)]
    text = markdown(list(soak.page(record(0.5, runs))))
    assert "3 of 4 runs, each killed with SIGKILL and resumed" in text
    assert "| 0 | 3.2 s | 1,200 | yes |" in text
    assert "| 1 | 3.2 s | none | yes |" in text
    assert "| 2 | 3.2 s | whole | yes |" in text
    assert "| 3 | 3.2 s | 7 | **no** |" in text


def test_each_of_the_soaks_runs_is_killed_once_and_held_to_the_second_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first undisturbed run compiles and is slower, so the second one is the reference."""
    seconds = {tmp_path / "compiling": 99.0, tmp_path / "undisturbed": 8.0}
    calls: list[tuple[Any, ...]] = []

    def fake(settings: Any, out: Path, whole: Path, *rest: Any) -> Killed:
        calls.append((out.name, whole.name, *rest[:2], rest[2].random()))
        return Killed([1.0], [5], [False], True)

    monkeypatch.setattr(soak, "undisturbed", lambda _, out: seconds.pop(out))
    monkeypatch.setattr(soak, "killed", fake)
    assert len(soak.kills(3, tmp_path)) == 3
    draws = random.Random(0)
    assert calls == [
        (f"killed-{number}", "undisturbed", 8.0, 1, draws.random()) for number in range(3)
    ]


class FakeMachine:
    """A stand-in for `time` and `subprocess`.

    Each process writes a checkpoint 5 s after its start and ends after 20 s. Its checkpoint is at
    step 500, a step in 0.01 s, plus 1,000 for each process so far.
    """

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self, out: Path) -> None:
        self.out, self.now = out, 0.0
        self.started, self.alive = 0.0, False
        self.commands: list[list[str]] = []
        self.signals: list[tuple[float, int]] = []  # (seconds after the start, number)
        self.status = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        before, self.now = self.now - self.started, self.now + seconds
        age = self.now - self.started
        path = self.out / checkpoint.NAME
        if self.alive and before < 5.0 - 1e-9 <= age:
            training = {"done": len(self.commands) * 1000 + 500}
            checkpoint.write(path, Checkpoint({}, {}, 0, {}, training))
            os.utime(path, ns=(0, 10**9 * len(self.commands)))
        if self.alive and age >= 20.0:
            self.alive = False
            (self.out / "metrics.json").write_text("{}")

    def Popen(self, command: list[str], **_: Any) -> FakeMachine:
        self.commands.append(command)
        self.started, self.alive = self.now, True
        self.out.mkdir(exist_ok=True)
        (self.out / "config.json").write_text("{}")
        return self

    def poll(self) -> int | None:
        return None if self.alive else 0

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None:
            assert not self.alive
            return 0
        left = self.started + 20.0 - self.now
        self.pass_time(min(timeout, left))
        if self.alive:
            raise subprocess.TimeoutExpired("", timeout)
        return 0

    def send_signal(self, which: int) -> None:
        self.signals.append((self.now - self.started, which))
        self.alive = False

    def run(self, command: list[str], **_: Any) -> Any:
        self.commands.append(command)
        (self.out / "metrics.json").write_text('{"speed": {"train_seconds": 12.5}}')
        return SimpleNamespace(returncode=self.status, stderr="it broke")


class Draws(random.Random):
    """Draws the given values, and records the bounds of each draw."""

    def __init__(self, *values: float) -> None:
        super().__init__(0)
        self.values, self.between = list(values), list[tuple[float, float]]()

    def uniform(self, a: float, b: float) -> float:
        self.between.append((a, b))
        return self.values.pop(0)


class TestKills:
    SETTINGS = ("--steps", "9")

    @pytest.fixture
    def machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
        machine = FakeMachine(tmp_path / "run")
        monkeypatch.setattr(kills, "time", machine)
        monkeypatch.setattr(kills, "subprocess", machine)
        monkeypatch.setattr(kills, "outcome", lambda folder: folder.name[0])
        return machine

    def test_every_other_kill_comes_after_a_checkpoint_of_its_own_process(
        self, machine: FakeMachine
    ) -> None:
        draw = Draws(1.5, 2.0, 0.5, 4.0)
        found = killed(self.SETTINGS, machine.out, Path("whole"), 15.0, 4, draw)
        # The checkpoint is polled every 0.02 s.
        assert found.seconds == pytest.approx([5.0 + 1.5, 2.0, 5.0 + 0.5, 4.0], abs=0.03)
        assert draw.between == [(0.0, 15.0)] * 4
        assert machine.signals == [(seconds, signal.SIGKILL) for seconds in found.seconds]
        # The second and the fourth process die before their own first checkpoint, so the checkpoint
        # of the process before is still there.
        assert found.steps == [1500, 1500, 3500, 3500]
        assert found.whole == [False] * 4

    def test_a_run_that_began_is_resumed_after_each_kill_and_lives_to_its_end(
        self, machine: FakeMachine
    ) -> None:
        killed(self.SETTINGS, machine.out, Path("whole"), 15.0, 2, Draws(1.0, 1.0))
        arguments = [command[command.index("train") + 1 :] for command in machine.commands]
        again = ["--resume", str(machine.out)]
        assert arguments == [[*self.SETTINGS, "--out", str(machine.out)], again, again]

    def test_a_moment_after_the_end_finds_a_whole_run_and_kills_nothing(
        self, machine: FakeMachine
    ) -> None:
        found = killed(self.SETTINGS, machine.out, Path("whole"), 99.0, 1, Draws(50.0))
        assert machine.signals == []
        assert found.whole == [True]
        assert found.seconds == pytest.approx([20.0])

    def test_before_the_first_checkpoint_there_is_no_step(self, machine: FakeMachine) -> None:
        draw = Draws(99.0, 1.0)
        machine.out.mkdir()
        assert killed(self.SETTINGS, machine.out, Path("whole"), 9.0, 1, draw).steps == [1500]
        for file in machine.out.iterdir():
            file.unlink()
        machine.commands.clear()

        def ended(command: list[str], **_: Any) -> FakeMachine:
            machine.commands.append(command)
            return machine  # it ends at once, before it writes anything

        machine.Popen = ended  # type: ignore[method-assign]
        assert killed(self.SETTINGS, machine.out, Path("w"), 9.0, 1, draw).steps == [None]

    @pytest.mark.parametrize(("whole", "identical"), [("right", True), ("wrong", False)])
    def test_the_end_is_held_to_the_undisturbed_run(
        self, whole: str, identical: bool, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcomes = {"run": {"loss": 1.0}, "right": {"loss": 1.0}, "wrong": {"loss": 2.0}}
        monkeypatch.setattr(kills, "outcome", lambda folder: outcomes[folder.name])
        found = killed(self.SETTINGS, machine.out, Path(whole), 15.0, 1, Draws(1.0))
        assert found.identical == identical

    def test_a_run_that_does_not_go_on_is_an_error(self, machine: FakeMachine) -> None:
        machine.status = 1
        with pytest.raises(RuntimeError, match="does not go on: it broke"):
            killed(self.SETTINGS, machine.out, Path("whole"), 15.0, 1, Draws(1.0))

    def test_an_undisturbed_run_tells_for_how_long_it_trained(self, machine: FakeMachine) -> None:
        machine.out.mkdir()
        assert undisturbed(self.SETTINGS, machine.out) == 12.5


class TestOutcome:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> tuple[Path, Path]:
        return make_run(tmp_path / "one"), make_run(tmp_path / "other")

    def change(self, out: Path, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads((out / "metrics.json").read_text())
        change(content)
        (out / "metrics.json").write_text(json.dumps(content))

    def test_when_and_where_a_run_was_made_is_no_part_of_it(self, runs: tuple[Path, Path]) -> None:
        def later(content: dict[str, Any]) -> None:
            content["curve"][0]["seconds"] += 9.0
            content["speed"]["train_seconds"] += 9.0
            content["config"]["data_root"] = "elsewhere"

        self.change(runs[1], later)
        assert outcome(runs[0]) == outcome(runs[1])

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c["test"].update(elbo=c["test"]["elbo"] + 1e-9),
            lambda c: c["curve"][1].update(rate=c["curve"][1]["rate"] + 1e-9),
            lambda c: c["curve"].pop(),
            lambda c: c.update(best_step=20),
            lambda c: c["config"].update(seed=5),
        ],
    )
    def test_every_number_that_it_found_is(
        self, runs: tuple[Path, Path], change: Callable[[dict[str, Any]], None]
    ) -> None:
        self.change(runs[1], change)
        assert outcome(runs[0]) != outcome(runs[1])

    def test_every_bit_of_its_weights_is(self, runs: tuple[Path, Path]) -> None:
        path = runs[1] / checkpoint.NAME
        kept = checkpoint.read(path)
        bias = kept.model["decoder.0.bias"]
        bias[-1] = torch.nextafter(bias[-1], torch.tensor(9.0))
        checkpoint.write(path, kept)
        assert outcome(runs[0]) != outcome(runs[1])
