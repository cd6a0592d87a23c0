"""Importance sampling in PyTorch, a tile of samples at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..affine import affine
from ..backend import autocast_device, is_plain, without_autocast
from ..bernoulli import bernoulli_log_prob
from ..bernoulli.kernel import readable
from ..compiler import (
    compiled_once,
    compiled_without_guards,
    example,
    has_cpu_compiler,
    sizes_unlike,
)
from ..linear_bernoulli import linear_bernoulli_log_prob
from ..linear_bernoulli.twin import bernoulli_in_products
from ..noise import draw
from .perceptron import Perceptron

# Logits decoded at once. On a CPU, those of 1,024 images fit in the cache. A GPU needs more.
LOGITS = {"cpu": 784 << 10, "cuda": 784 << 17}
# From this total number of logits on, compiling a decoder's tile, which takes seconds, may be
# worthwhile.
COMPILE_FROM = 1 << 20
# Samples of an image decoded at once, if there are that many: they share its mu and its targets.
SAMPLES = 32

Decoder = Callable[[Tensor], Tensor]


# The sums over one tile of samples: log Σ_s of the weights and Σ_s log p(x|z_s), each (b,).
Sums = tuple[Tensor, Tensor]


def _log_ratio(mu: Tensor, logvar: Tensor, eps: Tensor, z: Tensor) -> Tensor:
    # log q(z|x) − log p(z), (s, b), for z = mu + exp(logvar/2)·eps
    return (0.5 * (z - eps) * (z + eps) - 0.5 * logvar).sum(2)


def _products_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _activation(a: Tensor, kind: str) -> Tensor:
    return torch.tanh(a) if kind == "tanh" else torch.relu(a)


def _layer(a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # (rows, in) → (rows, out) float32, with a product in the weight's dtype
    found = affine(a, weight, bias)
    return (a.to(weight.dtype) @ weight.t()).float() + bias if found is None else found


def _last_hidden(a: Tensor, activation: str, layers: Sequence[Tensor]) -> Tensor:
    # → the input of the last layer; layers: a weight, its bias, the next weight, …
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        a = _activation(_layer(a, weight, bias), activation)
    return a


def _perceptron_tile(
    activation: str, eps: Tensor, mu: Tensor, logvar: Tensor, x: Tensor, *layers: Tensor
) -> Sums:
    # eps (s, b, D), mu and logvar (b, D), x (b, P)
    samples, images, _ = eps.shape
    z = mu + torch.exp(0.5 * logvar) * eps
    a = _last_hidden(z.flatten(0, 1), activation, layers)
    weight, bias = layers[-2:]
    logits = _layer(a, weight, bias).unflatten(0, (samples, images))
    log_prob = bernoulli_in_products(logits, x)
    log_weight = log_prob - _log_ratio(mu, logvar, eps, z)
    return torch.logsumexp(log_weight, 0), log_prob.sum(0)


@compiled_once
def compiled_tile(
    activation: str, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, targets: torch.dtype
) -> Any:
    latents, pixels = shapes[0][1], shapes[-1][0]
    samples, images = sizes_unlike(2, pixels, *(size for shape in shapes for size in shape))

    def tile(eps: Tensor, mu: Tensor, logvar: Tensor, x: Tensor, *layers: Tensor) -> Sums:
        for layer in layers:  # makes these sizes constant; the number of rows stays variable
            for size in layer.shape:
                int(size)
        return _perceptron_tile(activation, eps, mu, logvar, x, *layers)

    layers = (
        example(*size, dtype=kind)
        for out, fan_in in shapes
        for size, kind in (((out, fan_in), dtype), ((out,), torch.float32))
    )
    return compiled_without_guards(
        tile,
        example(samples, images, latents),
        example(images, latents),
        example(images, latents),
        example(images, pixels, dtype=targets),
        *layers,
    )


def _rows(x: Tensor) -> int:
    # images × samples decoded at once, for x (B, P)
    return max(1, LOGITS.get(x.device.type, LOGITS["cuda"]) // x.shape[1])


def _tiles(images: int, num_samples: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    # → first image, number of images, first sample, number of samples: all samples of a block of
    # images in sequence
    b = max(1, min(images, rows // min(num_samples, SAMPLES)))
    s = min(num_samples, max(1, rows // b))
    for image in range(0, images, b):
        for sample in range(0, num_samples, s):
            yield image, min(b, images - image), sample, min(s, num_samples - sample)


class Streaming(NamedTuple):
    """Running sums for B images, in float64."""

    log_sum: Tensor
    log_prob: Tensor

    def add(self, rows: slice, sums: Sums) -> None:
        log_sum, log_prob = (part.double() for part in sums)
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], log_sum)
        self.log_prob[rows] += log_prob


class Samples(NamedTuple):
    """The images whose latents are sampled, and the part of the stream that is used."""

    mu: Tensor
    logvar: Tensor
    x: Tensor
    noise: Tensor
    num_samples: int
    row_offset: int
    sample_offset: int

    def eps(self, image: int, b: int, sample: int, s: int) -> Tensor:
        shape = (s, b, self.mu.shape[1])
        return draw(self.noise, shape, self.row_offset + image, self.sample_offset + sample)


def run_perceptron_tiles(
    of: Samples, decoder: Perceptron, precision: str, streaming: Streaming
) -> None:
    dtype = _products_dtype(precision)
    layers = decoder.tensors(dtype)
    mu, logvar, x = of.mu.float().contiguous(), of.logvar.float().contiguous(), readable(of.x)
    code = None
    worth_it = mu.device.type == "cpu" and of.num_samples * x.numel() >= COMPILE_FROM
    if worth_it and is_plain(mu, logvar, x, of.noise) and has_cpu_compiler():
        shapes = tuple((w.shape[0], w.shape[1]) for w in decoder.weights)
        code = compiled_tile(decoder.activation, shapes, dtype, x.dtype)
    run = code or functools.partial(_perceptron_tile, decoder.activation)
    for image, b, sample, s in _tiles(len(mu), of.num_samples, _rows(x)):
        rows = slice(image, image + b)
        eps = of.eps(image, b, sample, s)
        with without_autocast(mu):
            sums = run(eps, mu[rows], logvar[rows], x[rows].contiguous(), *layers)
        streaming.add(rows, sums)


def run_layers(
    of: Samples,
    decoder: Decoder,
    layers: Perceptron | None,
    precision: str,
    streaming: Streaming,
) -> None:
    # any decoder; the logits of a perceptron never reach memory
    device = autocast_device(of.mu)
    bfloat16 = precision == "bfloat16"
    tensors = [] if layers is None else layers.tensors(_products_dtype(precision))
    for image, b, sample, s in _tiles(len(of.mu), of.num_samples, _rows(of.x)):
        rows = slice(image, image + b)
        wide = torch.promote_types(of.mu.dtype, torch.float32)
        mu, logvar, x = of.mu[rows].to(wide), of.logvar[rows].to(wide), of.x[rows]
        eps = of.eps(image, b, sample, s).to(wide)
        z = mu + torch.exp(0.5 * logvar) * eps
        if layers is None:
            with torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext():
                logits = decoder(z)
            _check_logits(logits, (s, b, x.shape[1]))
            log_prob = bernoulli_log_prob(logits, x)
        else:
            with without_autocast(z):
                a = _last_hidden(z, layers.activation, tensors)
                weight, bias = tensors[-2:]
                a = a.to(weight.dtype)
                log_prob = linear_bernoulli_log_prob(a, weight, bias, x, precision)
        log_weight = log_prob - _log_ratio(mu, logvar, eps, z)
        streaming.add(rows, (torch.logsumexp(log_weight, 0), log_prob.sum(0)))


def _check_logits(logits: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"importance_log_likelihood: decoder must return logits of shape (S, B, P) = {shape} "
            f"for z (S, B, D), got {got}"
        )
