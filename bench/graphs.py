"""CUDA graphs: the launches of a function recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.measure import WARMUP_CALLS, Work


def captured(work: Callable[[], tuple[Tensor, ...]]) -> tuple[Work, tuple[Tensor, ...]]:
    """A replay of `work`, and its outputs, which each replay overwrites.

    Random numbers are fresh in each replay: PyTorch's generator advances by itself, ours if `work`
    adds to its step on the device.

    Raises:
        RuntimeError: `work` does what a graph cannot hold, such as waiting for the GPU.
    """
    # Warm-up on a side stream, as torch.cuda.graph asks: what is compiled or allocated once, and
    # the autograd engine's streams, must not fall into the capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_CALLS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph.replay, outputs
