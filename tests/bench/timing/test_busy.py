"""Rows that were timed on a busy machine are reported; an idle machine raises no alarm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.records import compare, report, summary
from bench.records.records import RecordError, read
from bench.timing.busy import Reading, Watch, busy_line, disturbed, processor_times, reading
from bench.timing.rows import Bench, Group, Rival
from tests.bench.suite_record import content, write
from vaez_kernels.error_bounds import Check

CORES = 2
GROUPS = {"an op, 8 × 128": {"eager": 2e-3, "fallback": 1e-3}}


def load(
    *,
    seconds: float = 1.0,
    own: float = 1.0,
    threads: float = 2.0,
    others: float | None = 0.0,
    average: float | None = 3.14,
    stolen: float | None = 0.0,
    too_few: bool | None = None,
) -> dict[str, Any]:
    """What a watch records in `seconds`, while other processes use `others` processors.

    `own` is the processors that the timing thread uses, `threads` those of all our threads, and
    `stolen` those of `others` that are other virtual machines'. `too_few` says that too few rounds
    were undisturbed.
    """
    machine = None if others is None else 100.0
    later = None if others is None else 100.0 + seconds * (threads + others)
    before, after = (None, None) if stolen is None else (50.0, 50.0 + seconds * stolen)
    clocks = iter(
        [
            Reading(10.0, 5.0, 7.0, machine, before, 0.0),
            Reading(
                10.0 + seconds, 5.0 + seconds * own, 7.0 + seconds * threads, later, after, average
            ),
        ]
    )
    return Watch(lambda: next(clocks), CORES).record(too_few)


def test_a_record_has_the_shares_of_the_time_between_its_readings() -> None:
    found = load(seconds=4.0, own=0.75, threads=1.25, others=0.5, stolen=0.3, too_few=True)
    assert found.pop("ended") == pytest.approx(time.time(), abs=60)
    assert found.pop("disturbed") is True
    assert found == pytest.approx(
        {
            "seconds": 4.0,
            "own": 0.75,
            "others": 0.25,
            "stolen": 0.15,
            "load_average": 3.14,
            "processors": CORES,
        }
    )


def test_rounds_decide_where_the_system_tells_which_were_disturbed() -> None:
    # A process on a core that no row used takes half of the machine and disturbs nothing.
    assert not disturbed(load(others=1.0, too_few=False))
    assert disturbed(load(others=0.0, too_few=True))


@pytest.mark.parametrize("share", [0.09, 0.12, None])
def test_time_that_other_virtual_machines_take_disturbs_any_round(share: float | None) -> None:
    stolen = None if share is None else CORES * share
    found = load(seconds=10.0, others=0.3, stolen=stolen, too_few=False)
    assert disturbed(found) == (share == 0.12)


def test_one_process_beside_two_threads_is_noticed() -> None:
    # Measured on two cores: a busy loop takes a third of them.
    assert disturbed(load(own=0.67, threads=1.35, others=0.65))


@pytest.mark.parametrize("threads", [1.0, 1.74, 2.0])  # one; two that sleep; two that spin
def test_our_own_threads_are_no_others(threads: float) -> None:
    idle = CORES - threads
    assert not disturbed(load(own=threads / 2, threads=threads, others=min(0.1, idle)))


@pytest.mark.parametrize("share", [0.09, 0.12])
def test_the_share_of_others_decides_at_a_tenth_where_the_system_tells_it(share: float) -> None:
    for own in (0.5, 1.0):
        found = load(seconds=10.0, own=own, threads=1.5, others=CORES * share)
        assert disturbed(found) == disturbed(found, "cuda") == (share > 0.1)


@pytest.mark.parametrize("own", [0.87, 0.68])
def test_elsewhere_the_timing_thread_decides(own: float) -> None:
    # Both were measured: 0.87 with sleeping waits on an idle machine, 0.68 beside one process.
    found = load(own=own, others=None)
    assert found["others"] is None
    assert disturbed(found) == (own < 0.78)
    assert not disturbed(found, "cuda")  # there the thread waits for the device


def test_a_tick_of_a_short_measurement_is_no_sign() -> None:
    tick = 0.01 / CORES
    assert not disturbed(load(seconds=0.02, others=2 * tick / 0.02 * CORES / 2))
    assert not disturbed(load(seconds=0.02, own=0.5, others=None))
    assert disturbed(load(seconds=0.2, others=0.65))


def test_ticks_that_fall_behind_are_no_negative_share() -> None:
    assert load(threads=2.0, others=-0.05)["others"] == 0.0


class TestLine:
    busy = load(own=0.67, threads=1.35, others=0.74)
    busier = load(own=0.5, threads=1.0, others=1.0, average=4.0)

    def test_it_names_the_worst_share_the_rows_and_the_load(self) -> None:
        rows = [{"device": "cpu", "load": one} for one in (load(), self.busy, self.busier, None)]
        assert busy_line(rows) == (
            "The machine was busy: other processes took up to 50% of its processors while rows were"
            " timed (2 of 4 rows; load 4.0 on 2); their medians may be several times too high."
        )

    def test_it_names_the_timing_thread_where_others_are_unknown(self) -> None:
        slow = [load(own=own, others=None, average=None) for own in (0.6, 0.4)]
        line = busy_line({"device": "cpu", "load": one} for one in slow)
        assert line is not None
        assert "the timing thread had a processor for as little as 40% of the time" in line
        assert "(2 of 2 rows)" in line

    def test_an_idle_machine_and_a_file_without_the_numbers_have_none(self) -> None:
        assert busy_line([{"device": "cpu", "load": load()}]) is None
        assert busy_line([{"device": "cpu"}, {}]) is None

    def test_a_gpu_is_told_by_its_device(self) -> None:
        waits = load(own=0.1, others=None)
        assert busy_line([{"device": "cuda", "load": waits}]) is None
        assert busy_line([{"device": "cpu", "load": waits}]) is not None


def run_of(load_of_rows: dict[str, Any] | None) -> dict[str, Any]:
    run = content(GROUPS, 1)
    for benchmark in run["benchmarks"]:
        if load_of_rows is not None:
            benchmark["extra_info"]["load"] = load_of_rows
    return run


@pytest.mark.parametrize("state", ["busy", "idle", "unknown"])
def test_tables_report_and_comparison_say_it_from_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    loads = {"busy": TestLine.busy, "idle": load(), "unknown": None}
    file = write(tmp_path / "bench.json", run_of(loads[state]))
    assert summary.main([str(file)]) == 0
    tables = capsys.readouterr().out
    assert report.main([str(file), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    calm = write(tmp_path / "calm.json", run_of(load()))
    compare.main([str(calm), str(file)])
    compared = capsys.readouterr().out
    said = "The machine was busy: other processes took up to 37% of its processors"
    for text in (tables, page, compared):
        assert (said in text) == (state == "busy")
    assert (f"NEW  {said}" in compared) == (state == "busy")
    assert tables.strip().endswith("too high.") == (state == "busy")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("others", "much"), ("own", None), ("processors", -2)),
        *(("stolen", "some"), ("disturbed", "no")),
    ],
)
def test_a_file_with_other_numbers_is_refused(tmp_path: Path, name: str, value: object) -> None:
    file = write(tmp_path / "bench.json", run_of(load() | {name: value}))
    with pytest.raises(RecordError, match="not a run of this suite"):
        read(file)


@pytest.fixture
def rival() -> Rival:
    return Rival(lambda: torch.ones(1000).exp_(), Check(0.1, "truth"))


@pytest.mark.parametrize("quick", [True, False])
def test_a_group_records_the_machine_while_it_is_timed_and_takes_rounds_enough(
    rival: Rival, quick: bool
) -> None:
    # Longer than reading the clocks takes, so that a watch around no rounds would show.
    rival.work = lambda: time.sleep(0.003)
    bench = Bench(torch.device("cpu"), quick, 1e9)
    group = bench.measured(0, lambda: Group("group", {"eager": rival}, {}, 64), budget=0.0)
    assert group.load is not None
    assert 0 < sum(group.seconds["eager"]) <= group.load["seconds"] < 60
    assert len(group.seconds["eager"]) == (3 if quick else 11)
    json.dumps(group.load, allow_nan=False)


def test_clocks_of_this_process_move_with_its_work() -> None:
    before = reading()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = reading()
    assert after.wall > before.wall
    assert after.process - before.process >= 0.1
    assert 0 < after.thread - before.thread <= after.process - before.process + 0.01


def stat(path: Path, busy: int, idle: int) -> Path:
    # user nice system idle iowait irq softirq steal guest guest_nice, in ticks
    usable = next(iter(os.sched_getaffinity(0)))
    row = f"{busy} 10 100 {idle} 5000 3 4 50 {busy} 0"
    path.write_text(f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu{usable} {row}\ncpu99999 {row}\nintr 1 2\n")
    return path


@pytest.fixture
def ticks() -> float:
    return float(os.sysconf("SC_CLK_TCK"))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
class TestMachineTime:
    def test_it_is_all_but_idle_of_the_processors_that_we_may_use(
        self, tmp_path: Path, ticks: float
    ) -> None:
        # Waiting for a disk counts as idle. Time stolen by another virtual machine does not. Time
        # of a guest is already part of the user time.
        busy, stolen = processor_times(stat(tmp_path / "stat", 1000, 70_000))
        assert busy == pytest.approx((1000 + 10 + 100 + 3 + 4 + 50) / ticks)
        assert stolen == pytest.approx(50 / ticks)

    def test_it_is_unknown_without_the_file_and_where_a_sandbox_shows_zeros(
        self, tmp_path: Path
    ) -> None:
        assert processor_times(tmp_path / "none") == (None, None)
        usable = next(iter(os.sched_getaffinity(0)))
        (tmp_path / "zeros").write_text(f"cpu{usable} 0 0 0 0 0 0 0 0 0 0\n")
        assert processor_times(tmp_path / "zeros") == (None, None)
        (tmp_path / "words").write_text(f"cpu{usable} a b c d e f g h\n")
        assert processor_times(tmp_path / "words") == (None, None)
