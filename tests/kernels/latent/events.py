"""Calls of the latent ops on latents of any shape, and their float64 references.

Used by the tests of the fallback and by those of the interpreted kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.kernels.helpers import Compared, assert_within
from vaez_kernels import noise_key, reference, rsample_kl

KEY = noise_key(23, "train", 5)
# Rows, then the event: a vector, an image, an image whose channels are not whole quads of the
# noise, a video.
SHAPES = ((5, 19), (3, 4, 6, 4), (2, 3, 5, 5), (2, 4, 3, 4, 4))
LAYOUTS = ("contiguous", "halves", "channels last", "channels-last halves", "cropped", "mixed")
REDUCTIONS = ("sum", "channels", "none", "batch-mean")
KLS = ("analytic", "total-derivative", "sticking-the-landing")


class Call(NamedTuple):
    """One call of `rsample_kl`."""

    shape: tuple[int, ...] = SHAPES[1]
    layout: str = "contiguous"
    kl: str = "analytic"
    reduce: str = "sum"
    samples: int = 1
    clamp: tuple[float, float] | None = None
    free_bits: float = 0.0
    prior: str = ""  # "", or the shape of the prior's parameters: "full", "row" or "channel"
    logvar: str = "full"  # also "scalar"
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)

    def __str__(self) -> str:
        return "-".join(str(x) for x in self if x)


def calls() -> Iterator[Call]:
    """Every shape with every layout and reduction, and every option with every KL."""
    for shape, layout in itertools.product(SHAPES, LAYOUTS):
        if len(shape) > 2 or "channels" not in layout:
            for reduce in REDUCTIONS:
                yield Call(shape, layout, reduce=reduce, samples=2)
    for kl, layout in itertools.product(KLS, ("halves", "channels last")):
        for prior in ("full", "row", "channel"):
            yield Call(layout=layout, kl=kl, prior=prior, samples=3)
        yield Call(layout=layout, kl=kl, prior="full", reduce="none", samples=9)
        yield Call(layout=layout, kl=kl, clamp=(-0.5, 0.75), prior="row")
        yield Call(SHAPES[2], layout, kl, clamp=(0.25, 1.0), samples=2)
        yield Call(layout=layout, kl=kl, reduce="channels", samples=9)
        for logvar in ("scalar", "row", "channel"):
            yield Call(layout=layout, kl=kl, logvar=logvar, samples=2)
        for dtypes in itertools.permutations((torch.float32, torch.bfloat16, torch.float16), 2):
            yield Call(layout=layout, kl=kl, dtypes=dtypes, samples=2)
    for layout, reduce in itertools.product(LAYOUTS[:3], REDUCTIONS):
        yield Call(layout=layout, free_bits=0.2, reduce=reduce, samples=2)
        yield Call(layout=layout, free_bits=0.2, reduce=reduce, prior="row", clamp=(-1.0, 1.0))


def _laid(x: Tensor, y: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Two tensors (B, *event) in a layout."""
    if layout == "contiguous":
        return x, y
    if layout == "halves":
        mu, logvar = torch.cat((x, y), 1).chunk(2, 1)
    elif layout == "channels last":
        mu, logvar = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, y))
    elif layout == "channels-last halves":
        both = torch.cat((x, y), 1).movedim(1, -1).contiguous().movedim(-1, 1)
        mu, logvar = both.chunk(2, 1)
    elif layout == "cropped":  # no two of the event's dimensions can be viewed as one
        mu, logvar = (torch.nn.functional.pad(t, (1, 1) * (t.dim() - 1)) for t in (x, y))
        at = (slice(None), *(slice(1, -1) for _ in x.shape[1:]))
        mu, logvar = mu[at], logvar[at]
    elif layout == "mixed":
        mu, logvar = x.movedim(1, -1).contiguous().movedim(-1, 1), y
    else:
        raise ValueError(layout)
    return mu, logvar


def _sized(x: Tensor, size: str) -> Tensor:
    """A part of x (B, *event) that broadcasts to it."""
    if size == "scalar":
        return x.flatten()[0]
    if size == "row":
        return x[0]
    if size == "channel":
        return x[0].flatten(1)[:, 0].reshape(-1, *(1,) * (x.dim() - 2)) if x.dim() > 2 else x[0]
    return x


def inputs(call: Call) -> dict[str, Tensor]:
    """mu, logvar and the prior's parameters, which require gradients."""
    generator = torch.Generator().manual_seed(3)

    def draw() -> Tensor:
        return torch.randn(call.shape, generator=generator)

    mu, logvar = draw().to(call.dtypes[0]), draw().to(call.dtypes[1])
    if call.dtypes[0] == call.dtypes[1] and call.logvar == "full":
        mu, logvar = _laid(mu, logvar, call.layout)
    else:
        mu, logvar = (_laid(x, x, call.layout)[0] for x in (mu, logvar))
        logvar = _sized(logvar, call.logvar)
    given = {"mu": mu, "logvar": logvar}
    if call.prior:
        for name in ("prior_mu", "prior_logvar"):
            given[name] = _sized(draw().to(call.dtypes[0]), call.prior)
    return {name: x.detach().requires_grad_() for name, x in given.items()}


def ours(call: Call, given: dict[str, Tensor], **offsets: Any) -> tuple[Tensor, Tensor]:
    prior = (given["prior_mu"], given["prior_logvar"]) if call.prior else None
    return rsample_kl(
        *(given["mu"], given["logvar"], KEY, call.samples, call.kl),
        prior=prior,
        clamp=call.clamp,
        reduce=call.reduce,
        free_bits=call.free_bits,
        **offsets,
    )


def truth(call: Call, given: dict[str, Tensor], **offsets: int) -> tuple[Tensor, Tensor]:
    """The same in float64, from textbook formulas."""
    mu, logvar = given["mu"], given["logvar"].expand(call.shape)
    if call.clamp:
        logvar = logvar.clamp(*call.clamp)
    rows, *event = call.shape
    eps = reference.normal(KEY, call.samples, rows, mu[0].numel(), **offsets)
    eps = eps.view(call.samples, rows, *event)
    prior = [given[name].expand(call.shape) for name in ("prior_mu", "prior_logvar") if call.prior]
    if call.kl == "analytic":
        terms = reference.kl_terms(mu, logvar, *prior)
        if call.free_bits:
            terms = terms.clamp(min=call.free_bits)
    else:
        terms = reference.kl_terms_mc(mu, logvar, eps, call.kl, *prior)
    return reference.rsample(mu, logvar, eps), reference.reduced(terms, call.reduce)


# 2⁻⁸ and 2⁻¹¹ are half a unit in the last place, relative; Triton's interpreter truncates bfloat16,
# which errs by a whole unit.
UNITS = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def compared(call: Call, **offsets: int) -> list[Compared]:
    """Values and gradients, with those of the reference.

    The ops promise eps and z within 1e-6 of the size of their terms, which stay below 20 here; an
    element's KL and its gradients have up to five such factors and terms. Sums add the errors of
    their terms, so the bound is 2e-5 for each number that was summed, and of the result.
    """
    given = inputs(call)
    found = ours(call, given, **offsets)
    doubles = {name: x.detach().double().requires_grad_() for name, x in given.items()}
    wanted = truth(call, doubles, **offsets)
    generator = torch.Generator().manual_seed(4)
    upstream = [
        torch.randn(other.shape, generator=generator).to(one.dtype)
        for one, other in zip(found, wanted, strict=True)
    ]
    grads = torch.autograd.grad(found, list(given.values()), upstream)
    true_grads = torch.autograd.grad(
        wanted, list(doubles.values()), [grad.double() for grad in upstream]
    )
    names = ("z", "kl", *(f"grad_{name}" for name in given))
    results = []
    for name, one, other in zip(names, (*found, *grads), (*wanted, *true_grads), strict=True):
        assert one.shape == other.shape, name
        unit, summed = UNITS[one.dtype], max(1, found[0].numel() // one.numel())
        limit = (2e-5 + unit) * other.detach().abs() + 2e-5 * summed + unit
        results.append(Compared(f"{call} {name}", one.detach(), other.detach(), limit))
    return results


def check(call: Call) -> None:
    for one in compared(call):
        assert_within(*one)
