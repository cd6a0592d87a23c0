"""The latent op in PyTorch: how its arguments reach the formulas, and which code is compiled."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import is_traced, use_backend
from ..compiler import compiles, run, run_compiled
from ..define import Tensors
from ..noise import draw
from ..noise import twin as noise
from .formulas import (
    MONTE_CARLO,
    Needs,
    Options,
    backward_formula,
    drawn_formula,
    forward_formula,
    options_of,
)
from .layout import is_channels_last, merged_stride

KLS = ("none", "analytic", *MONTE_CARLO)  # the kernels' KL flag is the index here
REDUCTIONS = ("sum", "channels", "none", "batch-mean")


class Arguments(NamedTuple):
    mu: Tensor  # (B, *event), as are the other three
    logvar: Tensor
    prior_mu: Tensor | None  # both or neither: without them p = N(0, I)
    prior_logvar: Tensor | None
    noise: Tensor | None  # (2,) int64 if something is sampled
    num_samples: int
    write_z: bool
    kl: str  # one of KLS
    reduce: str  # one of REDUCTIONS
    low: float  # logvar is clamped to [low, high]; infinite if it is not
    high: float
    free_bits: float  # the least analytic KL of a dimension; 0 if there is none
    row_offset: int
    sample_offset: int

    @property
    def clamps(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    @property
    def draws(self) -> bool:
        """Whether the call needs samples."""
        return self.write_z or self.kl in MONTE_CARLO


class Limits(NamedTuple):
    """The clamp's bounds and the free bits; None for those that are not asked for.

    They are tensors (1,) where code is compiled, so that another value needs no compilation.
    """

    low: Any
    high: Any
    free_bits: Any


NO_LIMITS = Limits(None, None, None)


@functools.lru_cache(64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value], dtype=dtype, device="cpu")


def _limits(a: Arguments) -> Limits:
    if not a.clamps and a.free_bits == 0:
        return NO_LIMITS
    given = (*((a.low, a.high) if a.clamps else (None, None)), a.free_bits or None)
    if is_traced(a.mu) or not a.mu.is_cpu:
        return Limits(*given)
    dtype = torch.float64 if a.mu.dtype == torch.float64 else torch.float32
    return Limits(*(None if value is None else _number(value, dtype) for value in given))


def _form(a: Arguments) -> str:
    if a.mu.dim() == 2 and a.reduce != "channels":
        return "rows"
    if is_channels_last(a.mu):
        return "channels last"
    given = (a.logvar, a.prior_mu, a.prior_logvar)
    rows = a.reduce != "channels" and all(
        x is None or merged_stride(x, 1) is not None for x in given
    )
    return "rows" if rows else "channels"


def _seen(x: Tensor | None, shape: torch.Size, form: str) -> Tensor | None:
    """x (…, *shape) in a form. It is a view, if x lies in memory as described in layout.py."""
    if x is None or (form == "rows" and len(shape) == 2):
        return x
    before = x.dim() - len(shape) + 1
    if form == "rows":
        return x.reshape(*x.shape[:before], math.prod(shape[1:]))
    if form == "channels last":
        x = x.movedim(before, -1)
        return x.reshape(*x.shape[:before], math.prod(shape[2:]), shape[1])
    return x.reshape(*x.shape[: before + 1], math.prod(shape[2:]))


def _broadcast(x: Tensor | None) -> Tensor | None:
    """x without the repetitions along its broadcast dimensions, which have a stride of 0."""
    if x is None or 0 not in x.stride():
        return x
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _as_event(x: Tensor, shape: torch.Size, form: str) -> Tensor:
    """A result of the formulas with the event's shape again."""
    if form == "rows":
        return x if len(shape) == 2 else x.unflatten(-1, shape[1:])
    if form == "channels last":
        return x.unflatten(-2, shape[2:]).movedim(-1, 1 - len(shape))
    return x.squeeze(-1) if len(shape) == 2 else x.unflatten(-1, shape[2:])


def _inputs(a: Arguments, form: str) -> list[Tensor | None]:
    if form == "rows" and a.mu.dim() == 2 and a.prior_mu is None:  # saves 3 µs
        return [a.mu, _broadcast(a.logvar), None, None]
    given = (a.logvar, a.prior_mu, a.prior_logvar)
    return [_seen(a.mu, a.mu.shape, form), *(_broadcast(_seen(x, a.mu.shape, form)) for x in given)]


def _seen_eps(eps: Tensor | None, shape: torch.Size, form: str) -> Tensor | None:
    # (S, B, D), or (S, B, C, N) even where channels come last
    return eps if eps is None or form == "rows" else eps.unflatten(2, (shape[1], -1))


# What the compiler calls the dimensions of a tensor (B, *event), and those of eps.
FORMS = {"rows": ("BD", "SBD"), "channels": ("ICN", "SICN"), "channels last": ("INC", "SICN")}


@functools.cache
def _words(form: str, upstream_of: str | None = None) -> str:
    """The dimensions of the formulas' tensors: forward's, or backward's for a reduction."""
    one, of_eps = FORMS[form]
    inputs = f"{one} {one} {one} {one} {of_eps} F F F"
    if upstream_of is None:
        return inputs
    of_kl = {"sum": one[0], "channels": "IC", "none": one, "batch-mean": one[1:]}[upstream_of]
    return f"S{one} {of_kl} {inputs}"


def forward(a: Arguments) -> Tensors:
    """z, the KL and eps. Drawing eps again would double the time of backward, so it is kept."""
    form = _form(a)
    # The estimators differ in backward alone.
    kl = MONTE_CARLO[0] if a.kl in MONTE_CARLO else a.kl
    options = options_of(form, a.write_z, kl, a.reduce)
    found = _usual(a, options)
    if found is None:
        eps = _eps(a) if a.draws else None
        args = (*_inputs(a, form), _seen_eps(eps, a.mu.shape, form), *_limits(a), options)
        found = *run(forward_formula, _words(form), a.mu if eps is None else eps, *args), eps
    z, of_kl, eps = found
    if a.write_z:
        z = _as_event(z, a.mu.shape, form)
    if a.kl != "none" and a.reduce in ("none", "batch-mean"):
        of_kl = _as_event(of_kl, a.mu.shape, form)
    return z, of_kl, eps


def _usual(a: Arguments, options: Options) -> Tensors | None:
    """The results of the most common call, with its noise, by one call of compiled code; or None.

    A second call would add 13 µs to the 60 that a small one takes. Other variants draw eps first,
    because compiling the noise into each of them takes 4 s, and because code that also rounds
    stores z in float32, too.
    """
    if options != options_of("rows", True, "analytic", "sum") or not compiles(a.mu):
        return None
    if a.mu.dtype != torch.float32 or a.prior_mu is not None or a.free_bits > 0:
        return None
    rows, columns = a.mu.shape[0], math.prod(a.mu.shape[1:])
    if columns % 4 != 0:
        return None
    layout = noise.layout_of(a.mu.device, rows, columns, a.row_offset, a.sample_offset)
    mu, logvar, _, _ = _inputs(a, "rows")
    low, high, _ = _limits(a)
    args = (a.noise, layout, noise.of_size(a.num_samples), mu, logvar, low, high, options)
    return run_compiled(drawn_formula, "K L S0 BQ BQ F F", args, noise.INDUCTOR)


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: Needs) -> Tensors:
    grad_z, grad_kl = grads
    form, shape = _form(a), a.mu.shape
    eps = kept[0] if a.draws else None  # the registered op keeps an empty tensor for None
    options = options_of(form, a.write_z, a.kl, a.reduce, needs)
    if grad_kl is not None and a.reduce == "batch-mean":
        grad_kl = _seen(grad_kl[None], shape, form)[0]  # type: ignore[index]
    elif a.reduce == "none":
        grad_kl = _seen(grad_kl, shape, form)
    args = (
        *(_seen(grad_z, shape, form), grad_kl, *_inputs(a, form)),
        *(_seen_eps(eps, shape, form), *_limits(a), options),
    )
    largest = a.mu if eps is None else eps
    found = iter(run(backward_formula, _words(form, a.reduce), largest, *args))
    return tuple(_as_event(next(found), shape, form) if need else None for need in needs)


def _eps(a: Arguments) -> Tensor:
    assert a.noise is not None
    rows, columns = a.mu.shape[0], math.prod(a.mu.shape[1:])
    shape, first = (a.num_samples, rows, columns), (a.row_offset, a.sample_offset)
    if is_traced(a.mu):
        # By the fallback, even on CUDA: a kernel that an op does not name would be missing in the
        # key under which PyTorch keeps its compiled code.
        with use_backend("torch"):
            eps = draw(a.noise, shape, *first)
    else:  # The op itself would take 4 % of a call at 128×20.
        (eps,) = noise.forward(noise.Arguments(a.noise, *shape, *first, normal=True))
    return eps.double() if a.mu.dtype == torch.float64 else eps
