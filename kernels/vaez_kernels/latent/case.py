"""Cases of the latent ops: calls to compare, and the call to time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from .. import reference
from ..error_bounds import ROUNDING, Check, Rules, worst
from ..noise import noise_key
from ..testing import (
    DTYPES,
    KEY,
    LARGE_LATENT_SHAPES,
    LATENT_SHAPES,
    VALUES_SHAPE,
    Arguments,
    Case,
    Function,
    Shape,
    Tensors,
    Timed,
)
from . import kl_standard_normal, kl_standard_normal_mc, rsample, rsample_kl

# Whether z is an output, and which KL.
OPS = {
    "rsample": (True, "none"),
    "kl_standard_normal": (False, "analytic"),
    "kl_standard_normal_mc/total-derivative": (False, "total-derivative"),
    "kl_standard_normal_mc/sticking-the-landing": (False, "sticking-the-landing"),
    "rsample_kl/analytic": (True, "analytic"),
    "rsample_kl/total-derivative": (True, "total-derivative"),
    "rsample_kl/sticking-the-landing": (True, "sticking-the-landing"),
}
# "normal" is N(0, 1). "near zero" has a KL between 1e-8 and 1, as at the end of training. "wide"
# has σ from e⁻⁶ to e³ and mu up to 30.
VALUES = ("normal", "near zero", "wide")
LEAVES = ("mu", "logvar")
RULES = Rules(
    promises_digits=lambda case, output: (
        case.op == "kl_standard_normal" or (case.op, output) == ("rsample_kl/analytic", "kl")
    )
)


def cases() -> Iterator[Case]:
    for op in OPS:
        for dtype in DTYPES:
            for shape in LATENT_SHAPES:
                yield Case(op, shape, dtype)
            for values in VALUES[1:]:
                yield Case(op, VALUES_SHAPE, dtype, values)
            yield Case(op, VALUES_SHAPE, dtype, halves=True)


def large_cases() -> Iterator[Case]:
    return (
        Case(op, shape, dtype) for op in OPS for dtype in DTYPES for shape in LARGE_LATENT_SHAPES
    )


def inputs(case: Case) -> Arguments:
    _, rows, columns = case.shape
    generator = torch.Generator().manual_seed(7)
    mu, logvar = torch.randn((rows, 2 * columns), generator=generator).chunk(2, 1)
    if case.values == "near zero":
        size = torch.logspace(-4.5, -0.5, rows)[:, None]
        mu, logvar = size * mu, size * logvar
    elif case.values == "wide":
        mu, logvar = 10.0 * mu, (3.0 * logvar).clamp(-12.0, 6.0)
    both = torch.cat((mu, logvar), 1).to(case.dtype)
    mu, logvar = both.chunk(2, 1)
    if not case.halves:
        mu, logvar = mu.contiguous(), logvar.contiguous()
    arguments = {"mu": mu, "logvar": logvar}
    op, _, kind = case.op.partition("/")
    if op == "kl_standard_normal":
        return arguments
    kinds = {"kl_standard_normal_mc": {"estimator": kind}, "rsample_kl": {"kl": kind}}
    return arguments | {"noise": KEY, "num_samples": case.shape[0]} | kinds.get(op, {})


def call(case: Case, arguments: Arguments) -> Tensors:
    op = case.op.partition("/")[0]
    if op == "kl_standard_normal":
        return {"kl": kl_standard_normal(**arguments)}
    if op == "kl_standard_normal_mc":
        return {"kl": kl_standard_normal_mc(**arguments)}
    if op == "rsample":
        return {"z": rsample(**arguments)}
    return dict(zip(("z", "kl"), rsample_kl(**arguments), strict=True))


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    write_z, kl = OPS[case.op]
    mu, logvar = arguments["mu"], arguments["logvar"]
    eps = reference.normal(KEY, *case.shape)
    if rounded:
        eps = eps.to(case.dtype).double()
    outputs = {"z": reference.rsample(mu, logvar, eps)} if write_z else {}
    if kl == "analytic":
        outputs["kl"] = reference.kl_standard_normal(mu, logvar)
    elif kl != "none":
        outputs["kl"] = reference.kl_standard_normal_mc(mu, logvar, eps, kl)
    return outputs


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    write_z, kl = OPS[case.op]
    mu, logvar = arguments["mu"], arguments["logvar"]
    eps = reference.normal(KEY, *case.shape).to(case.dtype)
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * eps
    outputs = {"z": z} if write_z else {}
    p = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    if kl == "analytic":
        outputs["kl"] = kl_divergence(Normal(mu, sigma, validate_args=False), p).sum(1)
    elif kl != "none":
        held = kl == "sticking-the-landing"
        q = Normal(mu.detach(), sigma.detach()) if held else Normal(mu, sigma)
        outputs["kl"] = (q.log_prob(z) - p.log_prob(z)).sum(2).mean(0)
    return outputs


# Rows that are checked at the start and at the end of a batch. Float64 copies of a large batch
# would take longer than the timing, and would change the state of the allocator.
ROWS_CHECKED = 1024


@dataclass(frozen=True)
class LatentCase:
    """Inputs of the latent op and the upstream gradients, all on one device."""

    mu: Tensor  # (B, D)
    logvar: Tensor  # (B, D)
    noise: Tensor  # (2,)
    grad_z: Tensor  # (1, B, D)
    grad_kl: Tensor  # (B,)

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """z and the KL (B,), then the gradients of mu and logvar, each (B, D)."""
        z, kl = forward(self.mu, self.logvar)
        if not backward:
            return z, kl
        upstream = [self.grad_z.view_as(z), self.grad_kl.to(kl.dtype)]
        return z, kl, *torch.autograd.grad([z, kl], [self.mu, self.logvar], upstream)

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        """Compare the first and last 1,024 rows with the reference.

        Our op must reproduce the stream's eps. A baseline draws its own eps, which is recovered
        from its z and must look standard normal. Its gradients are checked with that eps.
        """
        z, *others = outputs
        rows = (z.view_as(self.grad_z)[0], *others)
        errors: list[float] = []
        for first in sorted({0, max(0, len(self.mu) - ROWS_CHECKED)}):
            errors += _errors_of_rows(self, rows, first, ours)
        return Check(worst(errors), "float64 reference" + ("" if ours else ", its own eps"))

    def advance(self) -> None:
        self.noise[1] += 1


def _errors_of_rows(
    case: LatentCase, outputs: tuple[Tensor, ...], first: int, ours: bool
) -> list[float]:
    # outputs: z (B, D), kl (B,), and perhaps grad_mu (B, D), grad_logvar (B, D)
    def rows(x: Tensor) -> Tensor:
        return x.detach()[first : first + ROWS_CHECKED].double().cpu()

    z, kl, *gradients = (rows(x) for x in outputs)
    mu, logvar = rows(case.mu).requires_grad_(), rows(case.logvar).requires_grad_()
    m, sigma = mu.detach(), torch.exp(0.5 * logvar.detach())
    unit = ROUNDING[case.mu.dtype]
    errors = []
    if ours:
        count, columns = mu.shape
        eps = reference.normal(case.noise.cpu(), 1, count, columns, row_offset=first)[0]
        bound = unit * (1 + m.abs() + sigma * eps.abs().clamp(min=1))
        errors.append(((z - (m + sigma * eps)).abs() / bound).max())
    else:
        eps = (z - m) / sigma
        errors.append(eps.mean().abs() / (5 / math.sqrt(eps.numel())))
        errors.append((eps.var() - 1).abs() / (5 * math.sqrt(2 / eps.numel())))
    reference_kl = reference.kl_standard_normal(mu, logvar)
    # Textbook code subtracts terms from each other, so rounding errors scale with the sum of their
    # sizes. A sequential sum of D terms may lose D/2 roundings; blocked sums stay below √D.
    size = 0.5 * (m.square() + sigma.square() + 1 + logvar.detach().abs()).sum(1)
    kl_bound = unit * math.sqrt(mu.shape[1]) * size
    errors.append(((kl - reference_kl.detach()).abs() / kl_bound).max())
    if not gradients:
        return [float(e) for e in errors]

    grad_z, grad_kl = rows(case.grad_z[0]), rows(case.grad_kl)
    truths = torch.autograd.grad(
        [reference.rsample(mu, logvar, eps), reference_kl], [mu, logvar], [grad_z, grad_kl]
    )
    g, k = grad_z.abs(), grad_kl.abs()[:, None]
    sizes = (
        g + k * m.abs(),
        0.5 * sigma * (g * eps.abs().clamp(min=1) + k * (sigma + 1 / sigma + 1)),
    )
    # How far the gradients of the reference may be off: a baseline's σ·eps = z − mu is known only
    # to the rounding of its z, half a spacing.
    unknown = (0.0, 0.0 if ours else 0.25 * unit * g * z.abs())
    for gradient, truth, terms, slack in zip(gradients, truths, sizes, unknown, strict=True):
        # Four roundings: the products, their sum, σ and the stored result.
        bound = 4 * unit * (terms + unit) + slack
        errors.append(((gradient - truth).abs() / bound).max())
    return [float(e) for e in errors]


def textbook_rsample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """mu, logvar (B, D) → z (B, D), KL (B,): torch.distributions as in its documentation.

    Argument checks are off. torch.compile switches them off for the whole process, so the times of
    eager code would depend on what was compiled before. They also make the host wait for a GPU.
    """
    q = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    p = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    return q.rsample(), kl_divergence(q, p).sum(1)


def timed_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> LatentCase:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator)).to(device)

    return LatentCase(
        mu=draw(*shape).to(dtype).requires_grad_(),
        logvar=draw(*shape, scale=0.5).to(dtype).requires_grad_(),
        noise=noise_key(0, "train", 1, device=device),
        grad_z=draw(1, *shape).to(dtype),
        grad_kl=draw(shape[0]),
    )


def rsample_kl_floor(shape: Shape, itemsize: int, backward: bool) -> int:
    """Bytes of `rsample_kl` with the analytic KL; eps is drawn on the chip, again in backward.

    Forward reads mu and logvar, and writes z and a float32 KL for each row. Backward reads mu,
    logvar and the gradients of z and of the KL, and writes two gradients. With float32 and S = 1,
    that is 12 and 20 bytes per element, plus 4 per row in each direction.
    """
    samples, rows, columns = shape
    elements = rows * columns
    forward = itemsize * (2 + samples) * elements + 4 * rows
    return forward + (itemsize * (4 + samples) * elements + 4 * rows if backward else 0)


TIMED = Timed(
    title="latent op",
    case=timed_case,
    ours=lambda case: lambda mu, logvar: rsample_kl(mu, logvar, case.noise),
    textbook=textbook_rsample_kl,
    launch_bound=((128, 20), (128, 128)),
    # On a CPU, a million elements, for which its targets are stated, and 4 × 32 MiB, which exceeds
    # its caches.
    large={"cpu": ((8192, 128), (65536, 128)), "cuda": ((8192, 128), (524288, 128))},
    least_bytes=lambda shape, itemsize, backward: rsample_kl_floor((1, *shape), itemsize, backward),
    cpu_options={"fallback_random": True},  # inductor's own noise is a scalar loop on a CPU
)
