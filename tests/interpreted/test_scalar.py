"""Scalar formulas of the kernels, interpreted on the CPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vaez_kernels import interpreting
from vaez_kernels.backend import jit, tl
from vaez_kernels.scalar import exp_jit

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)


@jit
def _exp_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out_ptr + at, exp_jit(tl.load(x_ptr + at)))


def exp(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    kernel: Any = _exp_kernel
    kernel[(1,)](x, out, SIZE=len(x))
    return out


def test_exp_is_within_one_unit_in_the_last_place() -> None:
    x = torch.linspace(-87.0, 88.7, 1 << 20)
    wanted = x.double().exp()
    # Three quarters of the spacing of float32, 2⁻²³ relative to a power of two. 1.37 · 2⁻²⁴ was
    # measured over five million numbers.
    assert ((exp(x).double() - wanted).abs() / wanted).max() <= 1.5 * 2.0**-24


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_exp_of_what_is_too_large_too_small_or_no_number() -> None:
    x = torch.tensor([torch.inf, 89.0, -torch.inf, -104.0, torch.nan, 0.0, -100.0, 1e30])
    wanted = torch.tensor([torch.inf, torch.inf, 0.0, 0.0, torch.nan, 1.0, 3.783506e-44, torch.inf])
    torch.testing.assert_close(exp(x), wanted, rtol=0, atol=1.5e-45, equal_nan=True)
