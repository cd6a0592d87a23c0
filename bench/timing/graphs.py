"""CUDA graphs: the launches of several calls recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bench.timing.clock import WARMUP_CALLS

_Result = TypeVar("_Result")
_Case = TypeVar("_Case")

# At least 32 calls, so that the launch of the graph is negligible. At most 512, because a call of
# eager code has dozens of nodes.
FEWEST_CALLS, MOST_CALLS = 32, 512


@dataclass(frozen=True)
class Graph(Generic[_Result]):
    """Recorded calls and their outputs, which each replay overwrites.

    `calls` keeps the tensors alive that a replay reads.
    """

    calls: Sequence[Callable[[], _Result]]
    outputs: list[_Result]
    graph: torch.cuda.CUDAGraph

    def replay(self) -> None:
        self.graph.replay()


def captured(calls: Sequence[Callable[[], _Result]]) -> Graph[_Result]:
    """A graph of `calls`, one after the other.

    Each replay draws fresh random numbers: PyTorch's generator advances by itself, ours if a call
    increments its step on the device.

    Raises:
        RuntimeError: a call does something that a graph cannot hold, such as a wait for the GPU.
    """
    # torch.cuda.graph asks for a warm-up on a side stream: it keeps compilation, allocations that
    # happen once, and the streams of the autograd engine out of the capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:WARMUP_CALLS]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call() for call in calls]
    return Graph(calls, outputs, graph)


def sets_of(case: _Case, device: torch.device) -> list[_Case]:
    """So many copies of `case` that the L2 cache of `device` cannot hold them.

    So calls on one copy after the other read their tensors from memory, like calls on new data.
    There are at least 32 and at most 512. If 512 fit into the cache, calls start cold only if
    something else evicts their tensors, as bench.timing.cuda_times does before a device time.
    """
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    count = max(FEWEST_CALLS, min(MOST_CALLS, cache // bytes_of(case) + 1))
    return [_copy(case) for _ in range(count)]


def bytes_of(case: Any) -> int:
    """Bytes of the tensors of a case."""
    return sum(tensor.nbytes for tensor in _own_tensors(case).values())


def _copy(case: _Case) -> _Case:
    own = {
        name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for name, tensor in _own_tensors(case).items()
    }
    return replace(case, **own)  # type: ignore[type-var]


def _own_tensors(case: Any) -> dict[str, Tensor]:
    # All copies share one noise, which advances once in each replay.
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return {n: v for n, v in values.items() if isinstance(v, Tensor) and n != "noise"}
