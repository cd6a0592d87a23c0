"""What `vaez-fast compare` runs: every op, its inputs, and three ways to compute it.

Ours is the public function on some backend; the truth is vaez_kernels.reference in float64; the
yardstick is textbook PyTorch in the dtype of the inputs, given the same eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vaez_kernels import (
    bernoulli_log_prob,
    kl_standard_normal,
    kl_standard_normal_mc,
    mixture_log_prob,
    normal,
    reference,
    rsample,
    rsample_kl,
    uniform,
)

from . import comparison_products as products
from .comparison_case import (
    DTYPES,
    KEY,
    Case,
    Tensors,
    in_float64,
    leaves_of,
    on_device,
    with_gradients,
)
from .names import OPS as OPS

STREAMS = ("normal", "uniform")
# Is z an output, and which KL.
LATENT_OPS = {
    "rsample": (True, None),
    "kl_standard_normal": (False, "analytic"),
    "kl_standard_normal_mc/total-derivative": (False, "total-derivative"),
    "kl_standard_normal_mc/sticking-the-landing": (False, "sticking-the-landing"),
    "rsample_kl/analytic": (True, "analytic"),
    "rsample_kl/total-derivative": (True, "total-derivative"),
    "rsample_kl/sticking-the-landing": (True, "sticking-the-landing"),
}
LIKELIHOOD_OPS = {
    "bernoulli_log_prob/uint8": torch.uint8,
    "bernoulli_log_prob/float32": torch.float32,
}
# Does each draw leave a component out.
MIXTURE_OPS = {"mixture_log_prob": False, "mixture_log_prob/leave_out": True}
LATENT_SHAPES = (  # S, B, D
    (1, 1, 1),
    (8, 7, 3),
    (3, 7, 19),
    (1, 129, 20),
    (3, 129, 20),
    (1, 33, 128),
    (3, 1, 257),
    (1, 7, 1000),
)
PIXEL_SHAPES = ((1, 1, 1), (9, 7, 19), (1, 129, 784), (3, 7, 784))  # S, B, P
MIXTURE_SHAPES = ((1, 2, 1), (7, 5, 3), (17, 129, 20), (5, 300, 128))  # M, N, D
# On a GPU also what fills one.
LARGE_LATENT, LARGE_PIXELS = ((1, 8192, 128), (8, 2048, 128)), ((8, 256, 784),)
LARGE_MIXTURE = ((500, 2000, 64),)
# Inputs: N(0, 1); a KL between 1e-8 and 1, where training ends; σ from e⁻⁶ to e³, mu to 30.
VALUES = ("normal", "near zero", "wide")
VALUES_SHAPE = (3, 33, 20)


def cases(ops: Sequence[str], large: bool) -> list[Case]:
    """The grid of `ops`, the same each time; when `large`, followed by sizes that fill a GPU."""
    grid = [
        *_streams(),
        *_latent_cases(),
        *_pixel_cases(),
        *_mixture_cases(),
        *products.product_cases(),
        *(_large_cases() if large else ()),
    ]
    return [case for case in grid if case.op in ops]


def _streams() -> Iterator[Case]:
    for op in STREAMS:
        for shape in LATENT_SHAPES:
            yield Case(op, shape, torch.float32)
        yield Case(op, VALUES_SHAPE, torch.float32, row_offset=2**40 + 3)


def _latent_cases() -> Iterator[Case]:
    for op in LATENT_OPS:
        for dtype in DTYPES:
            for shape in LATENT_SHAPES:
                yield Case(op, shape, dtype)
            for values in VALUES[1:]:
                yield Case(op, VALUES_SHAPE, dtype, values)
            yield Case(op, VALUES_SHAPE, dtype, halves=True)


def _pixel_cases() -> Iterator[Case]:
    for op in LIKELIHOOD_OPS:
        for dtype in DTYPES:
            for shape in PIXEL_SHAPES:
                yield Case(op, shape, dtype)
            yield Case(op, VALUES_SHAPE, dtype, "wide")


def _mixture_cases() -> Iterator[Case]:
    for op in MIXTURE_OPS:
        for dtype in DTYPES:
            for shape in MIXTURE_SHAPES:
                yield Case(op, shape, dtype)
        yield Case(op, VALUES_SHAPE, torch.float32, "wide")


def _large_cases() -> Iterator[Case]:
    large = dict.fromkeys(LIKELIHOOD_OPS, LARGE_PIXELS) | dict.fromkeys(MIXTURE_OPS, LARGE_MIXTURE)
    for op in (*STREAMS, *LATENT_OPS, *large):
        for dtype in DTYPES if op not in STREAMS else DTYPES[:1]:
            for shape in large.get(op, LARGE_LATENT):
                yield Case(op, shape, dtype)
    yield from products.large_product_cases()


# Inputs.


def inputs(case: Case) -> Tensors:
    """The op's tensors on the CPU, by argument name: the same numbers for every backend."""
    if case.op in products.PRODUCT_OPS:
        return products.inputs(case)
    samples, rows, columns = case.shape
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if case.op in STREAMS:
        return {}
    if case.op in LIKELIHOOD_OPS:
        scale = 30.0 if case.values == "wide" else 3.0
        x = (draw(rows, columns) > 0).to(LIKELIHOOD_OPS[case.op])
        if x.is_floating_point():
            x = torch.rand(x.shape, generator=generator)
        return {"logits": (scale * draw(samples, rows, columns)).to(case.dtype), "x": x}
    if case.op in MIXTURE_OPS:
        return _mixture_inputs(case, draw)
    mu, logvar = draw(rows, 2 * columns).chunk(2, 1)
    if case.values == "near zero":
        size = torch.logspace(-4.5, -0.5, rows)[:, None]
        mu, logvar = size * mu, size * logvar
    elif case.values == "wide":
        mu, logvar = 10.0 * mu, (3.0 * logvar).clamp(-12.0, 6.0)
    both = torch.cat((mu, logvar), 1).to(case.dtype)
    mu, logvar = both.chunk(2, 1)
    if not case.halves:
        mu, logvar = mu.contiguous(), logvar.contiguous()
    return {"mu": mu, "logvar": logvar}


def _mixture_inputs(case: Case, draw: Callable[..., Tensor]) -> Tensors:
    # Draws of the components themselves: far from all of them, textbook code has no digits left.
    draws, components, columns = case.shape
    mu, logvar = draw(components, columns), draw(components, columns) - 1.0
    if case.values == "wide":
        mu, logvar = 10.0 * mu, (3.0 * logvar).clamp(-12.0, 6.0)
    own = torch.arange(draws) % components
    z = mu[own] + torch.exp(0.5 * logvar[own]) * draw(draws, columns)
    tensors = {name: x.to(case.dtype) for name, x in (("z", z), ("mu", mu), ("logvar", logvar))}
    return tensors | ({"leave_out": own} if MIXTURE_OPS[case.op] else {})


def _mixture(
    case: Case, density: Callable[..., Tensor], tensors: Tensors, rounded: bool = False
) -> Tensors:
    # Components take no gradient.
    z = tensors["z"].detach().requires_grad_()
    log_prob = density(z, *(x for name, x in tensors.items() if name != "z"))
    return with_gradients(case, {"log_prob": log_prob}, {"z": z}, rounded)


# Three ways to compute a case. Each returns outputs and gradients ("grad mu") on the CPU.


def ours(case: Case, device: torch.device) -> Tensors:
    """The public function, on the backend that is in force."""
    if case.op in products.PRODUCT_OPS:
        return products.ours(case, device)
    samples, rows, columns = case.shape
    noise = KEY.to(device)
    tensors = on_device(device, inputs(case))
    leaves = leaves_of(tensors)
    name, _, kind = case.op.partition("/")
    if case.op in STREAMS:
        draw = normal if name == "normal" else uniform
        return {"n": draw(noise, samples, rows, columns, row_offset=case.row_offset).cpu()}
    if case.op in LIKELIHOOD_OPS:
        log_prob = bernoulli_log_prob(leaves["logits"], leaves.get("x", tensors["x"]))
        return with_gradients(case, {"log_prob": log_prob}, leaves)
    if case.op in MIXTURE_OPS:
        return _mixture(case, mixture_log_prob, tensors)
    mu, logvar = leaves["mu"], leaves["logvar"]
    outputs: Tensors
    if name == "rsample":
        outputs = {"z": rsample(mu, logvar, noise, samples)}
    elif name == "kl_standard_normal":
        outputs = {"kl": kl_standard_normal(mu, logvar)}
    elif name == "kl_standard_normal_mc":
        outputs = {"kl": kl_standard_normal_mc(mu, logvar, noise, samples, kind)}
    else:
        z, kl = rsample_kl(mu, logvar, noise, samples, kind)
        outputs = {"z": z, "kl": kl}
    return with_gradients(case, outputs, leaves)


def truth(case: Case, rounded: bool = False) -> Tensors:
    """The float64 reference; `rounded`, of eps and upstream gradients in the case's dtype.

    That is what textbook code in bfloat16 is held to: a user draws eps in the dtype of z, and its
    rounding is no error.
    """
    if case.op in products.PRODUCT_OPS:
        return products.truth(case, rounded)
    samples, rows, columns = case.shape
    if case.op in STREAMS:
        draw = reference.normal if case.op == "normal" else reference.uniform
        return {"n": draw(KEY, samples, rows, columns, row_offset=case.row_offset)}
    tensors = in_float64(inputs(case))
    if case.op in MIXTURE_OPS:
        return _mixture(case, reference.mixture_log_prob, tensors, rounded)
    leaves = leaves_of(tensors)
    if case.op in LIKELIHOOD_OPS:
        log_prob = reference.bernoulli_log_prob(leaves["logits"], leaves.get("x", tensors["x"]))
        return with_gradients(case, {"log_prob": log_prob}, leaves, rounded)
    write_z, kl = LATENT_OPS[case.op]
    mu, logvar = leaves["mu"], leaves["logvar"]
    eps = reference.normal(KEY, samples, rows, columns)
    if rounded:
        eps = eps.to(case.dtype).double()
    outputs = {"z": reference.rsample(mu, logvar, eps)} if write_z else {}
    if kl == "analytic":
        outputs["kl"] = reference.kl_standard_normal(mu, logvar)
    elif kl is not None:
        outputs["kl"] = reference.kl_standard_normal_mc(mu, logvar, eps, kl)
    return with_gradients(case, outputs, leaves, rounded)


def textbook(case: Case, operands: str = "") -> Tensors | None:
    """What a user writes, in the inputs' own dtype; None for the stream, which is only ours.

    `operands`: what those of a product are made before they are multiplied.
    """
    if case.op in products.PRODUCT_OPS:
        return products.textbook(case, operands)
    samples, rows, columns = case.shape
    if case.op in STREAMS:
        return None
    tensors = inputs(case)
    leaves = leaves_of(tensors)
    if case.op in LIKELIHOOD_OPS:
        log_prob = products.bernoulli_log_prob(leaves["logits"], leaves.get("x", tensors["x"]))
        return with_gradients(case, {"log_prob": log_prob}, leaves)
    if case.op in MIXTURE_OPS:
        return _mixture(case, _textbook_mixture, tensors)
    write_z, kl = LATENT_OPS[case.op]
    mu, logvar = leaves["mu"], leaves["logvar"]
    eps = reference.normal(KEY, samples, rows, columns).to(case.dtype)
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * eps
    outputs = {"z": z} if write_z else {}
    p = Normal(torch.zeros_like(mu), torch.ones_like(mu), validate_args=False)
    if kl == "analytic":
        outputs["kl"] = kl_divergence(Normal(mu, sigma, validate_args=False), p).sum(1)
    elif kl is not None:
        held = kl == "sticking-the-landing"
        q = Normal(mu.detach(), sigma.detach()) if held else Normal(mu, sigma)
        outputs["kl"] = (q.log_prob(z) - p.log_prob(z)).sum(2).mean(0)
    return with_gradients(case, outputs, leaves)


def _textbook_mixture(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    components = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    log_q = components.log_prob(z[:, None]).sum(2)
    if leave_out is None:
        return log_q.logsumexp(1) - math.log(len(mu))
    others = log_q.scatter(1, leave_out[:, None], -torch.inf)
    return others.logsumexp(1) - math.log(len(mu) - 1)
