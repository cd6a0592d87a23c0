"""ATen's ops on CUDA tensors return the CPU's results, also when a graph replays them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

CUDA = torch.device("cuda")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def gradient(x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (found,) = torch.autograd.grad((leaf.tanh() * leaf[:, :1]).square().sum(), leaf)
    return found


def doubled_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1::2].add_(1).mul_(2)  # changes a strided part of the memory
    return x


def into_another(x: Tensor) -> Tensor:
    out = x.new_empty(0)  # resized by the op
    return torch.add(x, x, alpha=3, out=out)


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: 2.5 - x,
    "a number and an integer tensor": lambda x: x.long() * 2.5,
    "a number and a scalar tensor": lambda x: x.sum() * 3,
    "broadcasting": lambda x: x * x[:1] + x[:, :1],
    "a transposed copy": lambda x: x.t().contiguous(),
    "dtypes": lambda x: x.bfloat16().double().half().bool(),
    "reductions": lambda x: x.sum(0) + x.amax(0) + x.mean(0) + torch.logsumexp(x, 0),
    "an index": lambda x: x.index_select(0, torch.tensor([1, 1, 2], device=x.device)),
    "a mask": lambda x: x.masked_fill(x > 0, 3.0)[x < 0],
    "where": lambda x: torch.where(x > 0, x, 0.5).nonzero(),
    "joining": lambda x: torch.cat([x, x.exp()]) @ x.new_zeros(6, 6),
    "in place": doubled_in_place,
    "out=": into_another,
    "factories": lambda x: torch.arange(6, device=x.device) + x.new_ones(6),
    "lists": lambda x: torch._foreach_add([x, x[1:]], 1)[1],
    "softplus": F.softplus,
    "a gradient": gradient,
    "nothing": lambda x: x[:0] * 2,
}


@pytest.mark.parametrize("name", list(OPS))
def test_an_op_gives_what_it_gives_on_the_cpu(name: str) -> None:
    x = numbers(5, 6)
    found, wanted = OPS[name](x.to(CUDA)), OPS[name](x)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), wanted)


def test_a_comparison_of_tensors_is_a_truth() -> None:
    x = numbers(5, 6).to(CUDA)
    assert torch.equal(x, x.clone())
    assert not torch.equal(x, x + 1)


def test_gradients_reach_the_cpu_through_copies_and_conversions() -> None:
    leaf = numbers(3, 4).requires_grad_()
    leaf.to(CUDA).double().mul(2).cpu().sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full((3, 4), 2.0))


def test_a_replay_computes_the_captured_ops_in_their_order() -> None:
    x, total = numbers(5, 6).to(CUDA), torch.zeros(5, 6, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.mul_(2)
        y = x + 1
        total.add_(y)
    before = x.clone()
    assert total.eq(0).all(), "capturing must compute nothing"
    graph.replay()
    torch.testing.assert_close(total, 2 * before + 1)
    graph.replay()
    torch.testing.assert_close(total, 6 * before + 2)
    torch.testing.assert_close(y, 4 * before + 1)


def test_draws_are_new_each_time_and_repeat_with_the_seed() -> None:
    def draws() -> list[Tensor]:
        torch.manual_seed(3)
        return [torch.randn(100, device=CUDA) for _ in range(2)]

    (one, two), again = draws(), draws()
    assert not torch.equal(one, two)
    assert torch.equal(one, again[0])
    assert torch.equal(two, again[1])


def test_what_depends_on_the_data_waits_for_the_device() -> None:
    mask = torch.ones(3, dtype=torch.bool, device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            mask.nonzero()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_op_that_the_cpu_lacks_is_an_error_that_names_it() -> None:
    cell = torch.nn.GRUCell(3, 4).to(CUDA)  # one fused kernel on CUDA
    with pytest.raises(NotImplementedError, match=r"cannot compute aten\._thnn_fused_gru_cell"):
        cell(torch.zeros(2, 3, device=CUDA))
