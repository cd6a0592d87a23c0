"""Inputs in awkward layouts and error bounds for the tests of the mixture's density.

Bounds, with u = 2⁻²⁴ (half a unit in the last place of float32, relative). In t = (z − mu)/σ the
difference, the exponential for 1/σ (within one ulp) and the product err by 4u, so t² errs by 9u.
Squares are summed 32 at a time, and then D/32 of these sums are added. Each addition errs by u of
its result, so a score −½Σt² + c errs by (41 + D/32)·u of ½Σt², and by u of c and of itself. The
error of a log-density is the mean of its components' score errors, weighted by responsibility, plus
u for each addition that an exponential takes part in (64 + N/16: in 16 lanes, then over lanes and
tiles), plus 2u each for exponential and logarithm, plus u of itself where it is rounded. The
relative error of a responsibility is the error of its own score plus that of the log-density. The
gradient errs by that for each term, by 6u for the term's factors and by u for each addition.
bfloat16 and float16 results are rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.kernels.helpers import ROUNDING, SUBNORMAL, Compared, assert_within
from vaez_kernels import mixture_log_prob, reference

Op = Callable[..., Tensor]

LAYOUTS = ("contiguous", "transposed", "step-2", "part", "one-row")
UNIT = 2.0**-24


class Mixture(NamedTuple):
    z: Tensor  # (M, D), requires a gradient
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    leave_out: Tensor | None = None  # (M,)


class Numbers(NamedTuple):
    log_prob: Tensor
    grad_z: Tensor


def mixture(
    draws: int,
    components: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    leave_out: bool = False,
) -> Mixture:
    """mu and z from N(0, I), σ around 1/e, in the given memory layout."""
    generator = torch.Generator().manual_seed(0)

    def place(rows: int, mean: float = 0.0) -> Tensor:
        def draw(rows: int, columns: int) -> Tensor:
            return (torch.randn((rows, columns), generator=generator) + mean).to(dtype)

        if layout == "contiguous":
            return draw(rows, columns)
        if layout == "transposed":
            return draw(columns, rows).t()
        if layout == "step-2":
            return draw(rows, 2 * columns)[:, ::2]
        if layout == "part":
            return draw(rows + 1, columns + 3)[1:, 3:]
        if layout == "one-row":
            return draw(1, columns).expand(rows, -1)
        raise ValueError(layout)

    z, mu, logvar = place(draws), place(components), place(components, -2.0)
    left = torch.randint(components, (2 * draws,), generator=generator)[::2] if leave_out else None
    return Mixture(z.detach().requires_grad_(), mu, logvar, left)


def lone(draws: int, components: int, columns: int, leave_out: str = "none") -> Mixture:
    """Draws that each have nearly all of their density from their own, narrow component.

    These components are evenly spaced in the list of all components, with the first and the last.
    `leave_out`: "own" leaves a draw's own component out; "other" leaves out the component that is
    half the list further on.
    """
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(components, columns, generator=generator)
    logvar = torch.full_like(mu, -9.0)
    own = torch.linspace(0, components - 1, draws).long()
    z = mu[own] + torch.exp(0.5 * logvar[own]) * torch.randn(draws, columns, generator=generator)
    left = {"none": None, "own": own, "other": (own + components // 2) % components}[leave_out]
    return Mixture(z.requires_grad_(), mu, logvar, left)


def long_chain() -> Mixture:
    """1,024 equal squares for which a single chain of float32 additions loses digits.

    Each exceeds 1 by a little less than half a unit in the last place of a sum above 512, so a
    single chain would lose that part 500 times.
    """
    z = torch.zeros(2, 1024, requires_grad=True)
    mu = torch.full((1, 1024), 1 + 0.475 * 2.0**-15)
    return Mixture(z, mu, torch.zeros_like(mu))


def upstream_of(z: Tensor) -> Tensor:
    """A gradient (M,) that is neither of unit size nor contiguous."""
    return torch.randn((2 * len(z),), generator=torch.Generator().manual_seed(1))[::2]


def measured(case: Mixture, op: Op = mixture_log_prob) -> Numbers:
    log_prob = op(*case)
    (grad_z,) = torch.autograd.grad(log_prob, case.z, upstream_of(case.z).to(log_prob.dtype))
    return Numbers(log_prob.detach(), grad_z)


def expected(case: Mixture) -> Numbers:
    """The reference, differentiated by autograd in float64."""
    z = case.z.detach().double().requires_grad_()
    return measured(case._replace(z=z), reference.mixture_log_prob)


def bounds(case: Mixture) -> Numbers:
    """The largest allowed error before rounding to the output's dtype; the module derives it."""
    z, mu, logvar = (x.detach().double() for x in case[:3])
    (components, columns), u = mu.shape, UNIT
    distance = z[:, None] - mu  # (M, N, D)
    half_squares = 0.5 * (distance.square() * torch.exp(-logvar)).sum(2)
    normaliser = -0.5 * logvar.sum(1)
    score = normaliser - half_squares
    if case.leave_out is not None:
        score = score.scatter(1, case.leave_out[:, None], -torch.inf)
    responsibility = torch.softmax(score, 1)
    # Scores are relative to the largest normaliser.
    shifted = (normaliser - normaliser.max()).abs()
    of_score = u * ((41 + columns / 32) * half_squares + shifted + (shifted + half_squares))
    additions = 64 + components / 16
    of_log_prob = (responsibility * of_score).sum(1) + u * (additions + 4)
    itself = u * reference.mixture_log_prob(z, mu, logvar, case.leave_out).abs()
    of_term = of_score + of_log_prob[:, None] + u * (6 + additions)
    terms = (responsibility * of_term)[..., None] * (distance * torch.exp(-logvar)).abs()
    gradient = upstream_of(z).double().abs()[:, None] * terms.sum(1)
    return Numbers(of_log_prob + itself, gradient)


def check(case: Mixture, op: Op = mixture_log_prob, truncates: bool = False) -> None:
    """Check value and gradient against the reference; arguments as for `compared`."""
    for one in compared(case, op, truncates):
        assert_within(*one)


def compared(case: Mixture, op: Op = mixture_log_prob, truncates: bool = False) -> list[Compared]:
    """Value and gradient, with those of the reference.

    `truncates`: bfloat16 is stored by truncation (Triton's interpreter), which errs by up to a
    whole unit in the last place instead of half a unit.
    """
    actual, wanted, limits = measured(case, op), expected(case), bounds(case)
    dtype = case.z.dtype
    assert actual.log_prob.dtype == torch.float32
    assert actual.grad_z.dtype == dtype
    limit = limits.grad_z
    if dtype in ROUNDING:
        twice = 2.0 if truncates and dtype == torch.bfloat16 else 1.0
        limit = limit + twice * ROUNDING[dtype] * (wanted.grad_z.abs() + limit) + SUBNORMAL[dtype]
    return [
        Compared("log_prob", actual.log_prob, wanted.log_prob, limits.log_prob),
        Compared("grad_z", actual.grad_z, wanted.grad_z, limit),
    ]
