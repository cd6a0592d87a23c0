"""The device has its own clock, and work takes the time that Python set."""

from __future__ import annotations

import time

import pytest
import torch

from tests.rehearsal import stand_in

ADD = "*CUDAFunctorOnSelf_add*"


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def elapsed_us(work: object, stream: torch.cuda.Stream | None = None) -> float:
    """Device time between two events around `work`, behind enough work to hide the host."""
    x, (begin, end) = torch.ones(6, device="cuda"), events()
    stand_in.set_duration("*BinaryFunctor*", 200_000)
    x * x
    begin.record()
    work()  # type: ignore[operator]
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3


def test_kernels_on_one_stream_take_the_sum_of_their_times() -> None:
    x = torch.ones(6, device="cuda")
    stand_in.set_duration(ADD, 300)
    assert elapsed_us(lambda: (x + 1, x + 1, x + 1)) == pytest.approx(900, abs=0.01)


def test_side_streams_run_beside_and_are_awaited() -> None:
    x, side = torch.ones(6, device="cuda"), torch.cuda.Stream()
    stand_in.set_duration(ADD, 300)

    def both() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                x + 1
        x + 1
        torch.cuda.current_stream().wait_stream(side)

    assert elapsed_us(both) == pytest.approx(1200, abs=0.01)


def test_a_graph_takes_its_nodes_times() -> None:
    x, graph = torch.ones(6, device="cuda"), torch.cuda.CUDAGraph()
    stand_in.set_duration(ADD, 50)
    with torch.cuda.graph(graph):
        for _ in range(10):
            x + 1
    assert elapsed_us(graph.replay) == pytest.approx(500, abs=0.01)


def test_copies_take_time_by_their_bytes() -> None:
    a, b = (torch.zeros(1 << 22, dtype=torch.uint8, device="cuda") for _ in range(2))
    # 4 MiB are read and written at 3,352 bytes a nanosecond, plus 1.5 µs.
    assert elapsed_us(lambda: a.copy_(b)) == pytest.approx(2 * 2**22 / 3352e3 + 1.5, abs=0.01)


def test_waiting_takes_real_time() -> None:
    x = torch.ones(6, device="cuda")
    stand_in.set_duration(ADD, 200_000)
    torch.cuda.synchronize()
    before = time.perf_counter()
    x + 1
    launched = time.perf_counter()
    torch.cuda.synchronize()
    waited = time.perf_counter()
    assert launched - before < 0.2 <= waited - before


def test_an_event_is_ready_when_the_device_gets_there() -> None:
    x, event = torch.ones(6, device="cuda"), torch.cuda.Event()
    stand_in.set_duration(ADD, 200_000)
    x + 1
    event.record()
    assert not event.query()
    assert not torch.cuda.current_stream().query()
    event.synchronize()
    assert event.query()
    assert torch.cuda.current_stream().query()


def test_a_host_that_is_late_leaves_a_gap() -> None:
    x, (begin, end) = torch.ones(6, device="cuda"), events()
    torch.cuda.synchronize()
    begin.record()
    time.sleep(0.01)
    x + 1
    end.record()
    torch.cuda.synchronize()
    assert begin.elapsed_time(end) >= 10


def test_the_queue_holds_1024_launches() -> None:
    x = torch.ones(6, device="cuda")
    torch.cuda.synchronize()
    stand_in.set_duration(ADD, 100)
    before = time.perf_counter()
    for _ in range(1124):
        x + 1
    # The last launch has to wait until the hundredth ends.
    assert time.perf_counter() - before >= 0.01
    torch.cuda.synchronize()
