"""Results in a rehearsal: the CPU computes everything that the device would compute.

This is also a pytest plugin (`-p tests.rehearsal.results`), for all tests of the process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tests.rehearsal import aten, stand_in
from tests.rehearsal.kernels import prepared
from tests.rehearsal.products import multiply

# ATen kernels that are launched outside any op and compute nothing.
COMPUTE_NOTHING = ("spin_kernel",)  # torch.cuda._sleep

_numbers = itertools.count(1)
_works: dict[int, Callable[[], object]] = {}  # by the number of the node in a captured graph
_idle: dict[str, list[str]] = {}


def _keep(work: Callable[[], object]) -> int:
    number = next(_numbers)
    _works[number] = work
    return number


def execute(launch: stand_in.Launch) -> int:
    """Execute a launch. While capturing, keep it for replays and return the node's number."""
    work: Callable[[], object] = prepared(launch)
    if launch.name in _idle:
        _idle[launch.name].append(launch.name)
        work = _nothing
    if launch.capturing:
        return _keep(work)
    work()
    return 0


def _nothing() -> None:
    """The work of an idle kernel."""


def _replay(number: int) -> int:
    _works[number]()
    return 0


def _product(product: stand_in.Product) -> int:
    multiply(product)
    return 0


def _aten(name: str) -> int:
    if not aten.launched() and not any(known in name for known in COMPUTE_NOTHING):
        raise NotImplementedError(f"the rehearsal cannot compute ATen's kernel {name}")
    return 0


def _append(work: Callable[[], None]) -> None:
    stand_in.append_node(torch.cuda.current_stream().cuda_stream, _keep(work))


@contextmanager
def idle(kernel: str) -> Iterator[list[str]]:
    """Inside the block this kernel computes nothing. Yields the list of its launches."""
    _idle[kernel] = []
    try:
        yield _idle[kernel]
    finally:
        del _idle[kernel]


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Inside the block no kernel and no matrix product computes anything."""
    stand_in.set_executor(aten=_aten)
    try:
        yield
    finally:
        _compute_all()


def _compute_all() -> None:
    stand_in.set_executor(execute, _replay, _product, _aten)


def install() -> None:
    """Compute everything that this process launches from now on."""
    torch.cuda.init()
    _compute_all()
    aten.install(_append)


def pytest_configure() -> None:
    install()
