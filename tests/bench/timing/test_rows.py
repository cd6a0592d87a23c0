"""From rivals to rows: which rivals are timed, for how long, and every number of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from bench.timing import clock as measure
from bench.timing.clock import Times, Work, copy_bandwidth, interleave, peak_memory
from bench.timing.rows import Bench, Group, Rival
from tests.bench.timing.fake_benchmark import FakeBenchmark
from tests.bench.timing.fake_gpu import FakeGPU, gpu
from vaez_kernels.error_bounds import Check

__all__ = ["gpu"]  # a fixture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PASSED, FAILED = Check(0.25, "the truth"), Check(1.5, "the truth")


class FakeTime:
    """A stand-in for the module `time` that only works move, by the seconds that they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.waited = 0.0  # seconds that a thread waited for a core, since they were last read
        self.known = True  # whether the system counts them

    def perf_counter(self) -> float:
        return self.now

    def work(self, name: str, seconds: Iterable[float]) -> Work:
        """A work that takes the next of `seconds` at each call, and then always the last one."""
        pending = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += pending.pop(0) if len(pending) > 1 else pending[0]

        return run

    def disturbed(self, work: Work, calls: Iterable[int], waits: float = 1.0) -> Work:
        """`work`, but at its calls of these numbers, from 1 on, a thread waits for a core."""
        numbers = iter(range(1, 1_000_000))

        def run() -> None:
            work()
            if next(numbers) in calls:
                self.now += waits
                self.waited += waits

        return run

    def longest(self) -> float:
        waited, self.waited = self.waited, 0.0
        return waited

    def close(self) -> None:
        """As of `Waits`, for which this stands, too."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    time = FakeTime()
    monkeypatch.setattr(measure, "time", time)
    monkeypatch.setattr(measure, "Waits", lambda: time)
    return time


class TestInterleave:
    def test_the_first_three_calls_of_a_work_warm_it_up_and_are_not_timed(
        self, fake: FakeTime
    ) -> None:
        work = fake.work("cold", [90.0, 90.0, 90.0, 2.0])
        seconds = interleave({"cold": work}, CPU, budget=0.0)
        assert seconds["cold"].wall == [2.0] * 11

    @pytest.mark.parametrize(
        ("budget", "rounds"),
        [(0.0, 11), (40.0, 11), (80.0, 20), (120.0, 30), (1e6, 501)],
    )
    def test_rounds_fill_the_budget_from_11_to_501(
        self, fake: FakeTime, budget: float, rounds: int
    ) -> None:
        works = {"one": fake.work("one", [1.0]), "three": fake.work("three", [3.0])}
        seconds = interleave(works, CPU, budget)  # a round takes 4 s
        assert seconds["one"].wall == [1.0] * rounds
        assert seconds["three"].wall == [3.0] * rounds

    def test_the_fewest_rounds_can_be_said(self, fake: FakeTime) -> None:
        assert interleave({"a": fake.work("a", [9.0])}, CPU, 1.0, fewest=5)["a"].wall == [9.0] * 5

    def test_threads_of_another_library_settle_before_a_call_and_disturb_nothing(
        self, fake: FakeTime
    ) -> None:
        """Calls take 4 ms until threads of the other rival sleep, 10 ms after its last call."""
        switched: dict[str, Any] = {"at": 0.0, "to": ""}

        def work(name: str) -> Work:
            def run() -> None:
                if switched["to"] != name:
                    switched.update(at=fake.now, to=name)
                fake.now += 0.004 if fake.now < switched["at"] + 0.01 else 0.001
                fake.waited += 0.001

            return run

        works = {"a": work("a"), "b": work("b")}
        times = interleave(works, CPU, 0.0, foreign_threads=True)
        assert times["a"].wall + times["b"].wall == pytest.approx([0.001] * 22)
        assert times["a"].disturbed is None
        assert max(interleave(works, CPU, 0.0)["a"].wall) == pytest.approx(0.004)

    def test_seconds_go_to_the_work_that_took_them_in_the_order_they_were_taken(
        self, fake: FakeTime
    ) -> None:
        # Three calls warm up, and a fourth measures how long a round takes.
        first = [float(n) for n in range(4 + 11)]
        works = {"a": fake.work("a", first), "b": fake.work("b", [100.0])}
        times = interleave(works, CPU, 0.0)
        assert times["a"].wall == times["a"].of_the_device == first[4:]
        assert times["b"].wall == [100.0] * 11


class TestDisturbedCalls:
    """Three calls warm up, and a fourth measures how long a round takes; then rounds begin."""

    def test_a_disturbed_call_is_timed_again(self, fake: FakeTime) -> None:
        work = fake.disturbed(fake.work("a", [2.0]), calls=[7, 8, 12])
        times = interleave({"a": work}, CPU, 0.0)["a"]
        assert times == Times([2.0] * 11, disturbed=False)
        assert len(fake.calls) == 4 + 11 + 3

    def test_a_round_is_left_out_if_a_call_of_it_stayed_disturbed(self, fake: FakeTime) -> None:
        seconds = [float(n) for n in range(100)]
        works = {
            "a": fake.work("a", seconds),
            "b": fake.disturbed(fake.work("b", [1.0]), calls=[6, 7, 8]),
        }
        times = interleave(works, CPU, 4.0 * 20, fewest=5)
        # The second round's call of b was disturbed three times.
        assert times["a"].wall == [4.0, *seconds[6 : 6 + len(times["a"].wall) - 1]]
        assert times["b"].wall == [1.0] * len(times["a"].wall)
        assert times["a"].disturbed is False

    def test_with_too_few_undisturbed_rounds_all_are_kept_and_marked(self, fake: FakeTime) -> None:
        work = fake.disturbed(fake.work("a", [2.0]), calls=range(1, 10_000), waits=0.25)
        times = interleave({"a": work}, CPU, 0.0)["a"]
        assert times == Times([2.25] * 11, disturbed=True)

    def test_a_busy_machine_takes_at_most_twice_the_budget(self, fake: FakeTime) -> None:
        work = fake.disturbed(fake.work("a", [2.0]), calls=range(5, 10_000))
        began = fake.now
        interleave({"a": work}, CPU, budget=200.0)
        assert 300 < fake.now - began < 2 * 200 + 4 * 9

    @pytest.mark.parametrize("share", [0.045, 0.055])
    def test_a_wait_of_a_twentieth_of_a_call_disturbs_it(
        self, fake: FakeTime, share: float
    ) -> None:
        waits = 2.0 * share / (1 - share)
        work = fake.disturbed(fake.work("a", [2.0]), calls=range(1, 10_000), waits=waits)
        times = interleave({"a": work}, CPU, 0.0)["a"]
        assert times.disturbed is (share > 0.05)

    def test_nothing_is_said_where_the_system_does_not_count_waits(self, fake: FakeTime) -> None:
        fake.known = False
        assert interleave({"a": fake.work("a", [2.0])}, CPU, 0.0)["a"].disturbed is None


def test_peak_memory_on_a_gpu_is_what_is_allocated_on_top_of_what_was_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, most = 1_000, [9_999]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: most[-1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: most.append(held))
    assert peak_memory(lambda: most.append(max(most[-1], held + 300)), CUDA) == 300


@pytest.mark.parametrize(("quick", "size"), [(True, 64 << 20), (False, 256 << 20)])
def test_a_copy_counts_what_it_reads_and_what_it_writes(
    quick: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def timed(works: dict[str, Callable[[], Any]], *_: Any) -> dict[str, Times]:
        copied.append(works["copy"]().nbytes)
        return {"copy": Times([0.5, 2.0, 9.0])}  # the median is 2 s

    monkeypatch.setattr(measure, "interleave", timed)
    assert copy_bandwidth(CPU, quick) == size  # (size read + size written) / 2 s
    assert copied == [size]


def test_peak_memory_is_the_most_that_was_held_at_once() -> None:
    a = torch.ones(1 << 20)

    def work() -> None:
        (a + 1).sum()  # 4 MiB, freed at once
        (a[: 1 << 19] + 1).sum()  # 2 MiB

    peak = peak_memory(work, CPU)
    assert peak is not None
    assert 4 << 20 <= peak < 5 << 20


class TestMeasured:
    def group(self, fake: FakeTime, **seconds: float) -> Group:
        rivals = {name: Rival(fake.work(name, [s]), PASSED) for name, s in seconds.items()}
        return Group("a group", rivals, {}, floor_bytes=None)

    def test_a_rival_that_failed_its_check_is_never_called(self, fake: FakeTime) -> None:
        rivals = {
            "right": Rival(fake.work("right", [1.0]), PASSED),
            "wrong": Rival(fake.work("wrong", [0.001]), FAILED),
            "lost": Rival(fake.work("lost", [0.001]), Check(float("nan"), "the truth")),
        }
        group = Bench(CPU, False, 1e9).measured(0, lambda: Group("g", rivals, {}, None), 0.0)
        assert set(fake.calls) == {"right"}
        assert group.seconds == {"right": [1.0] * 11}

    def test_where_all_failed_nothing_is_timed(self, fake: FakeTime) -> None:
        rivals = {"wrong": Rival(fake.work("wrong", [1.0]), FAILED)}
        group = Bench(CPU, False, 1e9).measured(0, lambda: Group("g", rivals, {}, None), 9.0)
        assert (group.seconds, fake.calls) == ({}, [])

    @pytest.mark.parametrize("calls", [[], range(1, 10_000)])
    def test_a_group_records_whether_its_rounds_were_disturbed(
        self, fake: FakeTime, calls: Iterable[int]
    ) -> None:
        work = fake.disturbed(fake.work("a", [2.0]), calls)
        rivals = {"a": Rival(work, PASSED)}
        group = Bench(CPU, False, 1e9).measured(0, lambda: Group("g", rivals, {}, None), 0.0)
        assert group.load is not None
        assert group.load["disturbed"] is (calls != [])

    def test_an_error_of_exactly_the_tolerance_passes(self) -> None:
        assert Check(1.0, "the truth").passed
        assert not Check(1.0000001, "the truth").passed

    def test_times_are_those_of_one_of_a_works_calls(self, fake: FakeTime) -> None:
        group = self.group(fake, graph=8.0, step=3.0)
        group.rivals["graph"].calls = 32
        found = Bench(CPU, False, 1e9).measured(0, lambda: group, 0.0)
        assert found.seconds == {"graph": [0.25] * 11, "step": [3.0] * 11}

    def test_a_gpus_two_times_are_kept_apart(self, gpu: FakeGPU) -> None:
        def graph() -> None:  # of 32 calls
            gpu.launch(device=64e-6, host=320e-6)

        def waiting() -> None:
            gpu.launch(device=500e-6)
            gpu.wait()

        rivals = {
            "eager": Rival(lambda: gpu.launch(device=3e-6, host=50e-6), PASSED),
            "graph": Rival(graph, PASSED, calls=32),
            "waiting": Rival(waiting, PASSED),
        }
        group = Bench(CUDA, False, 1e9).measured(0, lambda: Group("g", rivals, {}, None), 0.0)
        assert group.device_seconds == {
            "eager": pytest.approx([3e-6] * 11),
            "graph": pytest.approx([2e-6] * 11),
        }
        # A loop of 5 ms ends with the last call's time on the GPU, 64 µs, which is 1.3 % of it.
        assert group.seconds == {
            "eager": pytest.approx([50e-6] * 11, rel=0.02),
            "graph": pytest.approx([10e-6] * 11, rel=0.02),
            "waiting": pytest.approx([507e-6] * 11, rel=0.02),
        }

    @pytest.mark.parametrize(("quick", "rounds"), [(False, 90), (True, 30)])
    def test_a_quick_run_takes_a_third_of_the_budget(
        self, fake: FakeTime, quick: bool, rounds: int
    ) -> None:
        group = Bench(CPU, quick, 1e9).measured(0, lambda: self.group(fake, a=1.0), 90.0)
        assert len(group.seconds["a"]) == rounds

    @pytest.mark.parametrize(("quick", "rounds"), [(False, 11), (True, 3)])
    def test_a_quick_run_takes_three_rounds_at_least_and_a_full_one_eleven(
        self, fake: FakeTime, quick: bool, rounds: int
    ) -> None:
        group = Bench(CPU, quick, 1e9).measured(0, lambda: self.group(fake, a=99.0), 1.0)
        assert len(group.seconds["a"]) == rounds

    def test_a_group_is_made_and_timed_once_for_all_its_rows(self, fake: FakeTime) -> None:
        bench = Bench(CPU, False, 1e9)
        made: list[Group] = []

        def make() -> Group:
            made.append(self.group(fake, a=1.0))
            return made[-1]

        one = bench.measured("one", make, 0.0)
        calls = len(fake.calls)
        assert bench.measured("one", make, 0.0) is one
        assert len(fake.calls) == calls
        other = bench.measured("other", make, 0.0)
        assert made == [one, other]
        assert other is not one


class TestRecord:
    SECONDS = (0.25, 0.75, 1.0, 1.0, 8.0)  # a median of 1, a mean of 2.2

    def recorded(
        self, floor_bytes: int | None = 3_000_000_000, copy: float = 12e9, **changes: Any
    ) -> FakeBenchmark:
        work: Callable[[], object] = lambda: torch.ones(1 << 18) + 1  # noqa: E731
        rival = Rival(work, PASSED, {"samples": 7}, moved_bytes=4_500)
        for name, value in changes.items():
            setattr(rival, name, value)
        rivals = {"eager": Rival(work, PASSED), "ours": rival, "products": Rival(work, PASSED)}
        group = Group("a group", rivals, {}, floor_bytes, products={"ours": "products"})
        group.load = {"others": 0.5}
        group.seconds = {
            "eager": [50.0] * 5,
            "ours": list(self.SECONDS),
            "products": [0.4, 0.5, 9.0],
        }
        benchmark = FakeBenchmark()
        Bench(CPU, False, copy).record(benchmark, group, "ours")
        return benchmark

    def test_every_number_of_a_row_is_of_its_own_rounds(self) -> None:
        benchmark = self.recorded()
        assert benchmark.group == "a group"
        assert benchmark.seconds == pytest.approx(self.SECONDS)
        info = benchmark.extra_info
        # A float32 tensor of 2^18 and its sum with one: 1 MiB each.
        assert 2 << 20 <= info.pop("peak_memory_bytes") < 3 << 20
        assert info == {
            "provider": "ours",
            "timing": "wall clock",
            "device": "cpu",
            "check": "passed",
            "check_error_over_tolerance": 0.25,
            "check_against": "the truth",
            "moved_bytes": 4_500,
            "load": {"others": 0.5},
            "samples": 7,
            "step_over_products": pytest.approx(2.0),  # medians: 1 s over 0.5 s
            "floor_bytes": 3_000_000_000,
            "gb_per_second": pytest.approx(3.0),  # GB are 10^9 bytes
            "copy_gb_per_second": pytest.approx(12.0),
            "percent_of_copy": pytest.approx(25.0),
        }

    def on_a_gpu(self, monkeypatch: pytest.MonkeyPatch, provider: str) -> FakeBenchmark:
        monkeypatch.setattr("bench.timing.rows.peak_memory", lambda *_: 4096)
        work: Callable[[], object] = lambda: None  # noqa: E731
        rivals = {name: Rival(work, PASSED) for name in ("eager", "ours", "products")}
        group = Group("g", rivals, {}, 3_000_000_000, products={"ours": "products"})
        group.seconds = {"eager": [50.0, 60.0], "ours": [5.0, 6.0, 7.0], "products": [9.0]}
        group.device_seconds = {"ours": [0.5, 1.0, 4.0], "products": [0.5]}
        benchmark = FakeBenchmark()
        Bench(CUDA, False, 12e9).record(benchmark, group, provider)
        return benchmark

    def test_a_gpus_row_has_the_callers_time_and_its_speeds_are_the_gpus(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        benchmark = self.on_a_gpu(monkeypatch, "ours")
        assert benchmark.seconds == pytest.approx([5.0, 6.0, 7.0])
        info = benchmark.extra_info
        assert info["device_seconds"] == [0.5, 1.0, 4.0]
        assert info["device"] == "cuda"
        assert "back to back" in info["timing"]
        assert "cold L2" in info["timing"]
        assert info["gb_per_second"] == pytest.approx(3.0)  # the median is 1 s
        assert info["percent_of_copy"] == pytest.approx(25.0)
        assert info["step_over_products"] == pytest.approx(2.0)

    def test_a_gpus_row_without_a_device_time_says_so_and_has_the_callers_speed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        benchmark = self.on_a_gpu(monkeypatch, "eager")
        assert benchmark.seconds == pytest.approx([50.0, 60.0])
        assert benchmark.extra_info["device_seconds"] is None
        assert benchmark.extra_info["gb_per_second"] == pytest.approx(3 / 55)

    def test_without_a_floor_there_is_no_speed_in_bytes(self) -> None:
        info = self.recorded(floor_bytes=None).extra_info
        names = ("floor_bytes", "gb_per_second", "percent_of_copy")
        assert [info[name] for name in names] == [None] * 3
        assert "copy_gb_per_second" not in info

    def test_a_replayed_graph_has_no_memory_of_its_own(self) -> None:
        assert self.recorded(own_memory=False).extra_info["peak_memory_bytes"] is None

    def test_a_row_that_was_timed_elsewhere_says_how(self) -> None:
        group = Group("g", {"arm": Rival(None, PASSED)}, {}, None, timing="another clock")
        group.seconds = {"arm": [2.0]}
        benchmark = FakeBenchmark()
        Bench(CPU, False, 1e9).record(benchmark, group, "arm")
        assert benchmark.extra_info["timing"] == "another clock"
        assert benchmark.extra_info["peak_memory_bytes"] is None
        assert "step_over_products" not in benchmark.extra_info
        assert benchmark.seconds == [2.0]

    def test_without_products_that_passed_there_is_no_ratio_to_them(self) -> None:
        group = Group("g", {"a": Rival(None, PASSED)}, {}, None, products={"a": "products"})
        group.seconds = {"a": [2.0], "b": [1.0]}
        benchmark = FakeBenchmark()
        Bench(CPU, False, 1e9).record(benchmark, group, "a")
        assert "step_over_products" not in benchmark.extra_info

    def test_a_row_that_failed_its_check_fails_and_records_no_time(self) -> None:
        group = Group("g", {"wrong": Rival(None, FAILED)}, {}, None)
        group.seconds = {"wrong": [1.0]}
        benchmark = FakeBenchmark()
        with pytest.raises(AssertionError, match=r"off by 1\.5 times the tolerance"):
            Bench(CPU, False, 1e9).record(benchmark, group, "wrong")
        assert (benchmark.seconds, benchmark.extra_info) == ([], {})

    def test_a_row_that_is_not_here_is_skipped_with_its_reason(self) -> None:
        group = Group("g", {}, {"triton": "needs a GPU"}, None)
        with pytest.raises(pytest.skip.Exception, match="triton: needs a GPU"):
            Bench(CPU, False, 1e9).record(FakeBenchmark(), group, "triton")
