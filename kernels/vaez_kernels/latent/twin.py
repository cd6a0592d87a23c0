"""The latent op in PyTorch, in float64 for float64 inputs and else in float32."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import is_traced, use_backend
from ..compiler import run
from ..define import Tensors
from ..noise import draw
from ..noise import twin as noise
from ..scalar import excess_tail
from .layout import is_channels_last, merged_stride

MONTE_CARLO = ("total-derivative", "sticking-the-landing")
KLS = ("none", "analytic", *MONTE_CARLO)  # the kernels' KL flag is the index here
Needs = tuple[bool, bool, bool, bool]  # of gradients of mu, logvar, prior_mu and prior_logvar
REDUCTIONS = ("sum", "channels", "none", "batch-mean")
# From this number of elements on, compiled code is faster than eager: 32 against 79 µs at 128×20.
COMPILE_FROM = 1 << 10


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


@dataclass(frozen=True, eq=False)
class Options:
    """The settings that the formulas depend on, one object for the same settings: see `_options`.

    Compiled code is looked up by it. The hash of an object takes less time than that of its fields.
    """

    form: str  # one of FORMS
    write_z: bool
    kl: str
    reduce: str
    needs: Needs = (False, False, False, False)  # in backward


@functools.cache
def _options(*settings: Any) -> Options:
    return Options(*settings)


class Limits(NamedTuple):
    """The clamp's bounds and the free bits; None for those that are not asked for.

    They are tensors (1,) where code is compiled, so that another value needs no compilation.
    """

    low: Any
    high: Any
    free_bits: Any


@functools.lru_cache(64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value], dtype=dtype, device="cpu")


def _limits(a: Arguments) -> Limits:
    given = (*((a.low, a.high) if a.clamps else (None, None)), a.free_bits or None)
    if is_traced(a.mu) or not a.mu.is_cpu:
        return Limits(*given)
    dtype = torch.float64 if a.mu.dtype == torch.float64 else torch.float32
    return Limits(*(None if value is None else _number(value, dtype) for value in given))


def _excess(logvar: Tensor) -> Tensor:
    if logvar.dtype == torch.float64:
        return torch.expm1(logvar) - logvar
    direct = torch.exp(logvar) - 1.0 - logvar
    return torch.where(logvar.abs() < 0.5, logvar * logvar * excess_tail(logvar), direct)


def _expm1(logvar: Tensor) -> Tensor:  # see expm1_jit
    if logvar.dtype == torch.float64:
        return torch.expm1(logvar)
    near = logvar + logvar * logvar * excess_tail(logvar)
    return torch.where(logvar.abs() < 0.5, near, torch.exp(logvar) - 1.0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _clamped(logvar: Tensor, low: Any, high: Any) -> Tensor:
    return logvar if low is None else logvar.clamp(low, high)


def _relative(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The mean and logvar whose KL to N(0, I) is KL(q ‖ p), and 1/σ_p (None if p is N(0, I))."""
    if prior_mu is None or prior_logvar is None:
        return mu, logvar, None
    prior_mu, prior_logvar = _wide(prior_mu), _wide(prior_logvar)
    inverse = torch.exp(-0.5 * prior_logvar)
    distance, ratio = (mu - prior_mu) * inverse, logvar - prior_logvar
    return distance, ratio, inverse


def _reduced(terms: Tensor, o: Options) -> Tensor:
    if o.reduce == "sum":
        return terms.sum(tuple(range(1, terms.dim())))
    if o.reduce == "channels":
        return terms.sum(1 if o.form == "channels last" else 2)
    return (terms.mean(0) if o.reduce == "batch-mean" else terms).contiguous()


def _spread(grad_kl: Tensor, terms: Tensor, o: Options) -> Tensor:
    """The gradient of each term from that of the reduced KL."""
    if o.reduce == "sum":
        return grad_kl.view(-1, *(1,) * (terms.dim() - 1))
    if o.reduce == "channels":
        return grad_kl[:, None] if o.form == "channels last" else grad_kl[:, :, None]
    return grad_kl / terms.shape[0] if o.reduce == "batch-mean" else grad_kl


def forward_formula(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor | None,
    low: Any,
    high: Any,
    free_bits: Any,
    o: Options,
) -> tuple[Tensor, Tensor]:
    dtype = mu.dtype
    mu, logvar = _wide(mu), _clamped(_wide(logvar), low, high)
    z = mu.new_empty((0,), dtype=dtype)
    kl = mu.new_empty((0,))
    distance, ratio, inverse = _relative(mu, logvar, prior_mu, prior_logvar)
    if o.kl == "analytic":
        terms = 0.5 * (distance * distance + _excess(ratio))
        if free_bits is not None:
            terms = terms.clamp(min=free_bits)
        kl = _reduced(terms, o)
    if eps is not None:
        if o.form == "channels last":
            eps = eps.transpose(2, 3)
        wide_z = mu + torch.exp(0.5 * logvar) * eps
        if o.kl in MONTE_CARLO:
            scaled = wide_z
            if prior_mu is not None and inverse is not None:
                scaled = (wide_z - _wide(prior_mu)) * inverse
            terms = 0.5 * (scaled - eps) * (scaled + eps) - 0.5 * ratio
            kl = _reduced(terms.mean(0), o)
        if o.write_z:
            z = wide_z.to(dtype).contiguous()
    return z, kl


def backward_formula(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor | None,
    low: Any,
    high: Any,
    free_bits: Any,
    o: Options,
) -> tuple[Tensor, ...]:
    dtypes = [None if x is None else x.dtype for x in (mu, logvar, prior_mu, prior_logvar)]
    mu, raw = _wide(mu), _wide(logvar)
    logvar = _clamped(raw, low, high)
    if eps is not None and o.form == "channels last":
        eps = eps.transpose(2, 3)
    grads = [torch.zeros_like(mu) for _ in o.needs]
    if grad_z is not None:
        assert eps is not None
        wide = _wide(grad_z)
        grads[0] = grads[0] + wide.sum(0)
        grads[1] = grads[1] + 0.5 * torch.exp(0.5 * logvar) * (wide * eps).sum(0)
    if grad_kl is not None:
        upstream = _spread(grad_kl, mu, o)
        distance, ratio, inverse = _relative(mu, logvar, prior_mu, prior_logvar)
        slopes = (
            _analytic_slopes(distance, ratio, inverse)
            if o.kl == "analytic"
            else _monte_carlo_slopes(distance, logvar, inverse, eps, o)
        )
        if free_bits is not None:
            free = 0.5 * (distance * distance + _excess(ratio)) < free_bits
            upstream = torch.where(free, 0.0, upstream)
        grads = [
            grad if slope is None else grad + upstream * slope
            for grad, slope in zip(grads, slopes, strict=True)
        ]
    if low is not None:
        grads[1] = torch.where((raw >= low) & (raw <= high), grads[1], 0.0)
    # Without None for the others: standalone_compile of torch 2.11 takes a graph's tensors only.
    return tuple(
        grad.to(dtype).contiguous()
        for grad, need, dtype in zip(grads, o.needs, dtypes, strict=True)
        if need
    )


Slopes = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _analytic_slopes(distance: Tensor, ratio: Tensor, inverse: Tensor | None) -> Slopes:
    """Derivatives of the KL of each dimension by mu, logvar and those of the prior."""
    growth = _expm1(ratio)
    if inverse is None:
        return distance, 0.5 * growth, None, None
    by_mu = distance * inverse
    return by_mu, 0.5 * growth, -by_mu, -0.5 * (distance * distance + growth)


def _monte_carlo_slopes(
    distance: Tensor, logvar: Tensor, inverse: Tensor | None, eps: Tensor | None, o: Options
) -> Slopes:
    assert eps is not None
    shift = torch.exp(0.5 * logvar) * eps
    scaled = distance + (shift if inverse is None else shift * inverse)  # (z − prior_mu) / σ_p
    path = scaled if inverse is None else scaled * inverse
    score = 1.0
    if o.kl == "sticking-the-landing":  # Roeder et al. 2017, equation 8
        path = path - eps * torch.exp(-0.5 * logvar)
        score = 0.0
    by_mu, by_logvar = path.mean(0), (0.5 * (path * shift - score)).mean(0)
    if inverse is None:
        return by_mu, by_logvar, None, None
    by_prior_mu = -(scaled * inverse).mean(0)
    return by_mu, by_logvar, by_prior_mu, (0.5 * (1.0 - scaled * scaled)).mean(0)


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
    eps = _eps(a) if a.draws else None
    options = _options(form, a.write_z, a.kl, a.reduce)
    args = (*_inputs(a, form), _seen_eps(eps, a.mu.shape, form), *_limits(a), options)
    largest = a.mu if eps is None else eps
    z, kl = run(forward_formula, _words(form), largest, COMPILE_FROM, *args)
    if a.write_z:
        z = _as_event(z, a.mu.shape, form)
    if a.kl != "none" and a.reduce in ("none", "batch-mean"):
        kl = _as_event(kl, a.mu.shape, form)
    return z, kl, eps


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: Needs) -> Tensors:
    grad_z, grad_kl = grads
    form, shape = _form(a), a.mu.shape
    eps = kept[0] if a.draws else None  # the registered op keeps an empty tensor for None
    options = _options(form, a.write_z, a.kl, a.reduce, needs)
    if grad_kl is not None and a.reduce == "batch-mean":
        grad_kl = _seen(grad_kl[None], shape, form)[0]  # type: ignore[index]
    elif a.reduce == "none":
        grad_kl = _seen(grad_kl, shape, form)
    args = (
        *(_seen(grad_z, shape, form), grad_kl, *_inputs(a, form)),
        *(_seen_eps(eps, shape, form), *_limits(a), options),
    )
    largest = a.mu if eps is None else eps
    found = iter(run(backward_formula, _words(form, a.reduce), largest, COMPILE_FROM, *args))
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
