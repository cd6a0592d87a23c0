"""Controls the stand-in from the process that runs on it: counts, clock, limits, executor.

Import this only under the variables of ``build.environment``, because it uses the preloaded
libcudart.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint, c_void_p
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(enum.IntEnum):
    """The kinds of log entries, numbered as in stand_in.h."""

    KERNEL = 0
    DRIVER_LAUNCH = 1
    PRODUCT = 2
    COPY = 3
    FILL = 4
    HOST_FUNCTION = 5
    EVENT_RECORD = 6
    CHILD_GRAPH = 7
    PYTHON = 8
    SYNCHRONISE = 9
    ALLOCATE = 10
    FREE = 11
    GRAPH_LAUNCH = 12
    CAPTURED = 13


COPY_KINDS = ("host to host", "host to device", "device to host", "device to device")


class Product(ctypes.Structure):
    """A matrix product, D = epilogue(alpha op(A) op(B) + beta C), stored by columns as in BLAS.

    Types are cudaDataType (0 float32, 1 float64, 2 float16, 14 bfloat16). ``transpose_a`` is 0 for
    A itself and 1 for its transpose. ``epilogue`` is a cublasLtEpilogue_t (1 none, 2 ReLU, 4 bias,
    6 both, 32 GELU, 36 bias and GELU). With ``pointer_arrays`` a, b and d hold ``batch`` pointers.
    """

    _fields_ = [
        *((name, c_int64) for name in ("m", "n", "k", "ld_a", "ld_b", "ld_c", "ld_d")),
        *((name, c_int64) for name in ("batch", "stride_a", "stride_b", "stride_c", "stride_d")),
        *((name, c_void_p) for name in ("a", "b", "c", "d", "_alpha", "_beta", "bias", "aux")),
        *(("ld_aux", c_int64), ("alpha", c_double), ("beta", c_double)),
        *((name, c_int) for name in ("transpose_a", "transpose_b", "type_a", "type_b", "type_c")),
        *((name, c_int) for name in ("type_d", "type_bias", "type_scale", "compute", "epilogue")),
        *((name, c_int) for name in ("device_scalars", "pointer_arrays")),
    ]


class _Entry(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("bytes", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("kind", "flags", "copy_kind", "unused")),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
    ]


_LAUNCH = ctypes.CFUNCTYPE(
    c_int64, c_int64, c_char_p, POINTER(c_uint), POINTER(c_uint), c_uint, c_void_p, c_int
)
_PRODUCT = ctypes.CFUNCTYPE(c_int64, POINTER(Product))
_REPLAY = ctypes.CFUNCTYPE(c_int64, c_int64)
_ATEN = ctypes.CFUNCTYPE(c_int64, c_char_p)


class _Executor(ctypes.Structure):
    _fields_ = [("launch", _LAUNCH), ("product", _PRODUCT), ("replay", _REPLAY), ("aten", _ATEN)]


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcudart.so.13")
    if not hasattr(library, "rehearsal_start_counting"):
        raise RuntimeError("this process does not run on the stand-in for CUDA")
    library.rehearsal_set_memory.argtypes = [c_size_t]
    library.rehearsal_set_duration.argtypes = [c_char_p, c_int64]
    library.rehearsal_stop_counting.argtypes = [POINTER(POINTER(_Entry))]
    library.rehearsal_stop_counting.restype = c_int64
    library.rehearsal_append_node.argtypes = [c_void_p, c_int64]
    library.rehearsal_set_executor.argtypes = [_Executor]
    return library


@functools.lru_cache(maxsize=4096)
def _demangled(name: bytes) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.argtypes = [c_char_p, c_void_p, c_void_p, POINTER(c_int)]
    demangle.restype = c_void_p
    text = demangle(name, None, None, ctypes.byref(c_int()))
    if not text:
        return name.decode()
    plain = ctypes.string_at(text).decode()
    free = ctypes.CDLL(None).free
    free.argtypes = [c_void_p]
    free(text)
    return plain


@dataclass(frozen=True)
class Happened:
    """One log entry. ``name`` is the name of the kernel or the API."""

    kind: Kind
    name: str
    bytes: int
    captured: bool
    legacy: bool
    copy: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int


@dataclass
class Counts:
    """Everything that happened inside ``counting``, in order."""

    happened: list[Happened] = field(default_factory=list)

    def _named(self, *kinds: Kind) -> Counter[str]:
        return Counter(h.name for h in self.happened if h.kind in kinds)

    @property
    def aten(self) -> Counter[str]:
        """Launches through the runtime (ATen's), by kernel."""
        return self._named(Kind.KERNEL)

    @property
    def triton(self) -> Counter[str]:
        """Launches through the driver (Triton's), by kernel."""
        return self._named(Kind.DRIVER_LAUNCH)

    @property
    def products(self) -> Counter[str]:
        """Products of cuBLAS and cuBLASLt, by function."""
        return self._named(Kind.PRODUCT)

    @property
    def copies(self) -> Counter[tuple[str, int]]:
        """Copies by kind ("host to device", …) and bytes."""
        return Counter((h.copy, h.bytes) for h in self.happened if h.kind is Kind.COPY)

    @property
    def fills(self) -> Counter[int]:
        """Fills by bytes."""
        return Counter(h.bytes for h in self.happened if h.kind is Kind.FILL)

    @property
    def synchronisations(self) -> Counter[str]:
        """Calls that waited for the device, by API."""
        return self._named(Kind.SYNCHRONISE)

    @property
    def allocations(self) -> Counter[tuple[str, int]]:
        """Allocations by API and bytes."""
        return Counter((h.name, h.bytes) for h in self.happened if h.kind is Kind.ALLOCATE)

    @property
    def graph_launches(self) -> int:
        return self._named(Kind.GRAPH_LAUNCH).total()

    @property
    def captured(self) -> list[int]:
        """The number of nodes of each graph whose capture ended."""
        return [h.bytes for h in self.happened if h.kind is Kind.CAPTURED]

    @property
    def launches(self) -> int:
        """Everything submitted to streams: kernels, products, copies and fills."""
        ran = (Kind.KERNEL, Kind.DRIVER_LAUNCH, Kind.PRODUCT, Kind.COPY, Kind.FILL)
        return self._named(*ran).total()

    @property
    def legacy(self) -> Counter[str]:
        """Work on the legacy stream, by name."""
        return Counter(h.name for h in self.happened if h.legacy)


def _happened(entry: _Entry) -> Happened:
    kind = Kind(entry.kind)
    name: bytes = entry.name
    return Happened(
        kind=kind,
        name=_demangled(name) if kind is Kind.KERNEL else name.decode(),
        bytes=entry.bytes,
        captured=bool(entry.flags & 1),
        legacy=bool(entry.flags & 2),
        copy=COPY_KINDS[entry.copy_kind] if kind is Kind.COPY else "",
        grid=tuple(entry.grid),
        block=tuple(entry.block),
        shared_bytes=entry.shared_bytes,
    )


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what happens inside the block. The counts are filled at its end. Do not nest it."""
    counts = Counts()
    _library().rehearsal_start_counting()
    try:
        yield counts
    finally:
        entries = POINTER(_Entry)()
        number = _library().rehearsal_stop_counting(ctypes.byref(entries))
        counts.happened = [_happened(entries[i]) for i in range(number)]


def set_duration(pattern: str, microseconds: float) -> None:
    """Set the device time of kernels and products whose name matches the shell pattern.

    Names of ATen's kernels are mangled. The pattern that was set last wins. A kernel that matches
    no pattern takes 2 µs.
    """
    if _library().rehearsal_set_duration(pattern.encode(), round(microseconds * 1e3)):
        raise ValueError(f"pattern {pattern!r}: too long, or too many are set")


def forget_durations() -> None:
    """Every kernel takes 2 µs again."""
    _library().rehearsal_forget_durations()


def set_memory(size: int) -> None:
    """Set the size of the device's memory in bytes. The default is 80 GiB."""
    _library().rehearsal_set_memory(size)


@functools.cache
def _ptx(module: int) -> bytes:
    text_of = ctypes.CDLL("libcuda.so.1").rehearsal_module_ptx
    text_of.argtypes, text_of.restype = [c_int64], c_char_p
    return text_of(module) or b""


def _guarded(call: Callable[..., int]) -> Callable[..., int]:
    """Print a callback's exception and make the launch fail; ctypes would ignore it."""

    @functools.wraps(call)
    def guarded(*arguments: object) -> int:
        try:
            return call(*arguments)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            return -1

    return guarded


class Launch(NamedTuple):
    """A launch through the driver, as the executor sees it."""

    ptx: bytes
    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    # The address of the array of pointers to the kernel's arguments, valid during the call.
    parameters: int
    capturing: bool


_kept: list[_Executor] = []


def set_executor(
    launch: Callable[[Launch], int] | None = None,
    replay: Callable[[int], int] | None = None,
    product: Callable[[Product], int] | None = None,
    aten: Callable[[str], int] | None = None,
) -> None:
    """Let Python compute what the device would from now on. Without arguments nothing is computed.

    ``launch`` gets every launch through the driver. It returns 0 or, while capturing, a node number
    above 0, which ``replay`` gets at each replay. ``product`` gets every matrix product when it has
    to be computed, also at replays. ``aten`` gets the name of every kernel that is launched through
    the runtime, also while capturing. All return 0. An exception makes the launch fail.
    """

    def on_launch(
        module: int,
        name: bytes,
        grid: object,
        block: object,
        shared: int,
        where: int,
        capturing: int,
    ) -> int:
        assert launch is not None
        dims = [tuple(dims[i] for i in range(3)) for dims in (grid, block)]  # type: ignore[index]
        ptx, is_capturing = _ptx(module), bool(capturing)
        return launch(Launch(ptx, name.decode(), dims[0], dims[1], shared, where, is_capturing))

    def on_product(described: object) -> int:
        assert product is not None
        return product(described.contents)  # type: ignore[attr-defined]

    def on_aten(name: bytes) -> int:
        assert aten is not None
        return aten(_demangled(name))

    executor = _Executor(
        _LAUNCH(_guarded(on_launch)) if launch else _LAUNCH(),
        _PRODUCT(_guarded(on_product)) if product else _PRODUCT(),
        _REPLAY(_guarded(replay)) if replay else _REPLAY(),
        _ATEN(_guarded(on_aten)) if aten else _ATEN(),
    )
    _kept.append(executor)  # C holds the pointers
    _library().rehearsal_set_executor(executor)


def append_node(stream: int, node: int) -> None:
    """Appends a node to the capture of ``stream`` (``torch.cuda.Stream.cuda_stream``).

    At each replay the executor's ``replay`` gets the number. Raises ``RuntimeError`` if the stream
    is not capturing.
    """
    if _library().rehearsal_append_node(stream, node):
        raise RuntimeError("the stream does not capture, or its capture is invalid")
