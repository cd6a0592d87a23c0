"""Cases of the noise stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import reference
from ..error_bounds import Rules
from ..testing import (
    KEY,
    LARGE_LATENT_SHAPES,
    LATENT_SHAPES,
    VALUES_SHAPE,
    Arguments,
    Case,
    Tensors,
)
from . import normal, uniform

OPS = ("normal", "uniform")
LEAVES = ()
RULES = Rules()
# There is no textbook code for the stream's numbers.
textbook = None


def cases() -> Iterator[Case]:
    for op in OPS:
        for shape in LATENT_SHAPES:
            yield Case(op, shape, torch.float32)
        yield Case(op, VALUES_SHAPE, torch.float32, row_offset=2**40 + 3)


def large_cases() -> Iterator[Case]:
    return (Case(op, shape, torch.float32) for op in OPS for shape in LARGE_LATENT_SHAPES)


def inputs(case: Case) -> Arguments:
    S, B, D = case.shape
    return {"noise": KEY, "S": S, "B": B, "D": D, "row_offset": case.row_offset}


def call(case: Case, arguments: Arguments) -> Tensors:
    draw = normal if case.op == "normal" else uniform
    return {"n": draw(**arguments)}


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    draw = reference.normal if case.op == "normal" else reference.uniform
    return {"n": draw(**arguments)}
