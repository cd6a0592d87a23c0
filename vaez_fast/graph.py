"""From a Python function to one compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vaez_kernels.backend import triton
from vaez_kernels.compiler import has_cpu_compiler, thread_options


def compile_graph(
    function: Callable[..., Any], *arguments: Any, device: torch.device
) -> Callable[..., Any]:
    """`function` as one graph for arguments of exactly these shapes, compiled at its first call.

    It is traced below autograd, so a function that differentiates and updates in place becomes one
    graph, and each trace is code of its own: torch.compile gives up on code that it has compiled
    for eight shapes. Where nothing can compile it (a CPU without a C++ compiler, a GPU without
    triton) the graph runs as it is.
    """
    # The lambda, because make_fx miscounts the arguments of a bound method.
    graph = make_fx(lambda *inputs: function(*inputs), tracing_mode="fake")(*arguments)
    can_compile = has_cpu_compiler() if device.type == "cpu" else triton is not None
    if not can_compile:
        return graph
    return torch.compile(graph, fullgraph=True, options=thread_options() or None)
