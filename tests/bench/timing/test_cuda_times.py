"""Wall time and device time of a call, on a fake GPU with known clocks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.timing.clock import Times, Work, copy_bandwidth, interleave
from bench.timing.cuda_times import FLUSH_BYTES, LOOP_SECONDS
from tests.bench.timing.fake_gpu import LAUNCH, FakeGPU, gpu

__all__ = ["gpu"]  # a fixture

CUDA = torch.device("cuda")
# The first launch and the last kernel of a loop overlap with nothing: this share of LOOP_SECONDS.
EDGES = 0.01


def launches(gpu: FakeGPU, count: int, device: float) -> Work:
    def work() -> None:
        gpu.log.append("work")
        for _ in range(count):
            gpu.launch(device)

    return work


def times_of(work: Work) -> Times:
    return interleave({"work": work}, CUDA, budget=0.0)["work"]


@pytest.mark.parametrize("count", [1, 41, 400])
def test_where_launches_cost_more_than_kernels_both_times_are_told(
    gpu: FakeGPU, count: int
) -> None:
    times = times_of(launches(gpu, count, device=2e-6))
    assert times.device == pytest.approx([count * 2e-6] * 11, rel=1e-6)
    assert times.wall == pytest.approx([count * LAUNCH] * 11, rel=EDGES)


def test_where_kernels_take_longer_the_caller_waits_for_them(gpu: FakeGPU) -> None:
    times = times_of(launches(gpu, 4, device=100e-6))
    assert times.device == pytest.approx([400e-6] * 11, rel=1e-6)
    assert times.wall == pytest.approx([400e-6] * 11, rel=EDGES)


def test_a_call_longer_than_a_loop_is_timed_by_itself(gpu: FakeGPU) -> None:
    times = times_of(launches(gpu, 2, device=LOOP_SECONDS))
    assert times.device == pytest.approx([2 * LOOP_SECONDS] * 11, rel=1e-6)
    assert times.wall == pytest.approx([2 * LOOP_SECONDS] * 11, rel=EDGES)


def test_when_the_host_is_held_up_the_gpu_is_not_said_to_have_worked(gpu: FakeGPU) -> None:
    # Like a garbage collection or another process: 4 ms in every ninth call, between two launches.
    calls: list[None] = []

    def work() -> None:
        gpu.launch(3e-6)
        calls.append(None)
        gpu.host += 4e-3 * (len(calls) % 9 == 0)
        gpu.launch(3e-6)

    times = times_of(work)
    assert times.device == pytest.approx([6e-6] * 11, rel=1e-6)
    assert min(times.wall) > 100e-6


def test_a_host_that_is_held_up_while_calls_are_counted_costs_no_later_round(gpu: FakeGPU) -> None:
    calls: list[None] = []

    def work() -> None:
        calls.append(None)
        gpu.host += 10e-3 * (len(calls) == 4)  # after the warm-up calls
        gpu.launch(2e-6)

    # One call took longer than a whole loop. If calls were therefore timed one by one, each would
    # seem to take its launch, the kernel and the wait.
    assert times_of(work).wall == pytest.approx([LAUNCH] * 11, rel=EDGES)


def test_work_that_waits_for_the_gpu_has_no_device_time(gpu: FakeGPU) -> None:
    def work() -> None:
        gpu.launch(30e-6)
        gpu.wait()
        gpu.host += 100e-6
        gpu.launch(30e-6)

    times = times_of(work)
    assert times.device is None
    assert times.of_the_device is times.wall
    # The host waits for the last kernel of a call, then for the first one of the next call.
    call = LAUNCH + 30e-6 + 100e-6 + LAUNCH + (30e-6 - LAUNCH)
    assert times.wall == pytest.approx([call] * 11, rel=EDGES)


def test_more_launches_than_a_stream_holds_have_no_device_time(gpu: FakeGPU) -> None:
    times = times_of(launches(gpu, 3000, device=2e-6))
    assert times.device is None
    assert times.wall == pytest.approx([3000 * LAUNCH] * 11, rel=EDGES)


def test_a_device_time_starts_after_reads_of_more_than_a_cache_holds(gpu: FakeGPU) -> None:
    times_of(launches(gpu, 1, device=2e-6))
    timed = [i for i in range(len(gpu.log)) if gpu.log[i : i + 3] == ["event", "work", "event"]]
    assert len(timed) >= 11
    assert all(gpu.log[i - 1] == "read" for i in timed)
    assert set(gpu.read_bytes) == {FLUSH_BYTES}
    assert FLUSH_BYTES >= 2 * 126 << 20  # the L2 cache of a B200


def test_rivals_are_timed_in_turn_and_each_starts_a_round(gpu: FakeGPU) -> None:
    order: list[str] = []

    def work(name: str) -> None:
        order.append(name)
        gpu.launch(LOOP_SECONDS)  # so that a loop is one call

    interleave({name: partial(work, name) for name in "abc"}, CUDA, budget=0.0)
    rounds = ["".join(order[-66:][i : i + 6]) for i in range(0, 66, 6)]
    assert rounds[:4] == ["aabbcc", "bbccaa", "ccaabb", "aabbcc"]


def test_rounds_fill_the_budget_with_all_that_they_take(gpu: FakeGPU) -> None:
    began: list[float] = []

    def work() -> None:
        began.append(gpu.host)
        gpu.launch(10e-3)

    times = interleave({"work": work}, CUDA, budget=2.0)["work"]
    assert 0.9 * 2.0 < gpu.host - began[5] < 1.1 * 2.0
    assert len(times.wall) > 50


def test_the_bandwidth_of_a_copy_is_the_gpus(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones
    monkeypatch.setattr("bench.timing.clock.torch.ones", lambda *a, **k: ones(1, dtype=torch.uint8))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_: gpu.launch(1e-6))
    # The host submits a copy in 7 µs; the GPU takes 1 µs for it.
    assert copy_bandwidth(CUDA, quick=True) == pytest.approx(2 * (64 << 20) / 1e-6, rel=1e-6)
