"""ATen's ops on CUDA tensors, computed by the CPU's kernels in the same memory.

ATen's CUDA kernels are machine code, which cannot run without a GPU. In a rehearsal device memory
is host memory, so the CPU's kernel of the same op can work on it. Each op calls its CUDA kernel
first: the real host code checks, allocates and launches. If that launched a kernel that the
rehearsal does not execute, the CPU computes the whole op. Autograd is not affected, because all of
this happens below it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.rehearsal.memory import on_host

# Ops that have a CUDA kernel although the dispatcher lists none for CUDA.
ALSO = ("aten::copy_",)
Append = Callable[[Callable[[], None]], None]  # adds a node to the graph that is being captured
# These launch nothing. The other ops without launches are views, which their schemas tell.
NO_LAUNCH = ("empty", "resize_", "set_", "record_stream", "is_pinned", "_pin_memory")


class _Thread(threading.local):
    inside = ""  # the op whose CUDA kernel is being called
    unexecuted = 0  # kernels that were launched and not executed


_thread = _Thread()
_library: list[Any] = []  # keeps the library alive: its ops vanish with it


def launched() -> str:
    """Note the launch of an ATen kernel. Returns the op that the CPU will compute, or ""."""
    _thread.unexecuted += 1
    return _thread.inside


def _overload(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return found


def _tensors(*trees: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor))


class _Op:
    """The replacement of an op on CUDA."""

    def __init__(self, name: str, append: Append) -> None:
        self.op, self.append = _overload(name), append
        self.original = torch.library.get_kernel(name, "CUDA")
        arguments = self.op._schema.arguments
        self.is_random = any(argument.name == "generator" for argument in arguments)
        # Whether a number may replace a tensor. It is then not rounded to the tensors' dtype.
        short = self.op._schema.name.removeprefix("aten::")
        self.takes_numbers = torch._C._should_allow_numbers_as_tensors(short)

    def __call__(self, keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if _thread.inside:
            # This is a part of another op, which is computed as a whole.
            return self._call_original(keyset, args, kwargs)
        if torch.Tag.dynamic_output_shape in self.op.tags:
            return self._wait_and_compute(args, kwargs)
        _thread.inside, _thread.unexecuted = str(self.op), 0
        drawn = {"generator": _generator(kwargs.get("generator"))} if self.is_random else {}
        try:
            result = self._call_original(keyset, args, kwargs)
        finally:
            _thread.inside = ""
        if not _thread.unexecuted:
            return result
        host_args, host_kwargs = tree_map(_argument_on_host, (args, kwargs | drawn))
        if not any(True for _ in _tensors(result)) and self.op._schema.returns:
            return self._compute(host_args, host_kwargs)
        outputs = [on_host(tensor) for tensor in _tensors(result)]

        def work() -> None:
            computed = self._compute(host_args, host_kwargs)
            for output, value in zip(outputs, _tensors(computed), strict=True):
                if output.data_ptr() != value.data_ptr():
                    output.copy_(value)

        if torch.cuda.is_current_stream_capturing():
            self.append(work)
        else:
            work()
        return result

    def _call_original(self, keyset: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.original.call_boxed(keyset, *self._without_numbers(args), **kwargs)

    def _without_numbers(self, args: tuple[Any, ...]) -> Iterator[Any]:
        """The arguments, with Python numbers as 0-d tensors where the schema expects a tensor."""
        like: Any = next(_tensors(args), None)
        for arg, expected in zip(args, self.op._schema.arguments, strict=False):
            if str(expected.type) == "Tensor" and isinstance(arg, (bool, int, float)):
                yield torch.tensor(arg, dtype=torch.result_type(like, arg))
            else:
                yield arg

    def _compute(self, args: Any, kwargs: Any) -> Any:
        if not self.takes_numbers:
            args = self._without_numbers(args)
        try:
            return self.op(*args, **kwargs)
        except NotImplementedError as error:
            message = f"the rehearsal cannot compute {self.op}: the CPU has no kernel for it"
            raise NotImplementedError(message) from error

    def _wait_and_compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The CUDA kernel waits for the device to read the output's size, so this waits too.
        device = next(_tensors(args, kwargs)).device
        torch.zeros((), device=device).item()
        computed = self._compute(*tree_map(_argument_on_host, (args, kwargs)))
        return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, computed)


def _argument_on_host(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return on_host(arg)
    if isinstance(arg, torch.device):
        return torch.device("cpu")
    return arg


_while_capturing = torch.Generator()


def _generator(given: torch.Generator | None) -> torch.Generator:
    """A CPU generator for a random op, seeded by the seed and offset of the CUDA generator.

    In a captured graph it is not seeded: each replay draws new numbers.
    """
    if torch.cuda.is_current_stream_capturing():
        return _while_capturing
    generator = given or torch.cuda.default_generators[torch.cuda.current_device()]
    seed = (generator.initial_seed() * 0x9E3779B97F4A7C15 + generator.get_offset()) % 2**63
    return torch.Generator().manual_seed(seed)


def install(append: Append) -> None:
    """Replace the CUDA kernels of all of ATen's ops, for the rest of the process."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    library = torch.library.Library("aten", "IMPL", "CUDA")
    replaced = {
        name: _Op(name, append)
        for name in (*names, *ALSO)
        if name.startswith("aten::") and not _launches_nothing(name)
    }
    with warnings.catch_warnings(action="ignore"):  # warnings about overridden kernels
        for name, op in replaced.items():
            library.impl(name.removeprefix("aten::"), op, with_keyset=True)
    _library.append(library)


def _launches_nothing(name: str) -> bool:
    infos = [argument.alias_info for argument in _overload(name)._schema.arguments]
    view = any(info is not None and not info.is_write for info in infos)
    return view or name.removeprefix("aten::").startswith(NO_LAUNCH)
