"""Which implementation runs an op: the Triton kernel or its PyTorch twin (the fallback)."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows: the fallback alone
    triton = None
    tl = None

# Major and minor; (0, 0) where there is none.
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2])) if triton else (0, 0)


def _make_cache_directory() -> None:
    # PyTorch makes it whenever it traces a graph, and fails where it cannot.
    directory = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not directory:
        return
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        other = tempfile.mkdtemp(prefix="vaez_fast_")
        atexit.register(shutil.rmtree, other, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = other
        warnings.warn(
            f"TORCHINDUCTOR_CACHE_DIR={directory} cannot be a directory ({error.strerror}): "
            "vaez_fast keeps compiled code in a temporary one, until this process ends.",
            RuntimeWarning,
            stacklevel=2,
        )


_make_cache_directory()

__all__ = [
    "BACKENDS",
    "TRITON_VERSION",
    "goes_through_op",
    "has_fast_bfloat16",
    "interpreting",
    "is_plain",
    "jit",
    "launcher",
    "no_second_derivative",
    "same_backend",
    "tl",
    "triton",
    "undecorated",
    "use_backend",
    "uses_triton",
    "without_autocast",
]

BACKENDS = ("torch", "triton")

_F = TypeVar("_F", bound=Callable[..., Any])
# None: nothing is forced in this thread (or asyncio task).
_forced: ContextVar[str | None] = ContextVar("vaez_backend", default=None)


def jit(function: _F) -> _F:
    """`triton.jit` where triton is installed; elsewhere the function itself, never to be run."""
    return triton.jit(function) if triton is not None else function


def undecorated(function: _F) -> _F:
    """The Python function that `jit` was given: for a formula of one body, what the twin calls.

    The decorated one must be defined under the name by which kernels call it, since inductor
    writes a helper down as its `def` says: kernels would not find it under an alias.
    """
    return getattr(function, "fn", function)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 at the first import)."""
    return triton is not None and not isinstance(_probe, triton.runtime.JITFunction)


@jit
def _probe() -> None:
    pass


def _mend_interpreter() -> None:
    # Triton 3.6 calls int() on the bound of a loop, a one-element array, which numpy 2.5 refuses.
    # Triton 3.7 takes its only element.
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


if interpreting() and TRITON_VERSION == (3, 6):
    _mend_interpreter()


def launcher(kernel: Any) -> Any:
    """The kernel in the form that a traced op body launches (kernel[grid](…))."""
    if isinstance(kernel, triton.runtime.JITFunction):
        return torch.library.wrap_triton(kernel)
    return kernel  # the interpreter's functions are not traceable, nor does torch 2.11 wrap them


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every op inside the block to `"torch"` (the fallback) or `"triton"` (the kernels).

    It outranks the environment variable VAEZ_BACKEND and holds for the thread (or asyncio task)
    that entered it. Backward runs on its forward's backend, wherever it is called. A
    `torch.compile`d function keeps the backend that was in force when it was compiled.

    Raises:
        ValueError: another name.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: name must be one of {', '.join(BACKENDS)}, got {name!r}")
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def uses_triton(tensor: Tensor) -> bool:
    """Whether an op on `tensor` launches the Triton kernel.

    CUDA tensors take it, all others the fallback; float64 always takes the fallback. `use_backend`
    or VAEZ_BACKEND=torch|triton force either.

    Raises:
        ValueError: VAEZ_BACKEND is set to another word.
        RuntimeError: triton is forced where it cannot run.
    """
    forced = _forced.get() or os.environ.get("VAEZ_BACKEND", "")
    if forced and forced not in BACKENDS:
        raise ValueError(f"VAEZ_BACKEND must be one of {', '.join(BACKENDS)}, got {forced!r}")
    if tensor.dtype == torch.float64 or forced == "torch":
        return False
    if forced != "triton":
        return tensor.is_cuda and triton is not None
    if triton is None:
        raise RuntimeError("backend 'triton' was forced, but triton is not installed")
    if not (tensor.is_cuda or interpreting()):
        raise RuntimeError(
            f"backend 'triton' was forced for a tensor on {tensor.device}: it needs a CUDA tensor, "
            "or TRITON_INTERPRET=1 set before the first import of vaez_kernels"
        )
    return True


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the call can skip the dispatcher: ordinary tensors, and nobody else watches it.

    A tracer, a dispatch mode (`FlopCounterMode`) or a functorch transform must see the op; compiled
    code hides what it does. Through the dispatcher a call costs 40 µs more, a third of all at
    128×20.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.maybe_current_level() is not None:
        return False
    return all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """The block in which our own products stay in the dtype that they are given."""
    # Of meta tensors, which compute nothing, there is no autocast to switch off.
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def goes_through_op(*upstream: Tensor | None) -> bool:
    """Whether a backward runs the op: where others watch it, or for create_graph=True.

    The op's own backward then refuses a second derivative.
    """
    return torch.is_grad_enabled() or not is_plain(*upstream)


def same_backend(triton_ran: bool) -> AbstractContextManager[None]:
    """The block in which backward runs on its forward's backend.

    It may be called outside the `use_backend` block of its forward, and in another thread.
    """
    return use_backend("triton" if triton_ran else "torch")


def no_second_derivative(*_: Any) -> None:
    """The backward of every backward op: refuses, where silence would be taken for zero."""
    raise RuntimeError(
        "vaez_kernels: the ops have no second derivative; "
        "differentiate the formulas of vaez_kernels.reference instead"
    )
