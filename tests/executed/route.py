"""Runs public ops on CPU tensors, with kernels executed as the PTX that Triton compiles for a GPU.

As under Triton's interpreter, the ops call their kernel launchers and not the PyTorch fallback.
Here the compiled code runs, with constants that Triton folded and with the layouts, shuffles,
barriers and units of a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from bench.bounds.builds import kernel_modules, kernels_of
from tests.executed.cases import Case
from tests.executed.global_traffic import Moved, counted
from tests.interpreted.watch import watch
from tests.kernels.helpers import Compared
from tests.ptx.launch import PtxKernel
from tests.ptx.traffic import Traffic
from tests.ptx.units import Units
from vaez_kernels import backend, launch, use_backend
from vaez_kernels.importance import kernel as decoder_kernel

# The module in which an op looks up each kernel.
KERNELS: tuple[tuple[ModuleType, str], ...] = tuple(
    (module, name) for module in kernel_modules() for name in kernels_of(module)
)


class Run(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    traffic: Traffic
    moved: Moved


def names_of(runs: list[Run]) -> list[str]:
    """The kernel of each run; the second launch of one kernel is backward's."""
    kernels = [run.kernel for run in runs]
    return [
        f"{kernel}, backward" if kernel in kernels[:index] else kernel
        for index, kernel in enumerate(kernels)
    ]


class _Noted:
    """Replaces a Triton kernel and records its launches."""

    def __init__(self, name: str, kernel: PtxKernel, runs: list[Run]) -> None:
        self.name, self.kernel, self.runs = name, kernel, runs

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            with counted(arguments) as moved:
                run = self.kernel[grid](*arguments, **constants)
            self.runs.append(Run(self.name, run.traffic, moved))

        return launch


@contextmanager
def executed(target: str, units: Units = Units.NEAREST) -> Iterator[list[Run]]:
    """Inside the block public ops execute their kernels' PTX on CPU tensors; fresh memory is NaN.

    Args:
        target: the GPU to compile for, "sm_80" or "sm_90". Launch parameters are those of this GPU.
        units: which results approximate instructions give.

    Yields:
        The list of launches, which grows as they happen.
    """
    runs: list[Run] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(backend, "interpreting", lambda: True))
        for module in (launch, decoder_kernel):
            stack.enter_context(patch.object(module, "architecture", lambda _: target))
        for module, name in KERNELS:
            kernel = _Noted(name, _built(getattr(module, name), target, units), runs)
            stack.enter_context(patch.object(module, name, kernel))
        watch(stack.enter_context(pytest.MonkeyPatch.context()))
        stack.enter_context(use_backend("triton"))
        yield runs


class Execution(NamedTuple):
    """A case, executed with all three Units."""

    outputs: dict[Units, list[Compared]]
    runs: list[Run]  # with the last Units


def execution(case: Case, target: str) -> Execution:
    outputs = {}
    for units in Units:
        with executed(target, units) as runs:
            outputs[units] = case.compare()
    return Execution(outputs, runs)


@functools.cache
def _built(kernel: Any, target: str, units: Units) -> PtxKernel:
    return PtxKernel(kernel, target, units)
