"""Cases of importance sampling; bench/ops/bench_importance.py times it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from .. import reference
from ..bernoulli.case import textbook_log_prob
from ..error_bounds import Rules
from ..linear_bernoulli.case import operands_of, textbook_layer
from ..testing import KEY, Arguments, Case, Tensors
from . import importance_estimates

# The precision of float32 products.
OPS = {
    "importance_log_likelihood/float32": "float32",
    "importance_log_likelihood/tf32": "tf32",
    "importance_log_likelihood/bfloat16": "bfloat16",
}
# S, B and a decoder's widths. The first decoder is called as a function. The second, altosaar's, is
# taken apart.
CALLED_SHAPE, SHAPE = (40, 3, 5, 19, 23, 84), (9, 2, 128, 256, 256, 784)
LARGE = (100, 64, 128, 256, 256, 784)
LEAVES = ()
RULES = Rules(products=True, operands=lambda case, backend: operands_of(OPS[case.op], backend))


def cases() -> Iterator[Case]:
    for op in OPS:
        yield Case(op, CALLED_SHAPE, torch.float32, called=True)
        yield Case(op, SHAPE, torch.float32)


def large_cases() -> Iterator[Case]:
    return (Case(op, LARGE, torch.float32) for op in OPS)


def inputs(case: Case) -> Arguments:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, pixels, widths = case.shape[1], case.shape[-1], case.shape[2:]
    x = (draw(rows, pixels) > 0).to(torch.uint8)
    mu, logvar = draw(rows, widths[0]), draw(rows, widths[0]) - 1.0
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out, device="meta")
        weight = 1.5 / math.sqrt(fan_in) * draw(fan_out, fan_in)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(draw(fan_out), requires_grad=False)
        modules += [layer, nn.ReLU()]
    decoder = nn.Sequential(*modules[:-1])
    settings = {"noise": KEY, "num_samples": case.shape[0], "precision": OPS[case.op]}
    return {"decoder": decoder, "mu": mu, "logvar": logvar, "x": x} | settings


def call(case: Case, arguments: Arguments) -> Tensors:
    decoder = arguments["decoder"]
    if case.called:
        arguments = arguments | {"decoder": lambda z: decoder(z)}
    return importance_estimates(**arguments)._asdict()


def truth(case: Case, arguments: Arguments, rounded: bool) -> Tensors:
    mu, logvar, x = arguments["mu"], arguments["logvar"], arguments["x"]
    eps = reference.normal(KEY, case.shape[0], *mu.shape)
    return _estimates(*reference.importance_log_weights(arguments["decoder"], mu, logvar, x, eps))


def textbook(case: Case, arguments: Arguments, operands: str) -> Tensors:
    mu, logvar = arguments["mu"], arguments["logvar"]
    sigma = torch.exp(0.5 * logvar)
    z = mu + sigma * reference.normal(KEY, case.shape[0], *mu.shape).float()
    *hidden, last = (layer for layer in arguments["decoder"] if isinstance(layer, nn.Linear))
    a = z
    for layer in hidden:
        a = torch.relu(textbook_layer(a, layer.weight, layer.bias, operands))
    logits = textbook_layer(a, last.weight, last.bias, operands)
    log_prob = textbook_log_prob(logits, arguments["x"])
    q = Normal(mu, sigma, validate_args=False)
    p = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return _estimates(log_prob + (p.log_prob(z) - q.log_prob(z)).sum(2), log_prob)


def _estimates(log_weight: Tensor, log_prob: Tensor) -> Tensors:
    # (S, B) → (B,)
    log_likelihood = torch.logsumexp(log_weight, 0) - math.log(len(log_weight))
    return {"log_likelihood": log_likelihood, "log_prob": log_prob.mean(0)}


@torch.no_grad()
def chunked_log_likelihood(
    decoder: nn.Module,
    mu: Tensor,
    logvar: Tensor,
    x: Tensor,
    num_samples: int,
    rows: int,
    draw: Callable[[int, int], Tensor] | None = None,
    compiled: bool = False,
) -> Tensor:
    """mu, logvar (B, D), x (B, P) → log 1/S Σ_s p(x, z_s)/q(z_s|x), (B,), in chunks of `rows` z.

    `draw`: (first sample, count) → eps (count, B, D); torch.randn if None.
    """

    def log_weights(eps: Tensor) -> Tensor:
        sigma = torch.exp(0.5 * logvar)
        z = mu + sigma * eps
        q, p = Normal(mu, sigma, validate_args=False), Normal(0.0, 1.0, validate_args=False)
        log_ratio = (q.log_prob(z) - p.log_prob(z)).sum(2)
        return textbook_log_prob(decoder(z), x) - log_ratio

    run = torch.compile(log_weights, dynamic=False) if compiled else log_weights
    at_once = max(1, rows // len(mu))
    parts = []
    for first in range(0, num_samples, at_once):
        count = min(at_once, num_samples - first)
        eps = (
            torch.randn(count, *mu.shape, device=mu.device) if draw is None else draw(first, count)
        )
        parts.append(run(eps))
    return torch.logsumexp(torch.cat(parts), 0) - math.log(num_samples)
