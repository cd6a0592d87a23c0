"""The bounds that an op's errors are held to: the rule for all ops, and `Rules` for exceptions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The allowed error of a number beyond PyTorch's own error in the same dtype, relative to 1 or to
# the largest number of the output if that is larger. It is what the ops promise for float32
# arithmetic. bfloat16 and float16 outputs may err by one more ulp of the largest number (a GPU
# rounds to nearest, the interpreter truncates).
ERROR = 1e-6
# The analytic KL is a sum of positive terms, and its gradient is a product of exact factors. So
# their errors must be small relative to their values, down to a KL of 1e-8.
KL_ERROR = 1e-5
# The allowed error of one number, relative to the size of its terms. 1e-6 is what the ops promise
# for float32 arithmetic; the other is the spacing of the dtype in which textbook code sums.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of `dtype` at |values|, float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double().abs().clamp(min=info.tiny))
    eps = torch.full_like(exponent, info.eps, dtype=torch.float64)
    return torch.ldexp(eps, exponent - 1)


@dataclass(frozen=True)
class Rules:
    """Where the requirements on an op's results differ from the common rule."""

    # Whether an output's error is bounded relative to each number, down to zero.
    promises_digits: Callable[[Any, str], bool] = lambda case, output: False
    # (output, all outputs in float64) → the factor on the output's tolerance.
    growth: Callable[[str, dict[str, Tensor]], float] = lambda output, wanted: 1.0
    # Whether the results come from matrix products, and what a backend rounds the operands of a
    # product to; empty if it does not round them.
    products: bool = False
    operands: Callable[[Any, str], str] = lambda case, backend: ""

    def tolerance(
        self, output: str, dtype: torch.dtype, wanted: dict[str, Tensor], rounded_operands: float
    ) -> float:
        """The allowed error of an output's numbers, beyond PyTorch's own in the same dtype.

        Args:
            output: its name.
            dtype: of the op's numbers.
            wanted: all outputs in float64.
            rounded_operands: the error that rounding a product's operands adds.
        """
        largest = wanted[output].abs().max()
        allowed = ERROR * max(1.0, float(largest)) * self.growth(output, wanted) + rounded_operands
        if dtype.itemsize == 2:
            # The gradient of a matrix product is rounded twice: its residual, then the result.
            allowed += (2 if self.products else 1) * float(spacing(largest, dtype))
        return allowed


@dataclass(frozen=True)
class Check:
    """`error` is the largest error found, in units of its tolerance: the check passes up to 1."""

    error: float
    against: str

    @property
    def passed(self) -> bool:
        return self.error <= 1.0  # False for NaN, too


def worst(errors: list[float]) -> float:
    """The largest error, or NaN if any is NaN."""
    return math.nan if any(math.isnan(e) for e in errors) else max(errors)
