"""Properties that hold for every case.

test_properties.py checks them on the fallback, interpreted/test_properties.py on the kernels.

Extremes. Within the range of float32 (|logvar| ≤ 80, |mu| ≤ 1e4, few columns) no intermediate
result overflows. So an op is NaN exactly where its float64 formula is NaN. It is infinite exactly
where the formula is infinite (with the same sign) or exceeds the output's dtype. Everywhere else it
is within the bounds of helpers.py. The formula is ½(z² − eps² − logvar), because (z − mu)/sigma, as
in torch.distributions, loses eps where sigma is far below mu, and is NaN where only mu is infinite.
An exponential has a relative error of 2u for each unit of its argument (u = 2⁻²⁴: the argument is
rounded twice). Below the smallest normal number of float32 there is no bound.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.kernels import helpers
from tests.kernels.bernoulli import pixels
from tests.kernels.drawn import LatentCase, Layout, PixelCase, place
from tests.kernels.every_op import arguments_of, assert_close, outputs_and_gradients
from tests.kernels.helpers import ERROR, MODES, ROUNDING, SUBNORMAL, Numbers, Upstream
from vaez_kernels import bernoulli_log_prob, reference

SMALLEST = 2.0**-126


def latent_is_the_reference(case: LatentCase, truncates: bool = False) -> None:
    mode, mu, logvar, noise, samples, offsets = case
    helpers.check(mode, mu, logvar, noise, samples, helpers.call, truncates, **offsets)


def pixels_are_the_reference(case: PixelCase, truncates: bool = False) -> None:
    pixels.check(*case, truncates=truncates)


def formula(
    write_z: bool, kind: str, mu: Tensor, logvar: Tensor, eps: Tensor, upstream: Upstream
) -> Numbers:
    """Values and gradients in float64; the module docstring explains the formula."""
    mu, logvar, eps = mu.detach().double(), logvar.detach().double(), eps.double()
    g = upstream.grad_kl.double()[:, None]
    sigma = torch.exp(0.5 * logvar)
    z, kl = mu + sigma * eps, None
    by_z = upstream.grad_z.double() if write_z else torch.zeros_like(z)
    grad_mu, grad_logvar = torch.zeros_like(mu), torch.zeros_like(mu)
    if kind == "analytic":
        kl = 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(1)
        grad_mu, grad_logvar = g * mu, g * (0.5 * torch.expm1(logvar))
    elif kind != "none":
        kl = (0.5 * (z - eps) * (z + eps) - 0.5 * logvar).sum(2).mean(0)
        path = z if kind == "total-derivative" else mu + (sigma - 1.0 / sigma) * eps
        by_z = by_z + g * path / len(eps)
        grad_logvar = -0.5 * g * (kind == "total-derivative")
    if write_z or kind not in ("none", "analytic"):
        grad_mu = grad_mu + by_z.sum(0)
        grad_logvar = grad_logvar + 0.5 * sigma * (by_z * eps).sum(0)
    return Numbers(z if write_z else None, kl, grad_mu, grad_logvar)


def assert_propagates(
    name: str,
    actual: Tensor,
    want: Tensor,
    bound: Tensor,
    truncates: bool = False,
    apart: Tensor | None = None,
) -> None:
    """Check NaN where `want` is NaN, infinity where it is infinite or overflows, else the bound.

    apart: `want` with its sums in another order. If it is NaN and `want` is infinite, the op may be
    NaN.
    """
    limit = bound + SMALLEST
    if actual.dtype in ROUNDING:
        twice = 2.0 if truncates and actual.dtype == torch.bfloat16 else 1.0
        rounding = twice * ROUNDING[actual.dtype] * (want.abs() + limit)
        limit = limit + rounding + SUBNORMAL[actual.dtype]
    wide = actual.double()
    reaches = want.isfinite() & (want.abs() + limit >= torch.finfo(actual.dtype).max)
    right = (
        (wide.isnan() & want.isnan())
        | (wide == want)
        | (want.isfinite() & ((wide - want).abs() <= limit))
        | (reaches & wide.isinf() & (wide.sign() == want.sign()))
    )
    if apart is not None:
        right |= apart.isnan() & want.isinf() & wide.isnan()
    if not right.all():
        at = tuple(int(i) for i in (~right).nonzero()[0])
        raise AssertionError(
            f"{name} at {at}: {wide[at].item():.9g}, wanted {want[at].item():.9g} "
            f"within {limit[at].item():.3g}"
        )


def latent_propagates(case: LatentCase, truncates: bool = False) -> None:
    mode, mu, logvar, noise, samples, offsets = case
    upstream = helpers.upstream_of(mu, samples)
    eps = reference.normal(noise, samples, *mu.shape, **offsets)
    write_z, kind = MODES[mode]
    inputs = (mu, logvar, eps, upstream)
    wanted = formula(write_z, kind, *inputs)
    # The kernels add the gradients from z and from the KL sample by sample. The fallback adds their
    # sums over samples. The results differ if these sums are ∞ and −∞ but no sample has both.
    by_z = formula(write_z, "none", *inputs)
    by_kl = formula(False, kind, *inputs)
    aparts = (None, None, by_z.grad_mu + by_kl.grad_mu, by_z.grad_logvar + by_kl.grad_logvar)
    # 2u for each unit of logvar. Bounds must only be finite where logvar is finite or sigma is 0.
    reach = logvar.detach().double().nan_to_num(0.0, 0.0, 0.0).abs()
    slack = 1.0 + 2 * pixels.UNIT / ERROR * reach
    limits = helpers.bounds(mode, mu, logvar, eps, upstream)
    factors = (slack, slack.amax(1), slack, slack)
    for name, value, want, limit, factor, apart in zip(
        Numbers._fields, case.run(), wanted, limits, factors, aparts, strict=True
    ):
        assert (value is None) == (want is None), name
        if value is not None and want is not None:
            assert value.shape == want.shape, name
            assert value.dtype == (torch.float32 if name == "kl" else mu.dtype), name
            assert_propagates(f"{mode} {name}", value, want, factor * limit, truncates, apart)


def pixels_propagate(case: PixelCase, truncates: bool = False) -> None:
    actual, wanted = pixels.measured(*case), pixels.expected(*case)
    limits = pixels.bounds(*case)
    for name, value, want, limit in zip(
        pixels.Numbers._fields, actual, wanted, limits, strict=True
    ):
        assert (value is None) == (want is None), name
        if value is not None and want is not None and limit is not None:
            assert_propagates(name, value, want, limit, truncates)


def the_memory_layout_does_not_matter(case: str, drawn: Callable[[int], Layout]) -> None:
    """`drawn` gives a layout for a tensor's number of dimensions.

    The same numbers are computed, but the order of a sum may follow the memory.
    """
    arguments = arguments_of(case)
    moved = {
        name: place(x, drawn(x.dim())).detach() if isinstance(x, Tensor) else x
        for name, x in arguments.items()
    }
    wanted = outputs_and_gradients(case, arguments)
    for one, two in zip(outputs_and_gradients(case, moved), wanted, strict=True):
        assert_close(case, one, two)


def _assert_same_bits(name: str, one: Tensor | None, other: Tensor | None) -> None:
    assert (one is None) == (other is None), name
    if one is not None and other is not None:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)


def latent_repeats(case: LatentCase) -> None:
    for name, one, two in zip(Numbers._fields, case.run(), case.run(), strict=True):
        _assert_same_bits(name, one, two)


def pixels_repeat(case: PixelCase) -> None:
    pairs = zip(pixels.measured(*case), pixels.measured(*case), strict=True)
    for name, (one, two) in zip(pixels.Numbers._fields, pairs, strict=True):
        _assert_same_bits(name, one, two)


def rows_of_z_need_no_others(case: LatentCase, chosen: slice) -> None:
    """A part of the batch that is drawn alone at its offset equals that part of the whole batch."""
    case = case._replace(mode="rsample")
    offsets = case.offsets | {"row_offset": case.offsets["row_offset"] + chosen.start}
    part = case._replace(mu=case.mu[chosen], logvar=case.logvar[chosen], offsets=offsets)
    whole, alone = case.run().z, part.run().z
    assert whole is not None
    _assert_same_bits("z", alone, whole[:, chosen])


def rows_never_meet(case: LatentCase, row: int) -> None:
    """A row's results do not change if all other rows become NaN."""
    keep = (torch.arange(len(case.mu)) == row)[:, None]
    dense = case._replace(
        mu=case.mu.detach().clone(memory_format=torch.contiguous_format).requires_grad_(),
        logvar=case.logvar.detach().clone(memory_format=torch.contiguous_format).requires_grad_(),
    )
    spoilt = case._replace(
        mu=dense.mu.detach().where(keep, torch.nan).requires_grad_(),
        logvar=dense.logvar.detach().where(keep, torch.nan).requires_grad_(),
    )
    for name, one, two in zip(Numbers._fields, dense.run(), spoilt.run(), strict=True):
        at = (slice(None), row) if name == "z" else row
        _assert_same_bits(name, None if one is None else one[at], None if two is None else two[at])


def pixel_rows_may_be_permuted(case: PixelCase, order: list[int], bitwise: bool) -> None:
    """Rows in another order, repeated or omitted, have the same results.

    The kernels' results are bit-identical. PyTorch's eager functions use another formula for
    elements beyond the last whole vector, and which elements these are depends on a row's position.
    So eager results may differ by twice the allowed error.
    """
    logits, x = (t.detach().contiguous().requires_grad_(t.requires_grad) for t in case)
    upstream = torch.linspace(0.5, 1.5, logits.shape[0])[:, None]

    def run(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        out = bernoulli_log_prob(logits, x)
        (grad,) = torch.autograd.grad(out, logits, upstream.expand_as(out))
        return out.detach(), grad

    whole, part = run(logits, x), run(logits[:, order], x[order])
    gradient = pixels.GRADIENT_ERROR * upstream[..., None]
    limits = (pixels.bounds(logits, x).log_prob[:, order], gradient)
    for name, one, two, limit in zip(("log_prob", "grad_logits"), whole, part, limits, strict=True):
        one = one[:, order]
        if bitwise:
            _assert_same_bits(name, one, two)
            continue
        same = (one == two) | (one.isnan() & two.isnan())
        rounding = ROUNDING.get(one.dtype, 0.0) * one.double().abs()
        apart = (one.double() - two.double()).abs()
        assert bool((same | (apart <= 2 * (limit + rounding))).all()), name
