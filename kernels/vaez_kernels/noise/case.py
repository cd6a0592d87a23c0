"""Cases of the noise stream. There is no textbook code for its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import reference
from ..error_bounds import Rules
from ..testing import KEY, LARGE_LATENT_SHAPES, LATENT_SHAPES, VALUES_SHAPE, Case, Tensors
from . import normal, uniform

OPS = ("normal", "uniform")
RULES = Rules()


def cases() -> Iterator[Case]:
    for op in OPS:
        for shape in LATENT_SHAPES:
            yield Case(op, shape, torch.float32)
        yield Case(op, VALUES_SHAPE, torch.float32, row_offset=2**40 + 3)


def large_cases() -> Iterator[Case]:
    return (Case(op, shape, torch.float32) for op in OPS for shape in LARGE_LATENT_SHAPES)


def inputs(case: Case) -> Tensors:
    return {}


def ours(case: Case, device: torch.device) -> Tensors:
    draw = normal if case.op == "normal" else uniform
    S, B, D = case.shape
    return {"n": draw(KEY.to(device), S, B, D, row_offset=case.row_offset).cpu()}


def truth(case: Case, rounded: bool = False) -> Tensors:
    draw = reference.normal if case.op == "normal" else reference.uniform
    S, B, D = case.shape
    return {"n": draw(KEY, S, B, D, row_offset=case.row_offset)}


def textbook(case: Case, operands: str = "") -> None:
    return None
