"""The formulas of the latent op in PyTorch, in float64 for float64 inputs and else in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise.twin import quads
from ..scalar import excess_tail

MONTE_CARLO = ("total-derivative", "sticking-the-landing")
Needs = tuple[bool, bool, bool, bool]  # of gradients of mu, logvar, prior_mu and prior_logvar


@dataclass(frozen=True, eq=False)
class Options:
    """The settings that the formulas depend on, one object for the same settings: see `options_of`.

    Compiled code is looked up by it. The hash of an object takes less time than that of its fields.
    """

    form: str  # one of twin.FORMS
    write_z: bool
    kl: str
    reduce: str  # one of twin.REDUCTIONS
    needs: Needs = (False, False, False, False)  # in backward


_options: dict[tuple[Any, ...], Options] = {}


def options_of(*settings: Any) -> Options:
    """The settings' only object, also if several threads ask for it first."""
    found = _options.get(settings)
    return _options.setdefault(settings, Options(*settings)) if found is None else found


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


def drawn_formula(
    noise: Tensor,
    layout: Tensor,
    samples: Tensor,
    mu: Tensor,
    logvar: Tensor,
    low: Any,
    high: Any,
    o: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, the KL and eps (S, B, D) of rows whose prior is N(0, I); D is a multiple of four.

    Args:
        noise, layout: see `vaez_kernels.noise.twin.quads`.
        samples: (S, 0), which tells compiled code S.
        mu, logvar: (B, D).
        low, high, o: as for `forward_formula`.
    """
    (rows, columns), count = mu.shape, samples.shape[0]
    eps = quads(noise, layout, count * rows * (columns // 4), True).view(count, rows, columns)
    return *forward_formula(mu, logvar, None, None, eps, low, high, None, o), eps


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
