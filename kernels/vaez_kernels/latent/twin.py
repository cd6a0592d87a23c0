"""The latent op in PyTorch, in float64 for float64 inputs and else in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backend import is_traced, use_backend
from ..compiler import run
from ..define import Tensors
from ..noise import draw
from ..noise import twin as noise
from ..scalar import excess_tail

MONTE_CARLO = ("total-derivative", "sticking-the-landing")
KLS = ("none", "analytic", *MONTE_CARLO)  # the kernels' KL flag is the index here
# From this number of elements on, compiled code is faster than eager: 32 against 79 µs at 128×20.
COMPILE_FROM = 1 << 10


class Arguments(NamedTuple):
    mu: Tensor  # (B, D)
    logvar: Tensor  # (B, D)
    noise: Tensor | None  # (2,) int64 if something is sampled
    num_samples: int
    write_z: bool
    kl: str  # one of KLS
    row_offset: int
    sample_offset: int


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


def forward_formula(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, write_z: bool, kl: str
) -> tuple[Tensor, Tensor]:
    dtype = mu.dtype
    mu, logvar = _wide(mu), _wide(logvar)
    z = mu.new_empty((0,), dtype=dtype)
    kl_rows = mu.new_empty((0,))
    if kl == "analytic":
        kl_rows = (0.5 * (mu * mu + _excess(logvar))).sum(1)
    if eps is not None:
        wide_z = mu + torch.exp(0.5 * logvar) * eps
        if kl in MONTE_CARLO:
            term = 0.5 * (wide_z - eps) * (wide_z + eps) - 0.5 * logvar
            kl_rows = term.sum(2).mean(0)
        if write_z:
            z = wide_z.to(dtype)
    return z, kl_rows


def backward_formula(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor | None,
    kl: str,
    need_mu: bool,
    need_logvar: bool,
) -> tuple[Tensor, Tensor]:
    dtype = mu.dtype
    mu, logvar = _wide(mu), _wide(logvar)
    grad_mu, grad_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    if grad_z is not None:
        assert eps is not None
        wide = _wide(grad_z)
        grad_mu = grad_mu + wide.sum(0)
        grad_logvar = grad_logvar + 0.5 * torch.exp(0.5 * logvar) * (wide * eps).sum(0)
    if grad_kl is not None:
        upstream = grad_kl[:, None]
        if kl == "analytic":
            grad_mu = grad_mu + upstream * mu
            grad_logvar = grad_logvar + upstream * (0.5 * _expm1(logvar))
        elif kl in MONTE_CARLO:
            assert eps is not None
            shift = torch.exp(0.5 * logvar) * eps
            if kl == "total-derivative":
                path = mu + shift
                score = 1.0
            else:  # only the path derivative, Roeder et al. 2017, equation 8
                path = mu + shift - eps * torch.exp(-0.5 * logvar)
                score = 0.0
            grad_mu = grad_mu + upstream * path.mean(0)
            grad_logvar = grad_logvar + upstream * (0.5 * (path * shift - score)).mean(0)
    none = mu.new_empty((0,), dtype=dtype)
    return (
        grad_mu.to(dtype) if need_mu else none,
        grad_logvar.to(dtype) if need_logvar else none,
    )


def draws(a: Arguments) -> bool:
    """Whether the call needs samples."""
    return a.write_z or a.kl in MONTE_CARLO


def forward(a: Arguments) -> Tensors:
    """z, the KL and eps. Drawing eps again would double the time of backward, so it is kept."""
    eps = _eps(a) if draws(a) else None
    args = (a.mu, a.logvar, eps, a.write_z, a.kl)
    largest = a.mu if eps is None else eps
    return *run(forward_formula, "BD BD SBD", largest, COMPILE_FROM, *args), eps


def backward(a: Arguments, kept: Tensors, grads: Tensors, needs: tuple[bool, bool]) -> Tensors:
    grad_z, grad_kl = grads
    eps = kept[0] if draws(a) else None  # the registered op keeps an empty tensor for None
    args = (grad_z, grad_kl, a.mu, a.logvar, eps, a.kl, *needs)
    largest = a.mu if eps is None else eps
    found: Tensors = run(backward_formula, "SBD B BD BD SBD", largest, COMPILE_FROM, *args)
    return found


def _eps(a: Arguments) -> Tensor:
    assert a.noise is not None
    rows, columns = a.mu.shape
    shape, first = (a.num_samples, rows, columns), (a.row_offset, a.sample_offset)
    if is_traced(a.mu):
        # By the fallback, even on CUDA: a kernel that an op does not name would be missing in the
        # key under which PyTorch keeps its compiled code.
        with use_backend("torch"):
            eps = draw(a.noise, shape, *first)
    else:  # The op itself would take 4 % of a call at 128×20.
        (eps,) = noise.forward(noise.Arguments(a.noise, *shape, *first, normal=True))
    return eps.double() if a.mu.dtype == torch.float64 else eps
