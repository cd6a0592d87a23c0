"""`torch.compile` for the CPU where a C++ compiler is at hand, eager PyTorch where none is."""

from __future__ import annotations

import functools
import re
import sysconfig
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

# torch.compile guards on these dispatch keys and on the gradient mode, and would compile once more
# for each kind of caller: eager code, a custom op, an autograd function, no_grad.
_ABOVE_KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView) | (
    torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
)


_Built = TypeVar("_Built")


@functools.cache
def has_cpu_compiler() -> bool:
    """Whether `torch.compile` can build CPU code here; warns once where it cannot."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    missing = []
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        missing.append("a C++ compiler (g++, or another named by CXX)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("Python's headers (Debian's python3-dev)")
    if missing:
        warnings.warn(
            f"{' and '.join(missing)} not found: torch.compile cannot build CPU code, so vaez_fast "
            "runs in eager PyTorch (correct, several times slower).",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


def thread_options() -> dict[str, Any]:
    """Options that keep code compiled for one thread apart from code for several.

    torch.compile's cache on disk does not: a loop that was compiled under OMP_NUM_THREADS=1 would
    be run by one thread ever after (a million normals in 3.8 ms instead of 2.1).
    """
    return {"cpp.threads": 1} if torch.get_num_threads() == 1 else {}


@functools.cache
def compiled(function: Callable[..., Any], variant: object = None, **options: Any) -> Any:
    """`function` compiled for dynamic shapes, once per (function, variant).

    Each variant (say, a dtype and the flags that go with it) is compiled as a code object of its
    own: torch.compile counts recompilations per code object and gives up after eight.
    """
    own = types.FunctionType(
        function.__code__.replace(co_name=f"{function.__name__}_{variant}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
    )
    options |= thread_options()
    run = torch.compile(own, dynamic=True, fullgraph=True, options=options or None)

    def below_autograd(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_ABOVE_KERNELS), torch.no_grad():
            return with_whole_libraries(lambda: run(*args))

    return below_autograd


def compiled_without_guards(
    function: Callable[..., Any], *examples: Tensor, **options: Any
) -> Callable[..., Any]:
    """`function` compiled for tensors of the examples' dtypes and dimensions, contiguous, any size.

    torch.compile looks at every argument before it runs a graph, which costs a small one more than
    its work: 16,384 normals in 80 µs, in 38 without. Here nobody looks: the caller vouches for the
    arguments, and for sizes above 1. The examples' sizes should be those of typical work, because
    inductor chooses by them whether threads pay.
    """
    # What a caller's autocast would add to the graph would stay in it.
    plain = torch.autocast("cpu", enabled=False)
    with torch._C._ExcludeDispatchKeyGuard(_ABOVE_KERNELS), torch.no_grad(), plain:
        graph = make_fx(function, tracing_mode="symbolic")(*examples)
        return standalone(graph, examples, "from_graph", **options)


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor to compile for, whatever the process's default dtype and device are."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def sizes_unlike(count: int, *fixed: int) -> list[int]:
    """Example sizes for dimensions that vary: no two alike, and none like one that is fixed.

    A traced graph takes sizes that are equal in its examples for one and the same.
    """
    primes = (23, 41, 29, 37, 31, 43, 19, 47, 53, 59)
    return [n for n in primes if n not in fixed][:count]


def standalone(
    graph: GraphModule, examples: Sequence[Tensor], dynamic_shapes: Any, **options: Any
) -> Callable[..., Any]:
    """`graph` compiled by inductor alone, with its `options`: what is run has no guards."""
    import torch._inductor
    import torch._inductor.config as inductor

    with inductor.patch(options | thread_options()):
        return with_whole_libraries(
            lambda: torch._inductor.standalone_compile(
                graph, list(examples), dynamic_shapes=dynamic_shapes
            )
        )


def with_whole_libraries(build: Callable[[], _Built]) -> _Built:
    """What `build` returns, after libraries that it finds cut short were removed and built anew.

    The compiler writes into inductor's cache on disk under the final name: a process that was
    killed meanwhile leaves half a library there, at which every later one fails. (Of 120 links
    by GNU ld that were killed, 78 left an empty file, 12 one without a header.)
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    removed = set()
    while True:
        try:
            return build()
        except Exception as error:
            half = re.search(
                r"(/\S+\.so): (file too short|invalid ELF header|cannot read file data)", str(error)
            )
            if half is None or half[1] in removed or not half[1].startswith(cache_dir()):
                raise
            removed.add(half[1])
            # Missing, too, if a process beside this one has just done the same.
            Path(half[1]).unlink(missing_ok=True)


def canonical(x: Any) -> Any:
    """A tensor less what torch.compile guards on beyond sizes: gradients wanted, and the layout.

    Of layouts rows apart (a chunk of (B, 2D)) is the one kind worth a compilation of its own.
    """
    if not isinstance(x, Tensor):
        return x
    x = x.detach()
    rows_apart = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) > x.shape[1]
    return x if rows_apart else x.contiguous()
