"""Cases of every op, for the tests that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaez_kernels.cases import OPS
from vaez_kernels.testing import Arguments, Case


def _chosen() -> Iterator[tuple[str, Case]]:
    """A float32 case of each op with several samples and rows, by name.

    The latent, Bernoulli and Gaussian fallbacks compile it; the others stay eager. An op with a
    decoder has two: one that it takes apart, and one that it calls.
    """
    for op, module in OPS.items():
        for called in (False, True):
            found = [
                case
                for case in module.cases()
                if (case.op, case.dtype, case.values) == (op, torch.float32, "normal")
                and case.called == called
                and min(case.shape) > 1
                and math.prod(case.shape[:3]) >= 500
            ]
            if found:
                yield f"{op}, called" if called else op, found[0]


CASES = dict(_chosen())


def arguments_of(name: str) -> Arguments:
    """The arguments of a case; each call gives new tensors."""
    given = OPS[CASES[name].op].inputs(CASES[name])
    return {key: x.clone() if isinstance(x, Tensor) else x for key, x in given.items()}


def tensors_of(name: str) -> dict[str, Tensor]:
    return {key: x for key, x in arguments_of(name).items() if isinstance(x, Tensor)}


# Each case, and each of its tensors that has a gradient.
LEAVES = [
    (name, leaf)
    for name, case in CASES.items()
    for leaf in OPS[case.op].LEAVES
    if arguments_of(name)[leaf].is_floating_point()
]


def outputs_of(name: str, arguments: Arguments) -> list[Tensor]:
    """All results of the op."""
    return list(OPS[CASES[name].op].call(CASES[name], arguments).values())


def outputs_and_gradients(name: str, arguments: Arguments) -> list[Tensor]:
    """All results of the op, and the gradients of their sum."""
    leaves = {leaf: arguments[leaf].detach().requires_grad_() for of, leaf in LEAVES if of == name}
    results = outputs_of(name, arguments | leaves)
    if not leaves:
        return results
    total = torch.stack([result.sum() for result in results]).sum()
    return [*results, *torch.autograd.grad(total, list(leaves.values()))]


def assert_close(name: str, actual: Tensor, wanted: Tensor) -> None:
    """Check results of the same formulas, which may be compiled or sum a row in another order.

    If operands are rounded to bfloat16, sums that differ in the last bit may round differently, by
    one unit in the last place.
    """
    case = CASES[name]
    rounds = OPS[case.op].RULES.operands(case, "fallback") != ""
    unit = 2.0**-7 if rounds else 2e-5
    atol = unit * max(1.0, float(wanted.detach().abs().max()))
    torch.testing.assert_close(actual, wanted, rtol=unit, atol=atol)
