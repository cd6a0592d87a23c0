"""Public ops on CPU tensors whose kernels run as the PTX that Triton makes for a GPU.

As in Triton's interpreter the ops take their launchers and not their twins. But what runs is
compiled: the integers that Triton folded, the layouts, shuffles, barriers and units of a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from tests.executed.cases import Case
from tests.executed.global_traffic import Moved, counted
from tests.interpreted.watch import watch
from tests.kernels.helpers import Compared
from tests.ptx.launch import PtxKernel
from tests.ptx.traffic import Traffic
from tests.ptx.units import Units
from vaez_kernels import backend, importance, latent, launch, mixture, noise, use_backend
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import linear_bernoulli as linear_likelihood
from vaez_kernels.importance import kernel as decoder_kernel

# Where the ops look each kernel up.
KERNELS: tuple[tuple[ModuleType, str], ...] = (
    (noise, "noise_kernel"),
    (latent, "latent_forward_kernel"),
    (latent, "latent_backward_kernel"),
    (likelihood, "bernoulli_forward_kernel"),
    (likelihood, "bernoulli_backward_kernel"),
    (linear_likelihood, "linear_bernoulli_forward_kernel"),
    (linear_likelihood, "linear_bernoulli_hidden_kernel"),
    (linear_likelihood, "linear_bernoulli_weight_kernel"),
    (mixture, "mixture_forward_kernel"),
    (mixture, "mixture_backward_kernel"),
    (importance, "decoder_kernel"),
)


class Run(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    traffic: Traffic
    moved: Moved


class _Noted:
    """A kernel in the place of Triton's, whose launches are noted."""

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
    """Inside the block public ops launch their kernels' PTX, on CPU tensors; fresh memory is NaN.

    Args:
        target: the GPU that it is made for, "sm_80" or "sm_90"; launch parameters are its own.
        units: which results approximate instructions give.

    Yields:
        The launches, as they come.
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
    """A case, executed with approximate units' errors three ways."""

    outputs: dict[Units, list[Compared]]
    runs: list[Run]  # of the last


def execution(case: Case, target: str) -> Execution:
    outputs = {}
    for units in Units:
        with executed(target, units) as runs:
            outputs[units] = case.compare()
    return Execution(outputs, runs)


@functools.cache
def _built(kernel: Any, target: str, units: Units) -> PtxKernel:
    return PtxKernel(kernel, target, units)
