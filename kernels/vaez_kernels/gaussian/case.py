"""Cases of the Gaussian likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.distributions import Normal

from ..error_bounds import Rules
from ..testing import DTYPES, VALUES_SHAPE, Arguments, Case, Tensors
from . import gaussian_log_prob

OPS = ("gaussian_log_prob",)
SHAPES = ((1, 1, 1), (9, 7, 19), (1, 129, 784), (3, 7, 784))  # S, B, P
LARGE = (8, 256, 784)
LEAVES = ("mean", "logvar")
RULES = Rules()


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in SHAPES:
            yield Case("gaussian_log_prob", shape, dtype)
        yield Case("gaussian_log_prob", VALUES_SHAPE, dtype, halves=True)
        if dtype != torch.float16:  # whose gradients would overflow
            yield Case("gaussian_log_prob", VALUES_SHAPE, dtype, "wide")


def large_cases() -> Iterator[Case]:
    return (Case("gaussian_log_prob", LARGE, dtype) for dtype in DTYPES)


def inputs(case: Case) -> Arguments:
    generator = torch.Generator().manual_seed(7)
    samples, rows, pixels = case.shape
    mean, logvar = torch.randn((samples, rows, 2 * pixels), generator=generator).chunk(2, 2)
    if case.values == "wide":
        mean, logvar = 10.0 * mean, (3.0 * logvar).clamp(-12.0, 6.0)
    both = torch.cat((mean, logvar), 2).to(case.dtype)
    mean, logvar = both.chunk(2, 2)
    x = torch.rand(case.shape[1:], generator=generator)
    if case.halves:  # of one tensor, and targets of another dtype
        return {"mean": mean, "logvar": logvar, "x": (x > 0.5).to(torch.uint8)}
    return {"mean": mean.contiguous(), "logvar": logvar.contiguous(), "x": x.to(case.dtype)}


def call(case: Case, arguments: Arguments) -> Tensors:
    return {"log_prob": gaussian_log_prob(**arguments)}


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    mean, logvar, x = arguments.values()
    squares = (x - mean).square() * torch.exp(-logvar)
    return {"log_prob": -0.5 * (squares + logvar + math.log(2.0 * math.pi)).sum(2)}


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    mean, logvar, x = arguments.values()
    p = Normal(mean, torch.exp(0.5 * logvar), validate_args=False)
    return {"log_prob": p.log_prob(x).sum(2)}
