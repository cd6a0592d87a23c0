"""Importance-sampled log p(x) of a VAE, streaming over samples: memory does not grow with them.

Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8: the mean over
S samples z_s ~ q(z|x) of p(x, z_s)/q(z_s|x) estimates p(x) without bias, its logarithm from below.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backend import has_fast_bfloat16, is_plain, uses_triton, without_autocast
from ..bernoulli import bernoulli_log_prob, readable
from ..checks import check_choice, check_count, check_latent, check_noise, check_targets_of
from ..compiler import (
    compiled_once,
    compiled_without_guards,
    example,
    has_cpu_compiler,
    sizes_unlike,
)
from ..linear_bernoulli import bernoulli_in_products, linear_bernoulli_log_prob
from ..noise import check_offsets, draw
from .kernel import decoder_kernel, launch_decoder, tile_for
from .perceptron import Perceptron, taken_apart

PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
# Logits decoded at once: as many as 1,024 images have stay in a CPU's cache; a GPU wants more.
LOGITS = {"cpu": 784 << 10, "cuda": 784 << 17}
# From so many logits on in all, compiling a decoder's tile, for seconds, may pay.
COMPILE_FROM = 1 << 20
# Samples of an image decoded at once, where there are so many: they share its mu and its targets.
SAMPLES = 32
# Samples that one launch of the kernel takes; its tiles' sums stay below 4 KiB an image.
SAMPLES_PER_LAUNCH = 1 << 13

Decoder = Callable[[Tensor], Tensor]


class ImportanceEstimates(NamedTuple):
    """Two estimates from the same samples, each (B,) in nats."""

    log_likelihood: Tensor  # log 1/S Σ_s p(x, z_s)/q(z_s|x)
    log_prob: Tensor  # 1/S Σ_s log p(x|z_s): minus the distortion


# What one tile of samples adds: log Σ_s of the weights and Σ_s log p(x|z_s), each (b,).
Sums = tuple[Tensor, Tensor]


def _log_ratio(mu: Tensor, logvar: Tensor, eps: Tensor, z: Tensor) -> Tensor:
    # log q(z|x) − log p(z), (s, b), for z = mu + exp(logvar/2)·eps
    return (0.5 * (z - eps) * (z + eps) - 0.5 * logvar).sum(2)


def _products_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _activation(a: Tensor, kind: str) -> Tensor:
    return torch.tanh(a) if kind == "tanh" else torch.relu(a)


def _layer(a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # (rows, in) → (rows, out) float32: a product in the weight's dtype
    return (a.to(weight.dtype) @ weight.t()).float() + bias


def _last_hidden(a: Tensor, activation: str, layers: Sequence[Tensor]) -> Tensor:
    # what the last layer is given; layers: a weight, its bias, the next weight, …
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
    logits = _layer(a, *layers[-2:]).unflatten(0, (samples, images))
    log_prob = bernoulli_in_products(logits, x)
    log_weight = log_prob - _log_ratio(mu, logvar, eps, z)
    return torch.logsumexp(log_weight, 0), log_prob.sum(0)


@compiled_once
def _compiled_tile(
    activation: str, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, targets: torch.dtype
) -> Any:
    latents, pixels = shapes[0][1], shapes[-1][0]
    samples, images = sizes_unlike(2, pixels, *(size for shape in shapes for size in shape))

    def tile(eps: Tensor, mu: Tensor, logvar: Tensor, x: Tensor, *layers: Tensor) -> Sums:
        for layer in layers:  # these sizes are fixed; how many rows there are is not
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
    # images times samples at once, for x (B, P)
    return max(1, LOGITS.get(x.device.type, LOGITS["cuda"]) // x.shape[1])


def _tiles(images: int, num_samples: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    # → first image and how many, first sample and how many: all samples of a block of images in
    # sequence
    b = max(1, min(images, rows // min(num_samples, SAMPLES)))
    s = min(num_samples, max(1, rows // b))
    for image in range(0, images, b):
        for sample in range(0, num_samples, s):
            yield image, min(b, images - image), sample, min(s, num_samples - sample)


class _Streaming(NamedTuple):
    """Running sums for B images, in float64."""

    log_sum: Tensor
    log_prob: Tensor

    def add(self, rows: slice, sums: Sums) -> None:
        log_sum, log_prob = (part.double() for part in sums)
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], log_sum)
        self.log_prob[rows] += log_prob


class _Samples(NamedTuple):
    """Whose samples, and which of the stream."""

    mu: Tensor
    logvar: Tensor
    x: Tensor
    noise: Tensor
    num_samples: int
    row_offset: int
    sample_offset: int

    def eps(self, image: int, b: int, sample: int, s: int) -> Tensor:
        shape = (s, b, self.mu.shape[1])
        return draw(self.noise, shape, self.row_offset + image, self.sample_offset + sample, True)


def _run_kernel(of: _Samples, decoder: Perceptron, precision: str, streaming: _Streaming) -> None:
    for first in range(0, of.num_samples, SAMPLES_PER_LAUNCH):
        count = min(SAMPLES_PER_LAUNCH, of.num_samples - first)
        offsets = (of.row_offset, of.sample_offset + first)
        args = (of.mu, of.logvar, of.x, of.noise, count, *offsets, precision)
        with torch.cuda.device_of(of.mu):
            streaming.add(slice(None), launch_decoder(decoder_kernel, decoder, *args))


def _run_perceptron_tiles(
    of: _Samples, decoder: Perceptron, precision: str, streaming: _Streaming
) -> None:
    dtype = _products_dtype(precision)
    layers = decoder.tensors(dtype)
    mu, logvar, x = of.mu.float().contiguous(), of.logvar.float().contiguous(), readable(of.x)
    code = None
    worth_it = mu.device.type == "cpu" and of.num_samples * x.numel() >= COMPILE_FROM
    if worth_it and is_plain(mu, logvar, x, of.noise) and has_cpu_compiler():
        shapes = tuple((w.shape[0], w.shape[1]) for w in decoder.weights)
        code = _compiled_tile(decoder.activation, shapes, dtype, x.dtype)
    run = code or functools.partial(_perceptron_tile, decoder.activation)
    for image, b, sample, s in _tiles(len(mu), of.num_samples, _rows(x)):
        rows = slice(image, image + b)
        eps = of.eps(image, b, sample, s)
        with without_autocast(mu):
            sums = run(eps, mu[rows], logvar[rows], x[rows].contiguous(), *layers)
        streaming.add(rows, sums)


def _run_layers(
    of: _Samples,
    decoder: Decoder,
    layers: Perceptron | None,
    precision: str,
    streaming: _Streaming,
) -> None:
    # any decoder; of a perceptron's logits none reach memory
    device = of.mu.device.type
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


class _NoGradient(torch.autograd.Function):
    """A result that would be taken for a constant: its backward refuses."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *inputs: Tensor) -> Tensor:
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "importance_log_likelihood: no gradient flows through it; call it under "
            "torch.no_grad(), or train on log-weights made of rsample and linear_bernoulli_log_prob"
        )


def importance_estimates(
    decoder: Decoder,
    mu: Tensor,
    logvar: Tensor,
    x: Tensor,
    noise: Tensor,
    num_samples: int,
    precision: str = "auto",
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> ImportanceEstimates:
    """`importance_log_likelihood`, and the mean of log p(x|z) over the same samples.

    Arguments and errors as there.

    Returns:
        Two estimates, each (B,) in nats: log 1/S Σ_s p(x, z_s)/q(z_s|x) as log_likelihood, and as
        log_prob 1/S Σ_s log p(x|z_s), minus the distortion.
    """
    op = "importance_log_likelihood"
    check_latent(op, mu, logvar)
    check_targets_of(op, x, mu)
    check_noise(op, noise, mu.device)
    check_count(op, "num_samples", num_samples, least=1)
    check_offsets(op, num_samples, row_offset, sample_offset)
    check_choice(op, "precision", precision, PRECISIONS)
    if not callable(decoder):
        raise TypeError(
            f"{op}: decoder must be callable, from z (…, D) to logits (…, P), "
            f"got {type(decoder).__name__}"
        )
    layers = taken_apart(decoder) if mu.dtype != torch.float64 else None
    if layers is not None:
        _check_layers(op, layers, mu.shape[1], x.shape[1], mu.device)
    if precision == "auto":
        fast = layers is not None and has_fast_bfloat16(mu.device)
        precision = "bfloat16" if fast else "float32"
    of = _Samples(mu, logvar, x, noise, num_samples, row_offset, sample_offset)
    zeros = torch.zeros(len(mu), dtype=torch.float64, device=mu.device)
    streaming = _Streaming(torch.full_like(zeros, -math.inf), zeros)
    with torch.no_grad():
        if layers is None:
            _run_layers(of, decoder, None, precision, streaming)
        elif uses_triton(mu):
            if tile_for(layers, mu.device, precision) is not None:
                _run_kernel(of, layers, precision, streaming)
            else:
                _run_layers(of, decoder, layers, precision, streaming)
        else:
            _run_perceptron_tiles(of, layers, precision, streaming)
    dtype = torch.promote_types(mu.dtype, torch.float32)
    estimates = (streaming.log_sum - math.log(num_samples), streaming.log_prob / num_samples)
    parameters = decoder.parameters() if isinstance(decoder, nn.Module) else ()
    inputs = [tensor for tensor in (mu, logvar, x, *parameters) if tensor.requires_grad]
    if not inputs or not torch.is_grad_enabled():
        return ImportanceEstimates(*(value.to(dtype) for value in estimates))
    return ImportanceEstimates(*(_NoGradient.apply(v.to(dtype), *inputs) for v in estimates))


def _check_layers(
    op: str, layers: Perceptron, latents: int, pixels: int, device: torch.device
) -> None:
    width = latents
    for weight in layers.weights:
        if weight.shape[1] != width:
            raise ValueError(
                f"{op}: decoder must take z of {latents} latents to {pixels} pixels, but a layer "
                f"of {weight.shape[1]} inputs is given {width}"
            )
        width = weight.shape[0]
    if width != pixels:
        raise ValueError(
            f"{op}: decoder must take z of {latents} latents to {pixels} pixels, "
            f"but its last layer has {width}"
        )
    for tensor in (*layers.weights, *layers.biases):
        if tensor.device != device:
            raise ValueError(
                f"{op}: decoder must be on mu's device {device}, got a layer on {tensor.device}"
            )


def importance_log_likelihood(
    decoder: Decoder,
    mu: Tensor,
    logvar: Tensor,
    x: Tensor,
    noise: Tensor,
    num_samples: int,
    precision: str = "auto",
    *,
    row_offset: int = 0,
    sample_offset: int = 0,
) -> Tensor:
    """log 1/S Σ_s p(x, z_s)/q(z_s|x) in nats, z_s ~ q(z|x) = N(mu, exp(logvar)), p(z) = N(0, I).

    Burda et al. 2016, equation 8: a lower bound of log p(x) in expectation, which rises with S.
    Nothing of a size with S is kept, and the samples are those of the stream: the first 64 of
    5,000 are the 64, and sample s of row r is that of `rsample`.

    A decoder that is `nn.Sequential(Linear, ReLU | Tanh, …, Linear)` is taken apart: on a CPU the
    layers and the likelihood are one compiled graph for a tile of samples; on CUDA one kernel goes
    from noise to weight, for two hidden layers, of which the second has at most 256 units (512 if
    there are no more than 16 latents), and at most 128 latents, in "bfloat16" or "tf32", on the
    architectures of decoder_kernel.TILES; elsewhere its layers are called one by one, and float32
    products of hidden layers follow PyTorch's own switch for TF32. Any other decoder is called.

    Args:
        decoder: z (S', B', D) → logits (S', B', P) of independent Bernoulli pixels, for any S' and
            B'. Called without gradients.
        mu, logvar: (B, D) float32, bfloat16 or float16 of any strides. float64 is passed to the
            decoder as float64.
        x: (B, P) uint8, bool, float32, bfloat16, float16 or float64 in [0, 1].
        noise: (2,) int64 on mu's device, from `noise_key`.
        num_samples: S ≥ 1.
        precision: of matrix products. "float32"; "tf32" on a GPU's tensor cores (float32
            elsewhere); "bfloat16"; or "auto", bfloat16 for a decoder that is taken apart, where
            the processor multiplies it fast, and else float32. The bias of bfloat16 on the test
            images of trained models is reported in reports/likelihood. A decoder that is called
            runs under autocast for "bfloat16", and otherwise as it is.
        row_offset: the global index of row 0.
        sample_offset: the index of sample 0.

    Returns:
        (B,) float32 (float64 for float64). No gradient flows through it, and its backward says so.
        NaN and infinity propagate as the formula says; B = 0 gives an empty result.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, shape, device or range.
    """
    args = (decoder, mu, logvar, x, noise, num_samples, precision)
    estimates = importance_estimates(*args, row_offset=row_offset, sample_offset=sample_offset)
    return estimates.log_likelihood


__all__ = ["ImportanceEstimates", "importance_estimates", "importance_log_likelihood"]
