"""Inductor, the compiler behind `torch.compile`, where it can build code; eager PyTorch elsewhere.

Code is compiled from a traced graph and has no guards. A call checks neither its arguments nor the
settings of the process or thread (gradient mode, autocast, default device, dispatch modes, …). So
compiled code must not depend on these settings, and the caller must pass tensors of the traced
shapes and dtypes.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import math
import re
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from .backend import is_traced
from .first_build import instruction_set_options, start_on_header

_Result = TypeVar("_Result")
Code = Callable[..., Any]

# Device type → why no more code is compiled for it.
failures: dict[str, str] = {}


# Whether code can be built.


def has_cpu_compiler() -> bool:
    """Whether CPU code can be compiled, as far as is known so far; warns once if it cannot."""
    return "cpu" not in failures and finds_tools()


@functools.cache
def finds_tools() -> bool:
    """Whether a C++ compiler and Python's headers are installed."""
    return isolated(_search)


def _search() -> bool:
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
        _give_up("cpu", f"{' and '.join(missing)} not found")
    return not missing


def _give_up(device: str, reason: str) -> None:
    if device in failures:
        return
    failures[device] = reason
    warnings.warn(
        f"{reason}: torch.compile cannot build {device.upper()} code, so vaez_fast runs in eager "
        "PyTorch (correct, several times slower).",
        RuntimeWarning,
        stacklevel=3,
    )


def reason_for_eager() -> str | None:
    """Why CPU code cannot be compiled, found by a trial compilation; None if it can."""
    if has_cpu_compiler():
        one = example(2)
        isolated(lambda: compiled_without_guards(torch.neg, one))
    return failures.get("cpu")


# Compilation without the caller's settings.


def isolated(work: Callable[[], _Result]) -> _Result:
    """The result of `work`, run without the caller's thread settings while nothing else compiles.

    It runs in a fresh thread, which has no dispatch or function modes, no functorch level, no
    autocast, no default device, and gradients on. The thread keeps the caller's context variables
    (the forced backend, settings of inductor) and the settings of the process (the default dtype).
    """
    if _compiles_already():
        return work()
    _keep_first_tracing_thread_alive()
    done: Future[_Result] = Future()

    def alone() -> None:
        try:
            # If two threads trace at once, one fails. This is the lock that torch.compile uses.
            from torch._dynamo.convert_frame import compile_lock

            with compile_lock:
                done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(alone,)).start()
    return done.result()


@functools.cache
def _keep_first_tracing_thread_alive() -> None:
    # Without a GPU, torch 2.11 stores a substitute for it in the thread that traces first, and
    # crashes if it needs the substitute after that thread has ended. So the first thread to trace
    # must live as long as the process.
    if torch.cuda.is_available():
        return
    ready: Future[None] = Future()

    def trace_and_stay() -> None:
        with FakeTensorMode():
            ready.set_result(None)
        threading.Event().wait()

    threading.Thread(target=trace_and_stay, daemon=True).start()
    ready.result()


def _compiles_already() -> bool:
    # whether this thread already holds the lock: waiting for it would be a deadlock
    lock = getattr(sys.modules.get("torch._dynamo.convert_frame"), "compile_lock", None)
    return lock is not None and lock._is_owned()


# Compiled variants that one cache keeps; beyond that the oldest is dropped.
MOST_KEPT = 256


class compiled_once:
    """Caches the result of `build` for each key. Threads with the same key wait for one build.

    A call inside another compilation returns what is cached, else None, and caches nothing.
    """

    def __init__(self, build: Callable[..., Code | None]) -> None:
        self.build = build
        self.kept: dict[tuple[Any, ...], Code | None] = {}

    def __call__(self, *key: Any) -> Code | None:
        try:
            return self.kept[key]
        except KeyError:
            return None if _compiles_already() else isolated(lambda: self._first(key))

    def _first(self, key: tuple[Any, ...]) -> Code | None:
        if key not in self.kept:
            if len(self.kept) >= MOST_KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = self.build(*key)
        return self.kept[key]


# From functions to code.


def described(x: Any) -> tuple[Any, object]:
    """An argument in a layout that code is compiled for, and what code is specialised on.

    Of a tensor, that is a tuple of its dtype, its layout, and whether each of its sizes is 1. Any
    other argument is specialised on its value, which must not be a tuple.
    """
    if not isinstance(x, Tensor):
        return x, x
    layout = _layout(x)
    if layout is None:
        x, layout = x.contiguous(), "contiguous"
    return x, (x.dtype, layout, *[n == 1 for n in x.shape])


def _layout(x: Tensor) -> str | None:
    """The layout, if it is one of three that code is compiled for.

    - "contiguous";
    - "rows apart": (B, …) in a wider tensor, such as one half of (B, 2D);
    - "lines apart": (B, N, C) in a tensor (B, N, more than C), such as channels that come last.
    """
    if x.is_contiguous():
        return "contiguous"
    if x.dim() not in (2, 3) or x.stride(-1) != 1 or x.numel() == 0:
        return None
    lines, line = x.shape[1], x.stride(1) if x.dim() == 3 else 1
    if x.dim() == 2 or line == x.shape[2]:
        return "rows apart" if x.stride(0) > lines * line else None
    together = x.shape[0] == 1 or x.stride(0) == lines * line
    return "lines apart" if line > x.shape[2] > 1 and lines > 1 and together else None


# Example sizes for compilation, by the name of a dimension, and distances between rows or lines.
# Tracing treats equal numbers as the same size, so all of them differ. They are large enough to
# make threads worthwhile.
SIZES = {"S": 3, "B": 509, "D": 61, "P": 787, "I": 11, "C": 17, "N": 211, "F": 5}
# Columns that are a multiple of four, the noise's key and layout, nothing.
SIZES |= {"Q": 60, "K": 2, "L": 4, "0": 0}
DISTANCES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061)


@compiled_once
def compiled(
    function: Callable[..., Any],
    dims: str,
    kinds: tuple[object, ...],
    options: tuple[tuple[str, Any], ...] = (),
) -> Code | None:
    """`function` compiled for arguments of these kinds; the code takes only the tensors.

    Args:
        function: takes tensors first, then the other arguments; a tensor may be None.
        dims: a word for each tensor, with a letter of `SIZES` for each of its dimensions: "SBD BD".
            In every call, dimensions with the same letter must have the same size; this is not
            checked.
        kinds: what `described` says of each argument.
        options: of inductor.
    """
    tensors = [
        (of, word, distance)
        for of, word, distance in zip(kinds, dims.split(), DISTANCES, strict=False)
        if isinstance(of, tuple)
    ]
    sizes = _sizes([(word, of[2:]) for of, word, _ in tensors])
    examples = [_like(of, [sizes[n] for n in word], distance) for of, word, distance in tensors]
    return compiled_without_guards(of_tensors(function, kinds), *examples, **dict(options))


def run(function: Callable[..., Any], dims: str, largest: Tensor, *args: Any) -> Any:
    """`function(*args)`, compiled if `compiles(largest)`.

    Args:
        function, dims: as for `compiled`.
        largest: the largest argument, in the dtype of the computation.
    """
    found = run_compiled(function, dims, args) if compiles(largest) else None
    return function(*args) if found is None else found


def compiles(x: Tensor) -> bool:
    """Whether a computation on x is compiled: on a CPU, not traced, not empty, not in float64."""
    on_cpu = x.is_cpu and x.dtype != torch.float64 and not is_traced(x)
    return on_cpu and x.numel() > 0 and has_cpu_compiler()


def run_compiled(
    function: Callable[..., Any],
    dims: str,
    args: tuple[Any, ...],
    options: tuple[tuple[str, Any], ...] = (),
) -> Any:
    """The results of `function(*args)` by compiled code; None if it cannot be built.

    The arguments are those of `compiled`.
    """
    args, kinds = zip(*[described(x) for x in args], strict=True)
    code = compiled(function, dims, kinds, options)
    return None if code is None else code(*[x for x in args if isinstance(x, Tensor)])


def of_tensors(function: Callable[..., Any], kinds: tuple[object, ...]) -> Callable[..., Any]:
    """`function` of only its tensors; the other arguments are taken from `kinds`."""

    def given(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        return function(*(next(rest) if isinstance(of, tuple) else of for of in kinds))

    return given


# Inductor gives a loop as many threads as there are 512 elements: so many are worth 58.
MANY = 30_000


def _sizes(tensors: list[tuple[str, Sequence[bool]]]) -> dict[str, int]:
    """Example sizes for the letters of tensors, of which some sizes are known to be 1.

    If few elements are left, such as in a single row, its last open dimension is long.
    """

    def elements(tensor: tuple[str, Sequence[bool]]) -> int:
        return math.prod(1 if one else SIZES[n] for n, one in zip(*tensor, strict=True))

    word, is_one = max(tensors, key=elements)
    longest = [n for n, one in zip(word, is_one, strict=True) if not one][-1:]
    factor = -(-MANY // elements((word, is_one)))
    return SIZES | {n: SIZES[n] * factor for n in longest}


def _like(of: tuple[Any, ...], sizes: list[int], distance: int) -> Tensor:
    dtype, layout, *is_one = of
    shape = [1 if one else size for one, size in zip(is_one, sizes, strict=True)]
    if layout == "contiguous":
        return example(*shape, dtype=dtype)
    if layout == "lines apart":
        return example(*shape[:2], shape[2] + distance, dtype=dtype)[:, :, : shape[2]]
    size = math.prod(shape[1:])
    return example(shape[0], size + distance, dtype=dtype)[:, :size].view(shape)


def compiled_without_guards(
    function: Callable[..., Any], *examples: Tensor, **options: Any
) -> Code | None:
    """`function` compiled for tensors of the examples' dtypes, ranks and layouts.

    torch.compile checks every argument before it runs a graph. For a small graph the checks take
    longer than the work: 16,384 normals take 80 µs with them and 38 µs without. Here calls skip
    these guards; the caller must pass tensors of the traced dtypes and ranks, with sizes above 1.
    The examples should have typical sizes, because inductor decides by them whether to use threads.

    Must be called inside `isolated`. Returns None, and warns once, if nothing can be built.
    """
    with torch.no_grad():
        graph = make_fx(function, tracing_mode="symbolic")(*examples)
        code = built(graph, examples, "from_graph", **options)
    return None if code is None else _unwrapped(code, graph)


def _unwrapped(code: Any, graph: GraphModule) -> Code:
    """`code` without its wrappers, which handle gradients and changed arguments.

    They take 8 to 15 µs of a small call whose code is not in the processor's caches.
    """
    from torch._inductor.output_code import CompiledFxGraph

    inner = inspect.unwrap(code._compiled_fn)
    if not isinstance(inner, CompiledFxGraph):
        return cast(Code, code)  # this PyTorch wraps it in another way
    call: Any = inner.current_callable
    if isinstance(graph.graph.output_node().args[0], Node):
        return lambda *tensors: call(list(tensors))[0]
    return lambda *tensors: call(list(tensors))


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor to compile for, independent of the process's default dtype."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def sizes_unlike(count: int, *fixed: int) -> list[int]:
    """Example sizes for variable dimensions, different from each other and from the fixed sizes.

    A traced graph treats sizes that are equal in its examples as the same size.
    """
    primes = (23, 41, 29, 37, 31, 43, 19, 47, 53, 59)
    return [n for n in primes if n not in fixed][:count]


def built(
    graph: GraphModule,
    examples: Sequence[Tensor],
    dynamic_shapes: Any,
    *,
    alone: bool = False,
    **options: Any,
) -> Code | None:
    """`graph` compiled by inductor alone, with its `options`; None if that fails.

    The first failure on a device type causes a warning and ends all further attempts: its cause (a
    directory that is not writable, a broken compiler) would make the next graph fail, too. A graph
    that stands `alone`, that of a user's model, may itself be the cause: it causes a warning only.
    """
    import torch._inductor
    import torch._inductor.config as inductor

    device = examples[0].device.type
    if device in failures:
        return None
    try:
        if device == "cpu":
            start_on_header()
            options |= instruction_set_options() | thread_options()
        with inductor.patch(options):
            return with_whole_libraries(
                lambda: torch._inductor.standalone_compile(
                    graph, list(examples), dynamic_shapes=dynamic_shapes
                )
            )
    except Exception as error:
        if alone:
            warnings.warn(
                f"{_first_words(error)}: this graph runs in eager PyTorch (correct, several times "
                "slower)",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _give_up(device, _first_words(error))
        return None


def _first_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else "no reason was given"
    return f"building code failed with {type(error).__name__}: {reason}"


def thread_options() -> dict[str, Any]:
    """Options that keep code compiled for one thread apart from code for several.

    torch.compile's cache on disk does not distinguish them: a loop compiled under
    OMP_NUM_THREADS=1 would always run on one thread later (a million normals in 3.8 ms instead of
    2.1).
    """
    return {"cpp.threads": 1} if torch.get_num_threads() == 1 else {}


def with_whole_libraries(build: Callable[[], _Result]) -> _Result:
    """The result of `build`; truncated libraries in the cache are removed and built again.

    The compiler writes to the final file name in inductor's cache on disk. If a process is killed
    while it writes, it leaves a truncated library, and every later process fails to load it. (Of
    120 links by GNU ld that were killed, 78 left an empty file and 12 a file without a header.)
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
            # The file is already gone if another process has just removed it.
            Path(half[1]).unlink(missing_ok=True)
