"""A replayed graph does the captured work, in the order of capture."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.rehearsal import stand_in
from tests.rehearsal.stand_in import Kind, Product


def captured(work: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()  # type: ignore[operator]
    return graph


def test_capture_does_nothing_and_each_replay_copies_again() -> None:
    source, target = torch.arange(4.0).cuda(), torch.arange(4.0).neg().cuda()
    graph = captured(lambda: target.copy_(source))
    assert target.tolist() == [0, -1, -2, -3]
    graph.replay()
    assert target.tolist() == [0, 1, 2, 3]
    source.copy_(torch.full((4,), 7.0))
    graph.replay()
    assert target.tolist() == [7, 7, 7, 7]


def test_nodes_run_in_the_order_of_capture() -> None:
    a, b, c = (torch.full((2,), float(i)).cuda() for i in range(3))

    def rotate() -> None:
        c.copy_(b)
        b.copy_(a)
        a.zero_()

    graph = captured(rotate)
    graph.replay()
    assert [t.tolist() for t in (a, b, c)] == [[0, 0], [0, 0], [1, 1]]
    graph.replay()
    assert [t.tolist() for t in (a, b, c)] == [[0, 0], [0, 0], [0, 0]]


def test_pythons_nodes_products_and_copies_take_turns() -> None:
    order: list[object] = []

    def replay(node: int) -> int:
        order.append(node)
        return 0

    def product(described: Product) -> int:
        order.append((described.m, described.n, described.k))
        return 0

    a, b = torch.ones(2, 3).cuda(), torch.ones(3, 5).cuda()
    a @ b
    stand_in.set_executor(replay=replay, product=product)

    def work() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        stand_in.append_node(stream, 11)
        a @ b
        stand_in.append_node(stream, 12)

    graph = captured(work)
    assert order == []
    graph.replay()
    graph.replay()
    # BLAS sees the transposed matrices: 5 x 2 = (5 x 3) (3 x 2).
    assert order == [11, (5, 2, 3), 12] * 2


def test_an_executor_that_raises_makes_the_launch_fail() -> None:
    def product(described: Product) -> int:
        raise ValueError("raised by this test")

    a = torch.ones(2, 2).cuda()
    a @ a
    stand_in.set_executor(product=product)
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_EXECUTION_FAILED"):
        a @ a
    ctypes.CDLL("libcudart.so.13").cudaGetLastError()


def test_scalars_and_strides_of_a_product_arrive() -> None:
    seen: list[tuple[float, float, int, int, int]] = []

    def product(p: Product) -> int:
        seen.append((p.alpha, p.beta, p.batch, p.stride_a, p.type_a))
        return 0

    a, b = torch.ones(4, 2, 3).bfloat16().cuda(), torch.ones(4, 3, 5).bfloat16().cuda()
    c = torch.ones(4, 2, 5).bfloat16().cuda()
    stand_in.set_executor(product=product)
    torch.baddbmm(c, a, b, beta=3.0, alpha=2.0, out=c)
    assert seen == [(2.0, 3.0, 4, 15, 14)]


def test_a_launch_through_the_driver_shows_its_ptx_and_is_replayed() -> None:
    import vaez_kernels

    noise = vaez_kernels.noise_key(3, "train", device=torch.device("cuda"))
    seen: list[tuple[object, ...]] = []

    def launch(of: stand_in.Launch) -> int:
        assert f".entry {of.name}".encode() in of.ptx
        seen.append((of.grid, of.block[0] % 32, of.parameters > 0, of.capturing))
        return 5 if of.capturing else 0

    replayed: list[int] = []

    def replay(node: int) -> int:
        replayed.append(node)
        return 0

    stand_in.set_executor(launch=launch, replay=replay)
    vaez_kernels.normal(noise, 1, 4, 5)
    graph = captured(lambda: vaez_kernels.normal(noise, 1, 4, 5))
    assert seen == [((1, 1, 1), 0, True, False), ((1, 1, 1), 0, True, True)]
    with stand_in.counting() as counts:
        graph.replay()
    assert replayed == [5]
    assert [h.kind for h in counts.happened] == [Kind.GRAPH_LAUNCH]
