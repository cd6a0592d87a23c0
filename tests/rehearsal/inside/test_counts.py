"""Launches, copies, allocations and waits are counted, and nothing else."""

from __future__ import annotations

import torch

from tests.rehearsal import stand_in


def test_a_known_sequence_is_counted() -> None:
    x = torch.ones(6, device="cuda")
    w = torch.ones(6, 6, device="cuda")
    w @ w
    with stand_in.counting() as counts:
        y = x + 1
        w @ w
        y.cpu()
        x.copy_(torch.zeros(6))
        x.copy_(y)
        torch.cuda.synchronize()
    (add,) = counts.aten
    assert "CUDAFunctorOnSelf_add<float>" in add
    assert counts.products == {"cublasSgemm": 1}
    assert counts.copies == {
        ("device to host", 24): 1,
        ("host to device", 24): 1,
        ("device to device", 24): 1,
    }
    assert counts.synchronisations["cudaDeviceSynchronize"] == 1
    assert counts.synchronisations["cudaStreamSynchronize"] == 2  # of both pageable copies
    assert counts.allocations == {}  # torch reuses memory that it freed
    assert counts.launches == 5
    assert counts.legacy.total() == 5


def test_what_happens_outside_is_not_counted() -> None:
    x = torch.ones(6, device="cuda")
    with stand_in.counting() as counts:
        pass
    x.add(1)
    assert counts.happened == []


def test_the_stream_of_a_launch_is_told() -> None:
    x, side = torch.ones(6, device="cuda"), torch.cuda.Stream()
    with stand_in.counting() as counts, torch.cuda.stream(side):
        x.add(1)
    assert counts.launches == 1
    assert counts.legacy == {}


def test_capture_and_replay_are_told_apart() -> None:
    x, graph = torch.ones(6, device="cuda"), torch.cuda.CUDAGraph()
    with stand_in.counting() as counts, torch.cuda.graph(graph):
        x.add(1).mul_(2)
    assert counts.captured == [2]
    assert sum(h.captured for h in counts.happened) == 2
    with stand_in.counting() as counts:
        graph.replay()
    assert (counts.graph_launches, counts.launches) == (1, 0)
