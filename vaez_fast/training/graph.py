"""From a Python function of tensors to one compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from vaez_kernels.backend import triton
from vaez_kernels.compiler import built, has_cpu_compiler, isolated
from vaez_kernels.first_build import start_on_header

_Result = TypeVar("_Result")


def trace(function: Callable[..., Any], *tensors: Tensor) -> GraphModule:
    """The operators that `function` runs for tensors of exactly these shapes, as one graph.

    Tracing happens below autograd, so a function that differentiates and updates in place becomes
    one graph too. Tensors that the function reads but does not get as arguments become attributes
    of the graph: see `lift_constants`.
    """
    # A lambda, because make_fx miscounts the arguments of a bound method.
    traced = make_fx(
        lambda *inputs: function(*inputs), tracing_mode="fake", _allow_non_fake_inputs=True
    )
    device = tensors[0].device

    def work() -> GraphModule:
        if device.type == "cpu" and has_cpu_compiler():
            start_on_header()
        return traced(*tensors)

    return _isolated_on(device, work)


def untraceable() -> tuple[type[Exception], ...]:
    """The errors by which tracing says that the code depends on values of tensors."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode


def lift_constants(graph: GraphModule) -> list[Tensor]:
    """Make the tensors that are attributes of `graph` its last arguments, and return them.

    The graph then depends only on their shapes and dtypes, and works for other tensors like them.
    """
    reads = [node for node in graph.graph.nodes if node.op == "get_attr"]
    constants: dict[str, Tensor] = {}
    last = next(n for n in reversed(graph.graph.nodes) if n.op == "placeholder")
    placeholders = {}
    for node in reads:
        value = getattr(graph, node.target, None)
        if not isinstance(value, Tensor):
            continue
        if node.target not in constants:
            with graph.graph.inserting_after(last):
                last = placeholders[node.target] = graph.graph.placeholder(f"constant{node.target}")
            last.meta = dict(node.meta)
            constants[node.target] = value.detach()
        node.replace_all_uses_with(placeholders[node.target])
        graph.graph.erase_node(node)
    for name in constants:
        delattr(graph, name)
    graph.recompile()
    return list(constants.values())


def identity(graph: GraphModule, tensors: Sequence[Tensor]) -> Hashable:
    """A key that is equal for two graphs if they compute the same from tensors of the same kind.

    If a graph holds anything but operators, numbers and such subgraphs, its key equals no other.

    Args:
        graph: one without constants (see `lift_constants`).
        tensors: its arguments.
    """
    kinds = tuple((tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors)
    parts: list[Hashable] = []
    for name, part in graph.named_modules():
        plain = isinstance(part, GraphModule) and not (part._parameters or part._buffers)
        held = [n for n in part.graph.nodes if n.op == "get_attr"] if plain else []
        inner = [n for n in held if isinstance(getattr(part, n.target, None), GraphModule)]
        parts.append((name, part.code) if plain and held == inner else object())
    return kinds, tuple(parts)


def compile_graph(graph: GraphModule, *tensors: Tensor, device: torch.device) -> Callable[..., Any]:
    """`graph`, compiled for tensors of exactly these shapes, dtypes and layouts.

    Calls skip argument guards; the caller must pass tensors of the traced shapes and dtypes.
    (torch.compile checks each of a training step's 50 arguments: 0.3 ms of a 2.8 ms step.) The
    graph runs uncompiled on a CPU without a C++ compiler, on a GPU without triton, and if compiling
    fails.
    """

    def work() -> Callable[..., Any]:
        can_compile = has_cpu_compiler() if device.type == "cpu" else triton is not None
        return (can_compile and built(graph, tensors, "from_example_inputs", alone=True)) or graph

    return _isolated_on(device, work)


def _isolated_on(device: torch.device, work: Callable[[], _Result]) -> _Result:
    def on_device() -> _Result:
        # A new thread starts with the first GPU as its current device.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return work()

    return isolated(on_device)
