"""Steps alone and beside a busy process: who runs when, what a round is, and what rows say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.process import ROOT, environment
from bench.records.summary import Timed, tables
from bench.timing import sharing
from bench.timing.building import Built
from bench.timing.rows import Bench, Rival
from bench.timing.sharing import alone_and_beside, busy_process, shared_group
from tests.bench.timing.fake_benchmark import FakeBenchmark
from vaez_kernels.error_bounds import Check


class Machine:
    """Steps that take a second alone and three beside a busy process; only steps move its clock."""

    def __init__(self) -> None:
        self.now, self.busy = 0.0, False
        self.taken: list[tuple[str, bool, bool]] = []  # name, beside, whether it shares cores
        self.sharing = False

    def step(self, name: str) -> None:
        self.taken.append((name, self.busy, False))
        self.now += (3.0 if self.busy else 1.0) / 16

    def done(self) -> None:
        name, beside, _ = self.taken[-1]
        self.taken[-1] = name, beside, True

    def close(self) -> None:
        """As of `SharedCores`, for which this stands."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()

    class Busy:
        def __enter__(self) -> None:
            found.busy = True

        def __exit__(self, *_: object) -> None:
            found.busy = False

    monkeypatch.setattr(sharing, "busy_process", Busy)
    monkeypatch.setattr(sharing, "SharedCores", lambda: found)
    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_rounds_are_mean_seconds_of_a_step_first_alone_then_beside(machine: Machine) -> None:
    steps = {name: lambda name=name: machine.step(name) for name in ("a", "b")}
    times = alone_and_beside(steps, lambda name: name == "b", rounds=3)
    assert times["a"].alone == times["b"].alone == pytest.approx([1 / 16] * 3)
    assert times["a"].beside == times["b"].beside == pytest.approx([3 / 16] * 3)
    beside = [was_beside for _, was_beside, _ in machine.taken]
    assert beside == sorted(beside)  # False before True
    assert {(name, shares) for name, _, shares in machine.taken} == {("a", False), ("b", True)}


def test_the_first_of_a_round_alternates(machine: Machine) -> None:
    steps = {name: lambda name=name: machine.step(name) for name in ("a", "b")}
    alone_and_beside(steps, lambda _: False, rounds=2)
    alone = [name for name, was_beside, _ in machine.taken if not was_beside]
    turns = [name for i, name in enumerate(alone) if i == 0 or alone[i - 1] != name]
    assert turns == ["a", "b", "a"]  # the second round starts with b


def test_steps_before_a_round_do_not_count(machine: Machine) -> None:
    """Ten steps of the lead-in take a second each; code that adapts is fast afterwards."""

    def step() -> None:
        machine.now += 1.0 if len(machine.taken) < 1 else 0.125
        machine.taken.append(("a", machine.busy, False))

    assert alone_and_beside({"a": step}, lambda _: False, rounds=1)["a"].alone == [0.125]


def children() -> set[int]:
    of_process = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(child) for child in of_process.read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
class TestBusyProcess:
    def test_it_uses_a_core_during_the_block_and_ends_with_it(self) -> None:
        before = children()
        with busy_process():
            (child,) = children() - before
            stat = Path(f"/proc/{child}/stat")
            ticks = []
            for _ in range(2):
                ticks.append(sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])))
                time.sleep(0.5)
        assert ticks[1] - ticks[0] > 5  # of 50, in a half second
        assert children() == before

    def test_it_ends_with_the_process_that_started_it(self) -> None:
        command = (
            "import os, signal, time\n"
            "from bench.timing.sharing import busy_process\n"
            "with busy_process():\n"
            "    print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", command],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        process = Path(f"/proc/{int(done.stdout)}")
        end = time.monotonic() + 30
        while time.monotonic() < end and process.exists() and " Z " not in stat_of(process):
            time.sleep(0.05)
        assert not process.exists() or " Z " in stat_of(process)


def stat_of(process: Path) -> str:
    try:
        return (process / "stat").read_text()
    except OSError:
        return " Z "


@pytest.fixture
def rows(machine: Machine) -> list[Timed]:
    passed = Check(0.25, "the truth")
    built = Built(
        {
            "theirs": Rival(lambda: machine.step("theirs"), passed),
            "ours": Rival(lambda: machine.step("ours"), passed),
            "wrong": Rival(lambda: machine.step("wrong"), Check(2.0, "the truth")),
        }
    )
    group = shared_group("a step", built, "ours", quick=True)
    assert {(name, shares) for name, _, shares in machine.taken} == {
        ("theirs", False),
        ("ours", True),
    }
    bench = Bench(torch.device("cpu"), True, 1e9)
    found = []
    for provider in ("theirs", "ours"):
        benchmark = FakeBenchmark()
        bench.record(benchmark, group, provider)
        found.append((group.title, benchmark.extra_info, group.own_time(provider), 0.0))
    with pytest.raises(AssertionError, match="wrong: off by 2 times the tolerance"):
        bench.record(FakeBenchmark(), group, "wrong")
    return found


def test_a_row_has_both_times_and_their_ratio(
    rows: list[Timed],
) -> None:
    (table,) = tables(rows)
    names = [name for name, _ in table.columns]
    ours = dict(zip(names, table.rows[1], strict=True))
    assert ours["median"] == "187.50 ms"
    assert ours["alone"] == "62.50 ms"
    assert ours["× alone"] == "3.00"
