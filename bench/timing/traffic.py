"""Bytes: those that an op must move at least, and those that a provider moves.

The floor is the bytes of every input read once and of every output written once. A provider's bytes
are the tensors that its kernels load and store, whether from a cache or from memory.

- Eager code: `aten_bytes` watches each kernel that PyTorch dispatches.
- Compiled code, our CPU fallback included: `inductor_bytes` asks the compiler.
- Our Triton kernels: the floor itself, as tests/interpreted/test_traffic.py finds by counting every
  load and store in the interpreter: 1.00 times the floor for S ≤ 8. Beyond, a forward reads its
  inputs (the likelihood its targets) once more for each eight samples. No row of the suite does.
  The fused last layer's forward reads the weights once for each block of rows (so much is counted
  in tests/interpreted/test_linear_kernel.py), mostly from L2, and backward likewise reads rows or
  weights several times: their row names no bytes.
  The mixture's kernels read components once for each block of draws: `mixture_log_prob_moved`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaez_kernels import compiler, noise
from vaez_kernels.compiler import (
    Code,
    compiled_without_guards,
    has_cpu_compiler,
    isolated,
    of_tensors,
)


def aten_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that the eager kernels of a call of `work` load and store, its backward's included."""
    # Backward in this thread, also on CUDA: there the mode is active.
    with _AtenTraffic(device) as traffic, torch.autograd.set_multithreading_enabled(False):
        work()
    return traffic.bytes


# In-place kernels that never look at what they overwrite.
OVERWRITING = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_"}


class _AtenTraffic(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.bytes = 0
        name = "CUDA" if device.type == "cuda" else "CPU"
        self.key = getattr(torch._C.DispatchKey, name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_view(func):
            return func(*args, **kwargs)
        before = self.bytes
        if self._is_composite(func):
            # It calls other operators (binary_cross_entropy_with_logits calls six kernels), and
            # their bytes are counted. If it calls none (copy_), its own are counted below.
            with self:
                result = func.redispatch(torch._C.DispatchKeySet(self.key), *args, **kwargs)
        elif _has_number_for_tensor(func, args):
            # In `tensor & 5`, C++ turns 5 into a tensor, but this method receives a number again.
            # The packet selects the overload that takes a number.
            result = func.overloadpacket(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if self.bytes == before:
            self.bytes += _moved(func, args, kwargs, result)
        return result

    def _is_composite(self, func: Any) -> bool:
        def has(key: Any) -> bool:
            return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)

        composite = has("CompositeExplicitAutograd") or has("CompositeImplicitAutograd")
        return composite and not has(self.key)


def _has_number_for_tensor(func: Any, args: tuple[Any, ...]) -> bool:
    return any(
        isinstance(value, (int, float, complex)) and isinstance(argument.type, torch.TensorType)
        for argument, value in zip(func._schema.arguments, args, strict=False)
    )


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    name = func._schema.name.removeprefix("aten::")
    if name.startswith(("empty", "new_empty", "resize", "_unsafe_view")):
        return 0
    read: list[Any] = []
    written: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        mutated = argument.alias_info is not None and argument.alias_info.is_write
        if mutated:
            written.append(value)
        if not mutated or not (argument.kwarg_only or name in OVERWRITING):
            read.append(value)
    if all(returned.alias_info is None for returned in func._schema.returns):
        written.append(result)  # otherwise it is an argument, counted already
    return _distinct_bytes(read) + _distinct_bytes(written)


def _distinct_bytes(values: list[Any]) -> int:
    # A tensor given twice (x * x) is loaded once; an expanded one has the elements of its source.
    seen: dict[tuple[Any, ...], int] = {}
    for x in tree_leaves(values):
        if isinstance(x, Tensor):
            elements = 1
            for size, stride in zip(x.shape, x.stride(), strict=True):
                elements *= size if stride != 0 else min(size, 1)
            seen[(x.data_ptr(), x.shape, x.stride())] = elements * x.element_size()
    return sum(seen.values())


def inductor_bytes(work: Callable[[], object]) -> int | None:
    """Bytes that the compiled kernels of `work` load and store, by the compiler's own account.

    `work` must call all its compiled functions for the first time since `torch._dynamo.reset()`,
    each graph once: bytes are known while a graph is compiled. Inductor counts a buffer once for
    each fused loop nest that reads or writes it. Eager kernels between the graphs are not seen. Our
    ops' code was compiled for other sizes, so it is compiled again for the sizes of `work`. Noise
    counts as the bytes of the numbers that it writes.

    Returns:
        None where nothing was compiled, or this version of PyTorch does not tell.
    """
    counts: list[int | None] = []
    # Backward in this thread, also on CUDA: settings of the compiler are those of a thread.
    with _counting(counts), torch.autograd.set_multithreading_enabled(False):
        work()
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


@contextmanager
def _counting(counts: list[int | None]) -> Iterator[None]:
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.graph import GraphLowering

    compiled_quads = noise.twin.compiled_quads

    def counted_quads(normal: bool) -> Code | None:
        code = compiled_quads(normal)

        def draw(*args: Tensor) -> Tensor:
            assert code is not None
            numbers: Tensor = code(*args)
            counts.append(numbers.numel() * numbers.element_size())
            return numbers

        return draw if code is not None else None

    def counted_twin(
        function: Callable[..., Any],
        _: str,
        kinds: tuple[object, ...],
        options: tuple[tuple[str, Any], ...],
    ) -> Code:
        def run(*tensors: Tensor) -> Any:
            of = of_tensors(function, kinds)
            code = isolated(lambda: compiled_without_guards(of, *tensors, **dict(options)))
            return (code or of)(*tensors)

        return run

    if has_cpu_compiler():
        for normal in (True, False):
            compiled_quads(normal)
    codegen = GraphLowering.codegen

    def counted(graph: Any) -> Any:
        code = codegen(graph)
        try:
            counts.append(sum(n.get_read_write_buffers_sizes() for n in graph.scheduler.nodes))
        except AttributeError:  # internals, which may move with a version
            counts.append(None)
        return code

    # A graph that comes from a cache is not lowered, and nothing would be counted.
    with (
        inductor.patch(fx_graph_cache=False),
        functorch.patch(enable_autograd_cache=False),
        patch.object(GraphLowering, "codegen", counted),
        patch.object(noise.twin, "compiled_quads", counted_quads),
        patch.object(compiler, "compiled", counted_twin),
    ):
        yield
