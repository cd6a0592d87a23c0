"""Which implementation runs an op: the Triton kernel or its PyTorch fallback (twin.py)."""

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
from torch.autograd import forward_ad

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows have only the fallback
    triton = None
    tl = None

# Major and minor; (0, 0) without triton.
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2])) if triton else (0, 0)


def _make_cache_directory() -> None:
    # PyTorch creates it whenever it traces a graph, and raises if it cannot.
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
    "autocast_device",
    "goes_through_op",
    "has_fast_bfloat16",
    "interpreting",
    "is_plain",
    "is_recorded",
    "is_traced",
    "jit",
    "jit_with_run_time",
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
ORDINARY = (Tensor, torch.nn.Parameter)

_F = TypeVar("_F", bound=Callable[..., Any])
# None: no backend is forced in this thread (or asyncio task).
_forced: ContextVar[str | None] = ContextVar("vaez_backend", default=None)


def jit(function: _F) -> _F:
    """`triton.jit` if triton is installed; else the function itself: the fallback shares some."""
    return triton.jit(function) if triton is not None else function


def jit_with_run_time(*names: str) -> Callable[[_F], _F]:
    """`jit` for a kernel that is not compiled again for values of these integers.

    By default Triton compiles a kernel anew where an integer is 1, and where it is a multiple of
    16.
    """
    if triton is None:
        return lambda function: function
    decorator: Callable[[_F], _F] = triton.jit(do_not_specialize=list(names))
    return decorator


def undecorated(function: _F) -> _F:
    """The Python function that was passed to `jit`: the fallback calls it if both share one body.

    Kernels must call the decorated function by the name in its `def`: inductor copies the source
    of a helper, so kernels would not find it under an alias.
    """
    return getattr(function, "fn", function)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 at the first import)."""
    return triton is not None and not isinstance(_probe, triton.runtime.JITFunction)


@jit
def _probe() -> None:
    pass


def _mend_interpreter() -> None:
    # Triton 3.6 calls int() on a loop bound that is a one-element array, which numpy 2.5 refuses.
    # Triton 3.7 takes the array's only element instead.
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


if interpreting() and TRITON_VERSION == (3, 6):
    _mend_interpreter()


def launcher(kernel: Any) -> Any:
    """The kernel in the form that a traced op must launch (kernel[grid](…))."""
    if isinstance(kernel, triton.runtime.JITFunction):
        return torch.library.wrap_triton(kernel)
    return kernel  # interpreted functions cannot be traced, and torch 2.11 cannot wrap them


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every op inside the block to `"torch"` (the fallback) or `"triton"` (the kernels).

    It overrides the environment variable VAEZ_BACKEND and applies to the thread (or asyncio task)
    that entered it. Backward always runs on the backend of its forward. A `torch.compile`d function
    keeps the backend that was in force when it was compiled.

    Raises:
        ValueError: `name` is neither.
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

    CUDA tensors use the kernel, all others the fallback. float64 always uses the fallback.
    `use_backend` or VAEZ_BACKEND=torch|triton forces one of them.

    Raises:
        ValueError: VAEZ_BACKEND has any other value.
        RuntimeError: triton is forced but cannot run here.
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
    """Whether a call can skip the dispatcher: ordinary tensors, and no mode or transform is active.

    A tracer, a dispatch mode (`FlopCounterMode`) or a functorch transform must see the op, because
    it cannot look into compiled code. The dispatcher adds 40 µs to a call, a third of its time at
    128×20.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.maybe_current_level() is not None:
        return False
    for t in tensors:  # all() of a generator would take a microsecond longer  # noqa: SIM110
        if t is not None and type(t) not in ORDINARY:
            return False
    return True


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd must see a call: for its backward, or to refuse a forward-mode derivative.

    The autograd.Function of a call takes 8 µs, a tenth of its time at 128×20.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for t in tensors:  # as in is_plain
            if t is not None and t.requires_grad:
                return True
    return False


def is_traced(tensor: Tensor) -> bool:
    """Whether the computation inside an op is traced, judged by one of the op's arguments.

    Faster than `is_plain`, because functorch transforms do not reach the inside of an op.
    """
    if type(tensor) not in ORDINARY:
        return True
    # Outside an op Dynamo itself reads this function, and has no length of that stack.
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0


def autocast_device(tensor: Tensor) -> str:
    """The device type under which autocast knows the tensor's computations."""
    # There is no autocast for meta tensors, which compute nothing.
    return "cpu" if tensor.is_meta else tensor.device.type


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not change the dtype of our matrix products."""
    return torch.autocast(autocast_device(tensor), enabled=False)


def goes_through_op(*upstream: Tensor | None) -> bool:
    """Whether backward must run as a registered op: if it is observed, or with create_graph=True.

    The registered backward op then refuses a second derivative.
    """
    return torch.is_grad_enabled() or not is_plain(*upstream)


def same_backend(triton_ran: bool) -> AbstractContextManager[None]:
    """A context in which backward runs on the backend of its forward.

    Backward may be called outside the `use_backend` block of its forward, and in another thread.
    """
    return use_backend("triton" if triton_ran else "torch")


def no_second_derivative(*_: Any) -> None:
    """The backward of every backward op. It raises, because autograd reads None as zero."""
    raise RuntimeError(
        "vaez_kernels: the ops have no second derivative; "
        "differentiate the formulas of vaez_kernels.reference instead"
    )
