"""A case of every op, for the tests that hold for all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Module

from vaez_kernels.cases import OPS
from vaez_kernels.testing import Arguments, Case


def medium_case(op: str) -> Case:
    """A float32 case of an op with several samples and rows, large enough to be compiled."""
    return next(
        case
        for case in OPS[op].cases()
        if case.op == op
        and case.dtype == torch.float32
        and case.values == "normal"
        and min(case.shape) > 1
        and math.prod(case.shape[:3]) >= 500
    )


CASES = {op: medium_case(op) for op in OPS}
LEAVES = [
    (op, leaf)
    for op, case in CASES.items()
    for leaf in OPS[op].LEAVES
    if OPS[op].inputs(case)[leaf].is_floating_point()
]


def arguments_of(op: str) -> Arguments:
    """The arguments of the op's case; each call gives new tensors."""
    given = OPS[op].inputs(CASES[op])
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}


def outputs_of(op: str, arguments: Arguments) -> list[Tensor]:
    """All results of the op."""
    return list(OPS[op].call(CASES[op], arguments).values())


def outputs_and_gradients(op: str, arguments: Arguments) -> list[Tensor]:
    """All results of the op, and the gradients of their sum."""
    leaves = {name: arguments[name].detach().requires_grad_() for of, name in LEAVES if of == op}
    results = outputs_of(op, arguments | leaves)
    if not leaves:
        return results
    total = torch.stack([result.sum() for result in results]).sum()
    return [*results, *torch.autograd.grad(total, list(leaves.values()))]


def on_meta(arguments: Arguments) -> Arguments:
    return {
        name: x.to("meta") if isinstance(x, Tensor | Module) else x for name, x in arguments.items()
    }


def assert_close(op: str, actual: Tensor, wanted: Tensor) -> None:
    """Check results of the same formulas, which may be compiled or sum a row in another order.

    If operands are rounded to bfloat16, sums that differ in the last bit may round differently, by
    one unit in the last place.
    """
    rounds = OPS[op].RULES.operands(CASES[op], "fallback") != ""
    unit = 2.0**-7 if rounds else 2e-5
    atol = unit * max(1.0, float(wanted.detach().abs().max()))
    torch.testing.assert_close(actual, wanted, rtol=unit, atol=atol)
