"""Small decoders, their true results and error bounds for the tests of importance sampling.

Bounds in float32. A layer of N inputs errs by N + 2 roundings of the sum of its terms' sizes, and
passes on the errors of its inputs. Sizes are bounded by the same perceptron with absolute values.
The slopes of both activations, and of the log-likelihood in a logit, are at most 1.
tests/kernels/bernoulli/pixels.py and last_layer.py derive the log-likelihood's own error.
Log-ratios are sums of terms that err by 1e-6 of z² and eps². A log-sum of weights errs by at most
the error of its worst weight, plus a few roundings of itself.

Rounded operands change a logit by thousands of independent roundings. A worst-case bound as above
would be several times the value itself. The actual error is a small fraction of the terms' sizes.
For these decoders, it was measured as up to 0.7 % (of one pixel; 0.3 % of 84) in bfloat16 rounded
to nearest, as on CPUs and GPUs. It is four times that with Triton's interpreter, whose truncation
always errs in one direction. TF32 errors are a quarter of those of bfloat16.
"""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.kernels.bernoulli.pixels import UNIT
from vaez_kernels import reference

RELATIVE = {"float32": 0.0, "tf32": 2e-3, "bfloat16": 8e-3}


class Given(NamedTuple):
    decoder: nn.Sequential
    mu: Tensor  # (B, D)
    logvar: Tensor
    x: Tensor  # (B, P)


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """A decoder from widths[0] latents to widths[-1] pixels, with logits of about ±3."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.normal_(linear.weight, std=1.5 / math.sqrt(fan_in))
            layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def given(
    images: int,
    *widths: int,
    activation: type[nn.Module] = nn.ReLU,
    targets: torch.dtype = torch.uint8,
) -> Given:
    generator = torch.Generator().manual_seed(images)
    mu = torch.randn(images, widths[0], generator=generator)
    logvar = torch.randn(images, widths[0], generator=generator) - 1.0
    u = torch.rand(images, widths[-1], generator=generator)
    x = u.to(targets) if targets.is_floating_point else (u < 0.3).to(targets)
    return Given(perceptron(*widths, activation=activation), mu, logvar, x)


class Truth(NamedTuple):
    log_likelihood: Tensor  # (B,) float64
    log_prob: Tensor
    bound: Tensor  # (B,): the largest error of either


def truth(
    of: Given, noise: Tensor, samples: int, precision: str = "float32", **offsets: int
) -> Truth:
    wide = deepcopy(of.decoder).double()
    eps = reference.normal(noise, samples, *of.mu.shape, **offsets)
    log_weight, log_prob = reference.importance_log_weights(wide, of.mu, of.logvar, of.x, eps)
    log_likelihood = torch.logsumexp(log_weight, 0) - math.log(samples)
    return Truth(log_likelihood, log_prob.mean(0), _bound(of, wide, eps, RELATIVE[precision]))


def _bound(of: Given, wide: nn.Sequential, eps: Tensor, relative: float) -> Tensor:
    mu, logvar = of.mu.double(), of.logvar.double()
    z = reference.rsample(mu, logvar, eps)
    # Bounds of a layer's inputs: on their absolute values, and on their errors.
    size, error = z.abs(), 1e-6 * (1 + mu.abs() + torch.exp(0.5 * logvar) * eps.abs().clamp(min=1))
    with torch.no_grad():
        for layer in (m for m in wide if isinstance(m, nn.Linear)):
            sums = size @ layer.weight.abs().t() + layer.bias.abs()
            error = error @ layer.weight.abs().t() + (layer.in_features + 2) * UNIT * sums
            size = sums
        logits = wide(z)
        parts = (of.x.double() * logits.abs() + torch.nn.functional.softplus(logits)).sum(2)
        pixels = of.x.shape[1]
        ratio = (z.square() + eps.square() + logvar.abs()).sum(2) * 1e-6
        value = error.sum(2) + (pixels / 8 + 8) * UNIT * parts + 5 * UNIT * pixels + ratio
    return value.amax(0) + (4 * UNIT + relative) * parts.amax(0)
