"""Checks of kernels compiled for GPUs that are not present; see bench/bounds/builds.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from bench.bounds.builds import Binary, build, reason_to_skip, specialisation
from vaez_kernels.backend import TRITON_VERSION


def ceiling_by_triton(
    checked: int, *, before_3_8: int | None = None, from_3_9: int | None = None
) -> int:
    """The ceiling for triton 3.8, or another one for versions whose builds differ.

    Builds differ because of the versions of LLVM and ptxas: ptxas 12.8 before triton 3.8, and 12.9
    to 13.4 for Blackwell.
    """
    if before_3_8 is not None and TRITON_VERSION < (3, 8):
        return before_3_8
    if from_3_9 is not None and TRITON_VERSION >= (3, 9):
        return from_3_9
    return checked


def built(launch: Callable[..., Any], kernel: Any, args: tuple[Any, ...], target: str) -> Binary:
    """The binary that `launch(*args)` would run on `target`; skips if it cannot be compiled."""
    if reason := reason_to_skip(target):
        pytest.skip(reason)
    return build(specialisation(launch, kernel, *args), target)


def assert_in_registers(binary: Binary, registers: int = 512, spills: int = 0) -> None:
    assert binary.spills <= spills
    assert binary.stack <= 4 * spills
    # Older LLVMs store a scalar register in a vector register (for the masks of odd rows, and in
    # the decoder): two moves, without memory access.
    assert binary.parked <= ceiling_by_triton(0, before_3_8=2)
    assert binary.registers <= registers


def assert_lean(binary: Binary, target: str, registers: int, branches: int = 8) -> None:
    """Check that all data is in registers, without calls or slow paths for sine or logarithm."""
    assert_in_registers(binary, registers)
    assert binary.shared <= 4096  # bytes, of at least 64 KiB: odd rows are transposed through it
    if target == "gfx942":
        assert binary.count(r"v_(sin|cos|log)_|s_swappc|scratch_") == 0
        return
    # Library functions would be called, or would reduce large angles in a loop (Payne and Hanek).
    # The only branches are the loop over samples with its guards (ptxas unrolls it by four if it
    # draws no noise) and the trap at the end of every kernel.
    assert not re.search(r"^\s*(@\S+\s+)?call", binary.ir, re.M)
    assert binary.count(r"RET|MUFU\.(SIN|COS|LG2)") == 0
    assert binary.count("BRA") <= branches
