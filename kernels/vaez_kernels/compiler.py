"""Inductor, the compiler behind `torch.compile`, where it can build code; eager PyTorch elsewhere.

Code is compiled from a traced graph and has no guards: nothing looks at the arguments of a call nor
at the settings of the process or thread (gradient mode, autocast, default device, dispatch modes,
…). So none of them may get into the code, and callers vouch for the arguments.
"""

from __future__ import annotations

import contextvars
import functools
import re
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

_Result = TypeVar("_Result")
Code = Callable[..., Any]

# Type of device → why nothing more is compiled for it.
failures: dict[str, str] = {}


# Whether code can be built.


def has_cpu_compiler() -> bool:
    """Whether code for the CPU can be compiled, as far as is known; warns once where it cannot."""
    return "cpu" not in failures and finds_tools()


@functools.cache
def finds_tools() -> bool:
    """Whether a C++ compiler and Python's headers are here."""
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
    """Why code for the CPU cannot be compiled, found out by compiling some; None where it can."""
    if has_cpu_compiler():
        one = example(2)
        isolated(lambda: compiled_without_guards(torch.neg, one))
    return failures.get("cpu")


# Away from the caller's settings.


def isolated(work: Callable[[], _Result]) -> _Result:
    """What `work` returns, where none of the caller's settings reach it and nobody else compiles.

    A fresh thread has none of them: no dispatch or function modes, no functorch level, no autocast,
    no default device, gradients on. It keeps the caller's context variables (the backend that is
    forced, settings of inductor), and the process's settings (the default dtype).
    """
    if _compiles_already():
        return work()
    _keep_first_tracing_thread_alive()
    done: Future[_Result] = Future()

    def alone() -> None:
        try:
            # Of two threads that trace at once one dies. This lock is torch.compile's own.
            from torch._dynamo.convert_frame import compile_lock

            with compile_lock:
                done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(alone,)).start()
    return done.result()


@functools.cache
def _keep_first_tracing_thread_alive() -> None:
    # Torch 2.11 without a GPU keeps a substitute for it in the thread that traces first, and
    # crashes when it looks for that after the thread has ended. So the first thread to trace is one
    # that lives as long as the process.
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
    # whether this thread holds the lock, and would wait for itself for ever
    lock = getattr(sys.modules.get("torch._dynamo.convert_frame"), "compile_lock", None)
    return lock is not None and lock._is_owned()


# So many pieces of code are kept for one function; then the oldest is forgotten.
MOST_KEPT = 256


class compiled_once:
    """Keeps what `build` makes for each key; threads that ask for the same one wait for one build.

    A call gives None, for the time being, inside another compilation.
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


def kind(x: Any) -> object:
    """What code is compiled for: of a tensor all but its sizes above 1, of the rest the value."""
    if not isinstance(x, Tensor):
        return x
    return (x.dtype, x.is_contiguous(), *(n == 1 for n in x.shape))


def canonical(x: Any) -> Any:
    """A tensor in one of the two layouts that code is compiled for: rows apart, and contiguous.

    Rows apart (a chunk of (B, 2D)) is the one other layout worth a compilation of its own.
    """
    if not isinstance(x, Tensor):
        return x
    rows_apart = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) > x.shape[1]
    return x if rows_apart else x.contiguous()


# Sizes to compile for, by the name of a dimension, and distances of rows. Tracing takes equal
# numbers for one and the same, so no two are equal; they are large enough for threads to pay.
SIZES = {"S": 3, "B": 509, "D": 61, "P": 787}
DISTANCES = (1009, 1013, 1019, 1021, 1031)


@compiled_once
def compiled(function: Callable[..., Any], dims: str, kinds: tuple[object, ...]) -> Code | None:
    """`function` compiled for arguments of these kinds; the code takes those that are tensors.

    Args:
        function: of tensors first, then of the rest; a tensor may be None.
        dims: a word for each tensor, a letter of `SIZES` for each of its dimensions: "SBD BD".
            Dimensions of one letter are of one size in every call, or that is not checked.
        kinds: of each argument, made canonical.
    """
    words = dims.split()
    examples = [
        _like(of, word, distance)
        for of, word, distance in zip(kinds, words, DISTANCES, strict=False)
        if isinstance(of, tuple)
    ]

    return compiled_without_guards(of_tensors(function, kinds), *examples)


def of_tensors(function: Callable[..., Any], kinds: tuple[object, ...]) -> Callable[..., Any]:
    """`function` of its tensors alone, the other arguments being those of `kinds`."""

    def given(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        return function(*(next(rest) if isinstance(of, tuple) else of for of in kinds))

    return given


def _like(of: tuple[Any, ...], letters: str, distance: int) -> Tensor:
    dtype, contiguous, *is_one = of
    shape = [1 if one else SIZES[letter] for one, letter in zip(is_one, letters, strict=True)]
    if contiguous:
        return example(*shape, dtype=dtype)
    return example(shape[0], distance, dtype=dtype)[:, : shape[1]]


def compiled_without_guards(
    function: Callable[..., Any], *examples: Tensor, **options: Any
) -> Code | None:
    """`function` compiled for tensors of the examples' dtypes and dimensions, contiguous, any size.

    torch.compile looks at every argument before it runs a graph, which costs a small one more than
    its work: 16,384 normals in 80 µs, in 38 without. Here nobody looks: the caller vouches for the
    arguments, and for sizes above 1. The examples' sizes should be those of typical work, because
    inductor chooses by them whether threads pay.

    To be called inside `isolated`. None, and a warning once, where nothing can be built.
    """
    with torch.no_grad():
        graph = make_fx(function, tracing_mode="symbolic")(*examples)
        return built(graph, examples, "from_graph", **options)


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor to compile for, whatever the process's default dtype is."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def sizes_unlike(count: int, *fixed: int) -> list[int]:
    """Example sizes for dimensions that vary: no two alike, and none like one that is fixed.

    A traced graph takes sizes that are equal in its examples for one and the same.
    """
    primes = (23, 41, 29, 37, 31, 43, 19, 47, 53, 59)
    return [n for n in primes if n not in fixed][:count]


def built(
    graph: GraphModule, examples: Sequence[Tensor], dynamic_shapes: Any, **options: Any
) -> Code | None:
    """`graph` compiled by inductor alone, with its `options`; None where that fails.

    The first failure says so in a warning, and is the last attempt: what is amiss (a directory that
    cannot be written to, a broken compiler) will be so for the next graph, too.
    """
    import torch._inductor
    import torch._inductor.config as inductor

    device = examples[0].device.type
    if device in failures:
        return None
    try:
        with inductor.patch(options | thread_options()):
            return with_whole_libraries(
                lambda: torch._inductor.standalone_compile(
                    graph, list(examples), dynamic_shapes=dynamic_shapes
                )
            )
    except Exception as error:
        _give_up(device, _first_words(error))
        return None


def _first_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else "no reason was given"
    return f"building code failed with {type(error).__name__}: {reason}"


def thread_options() -> dict[str, Any]:
    """Options that keep code compiled for one thread apart from code for several.

    torch.compile's cache on disk does not: a loop that was compiled under OMP_NUM_THREADS=1 would
    be run by one thread ever after (a million normals in 3.8 ms instead of 2.1).
    """
    return {"cpp.threads": 1} if torch.get_num_threads() == 1 else {}


def with_whole_libraries(build: Callable[[], _Result]) -> _Result:
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
