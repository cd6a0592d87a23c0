"""Importance-sampled log p(x) of a VAE, streaming over samples: memory does not grow with them.

Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8: the mean of
p(x, z_s)/q(z_s|x) over S samples z_s ~ q(z|x) is an unbiased estimate of p(x), and its logarithm is
in expectation a lower bound of log p(x).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backend import has_fast_bfloat16, uses_triton
from ..checks import (
    check_choice,
    check_count,
    check_latent,
    check_noise,
    check_targets_of,
    check_transforms,
)
from ..noise import check_offsets
from . import kernel, twin
from .perceptron import Perceptron, taken_apart
from .twin import Decoder

PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


class ImportanceEstimates(NamedTuple):
    """Two estimates from the same samples, each (B,) in nats."""

    log_likelihood: Tensor  # log 1/S Σ_s p(x, z_s)/q(z_s|x)
    log_prob: Tensor  # 1/S Σ_s log p(x|z_s), the negative distortion


class _NoGradient(torch.autograd.Function):
    """A result without gradient. Backward raises, so that it is not treated as a constant."""

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

    Arguments and errors are the same as for `importance_log_likelihood`.

    Returns:
        Two estimates, each (B,) in nats: log_likelihood is log 1/S Σ_s p(x, z_s)/q(z_s|x), and
        log_prob is 1/S Σ_s log p(x|z_s), the negative distortion.
    """
    op = "importance_log_likelihood"
    check_transforms(op)
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
    of = twin.Samples(mu, logvar, x, noise, num_samples, row_offset, sample_offset)
    zeros = torch.zeros(len(mu), dtype=torch.float64, device=mu.device)
    streaming = twin.Streaming(torch.full_like(zeros, -math.inf), zeros)
    with torch.no_grad():
        if layers is None:
            twin.run_layers(of, decoder, None, precision, streaming)
        elif uses_triton(mu):
            if kernel.tile_for(layers, mu.device, precision) is not None:
                kernel.run_kernel(of, layers, precision, streaming)
            else:
                twin.run_layers(of, decoder, layers, precision, streaming)
        else:
            twin.run_perceptron_tiles(of, layers, precision, streaming)
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
    No tensor grows with S. The samples are those of the stream: the first 64 of 5,000 samples are
    the same as with S = 64, and sample s of row r is the same as in `rsample`.

    A decoder that is `nn.Sequential(Linear, ReLU | Tanh, …, Linear)` is taken apart into layers. On
    a CPU, the layers and the likelihood are one compiled graph for a tile of samples. On CUDA, one
    kernel computes everything from noise to weight, if there are two hidden layers, the second with
    at most 256 units (512 if there are no more than 16 latents), and at most 128 latents, in
    "bfloat16" or "tf32", on the architectures of launch.DECODER_TILES. Otherwise the layers are
    called one by one, and float32 products of hidden layers follow PyTorch's own TF32 setting. Any
    other decoder is called as a function.

    Args:
        decoder: z (S', B', D) → logits (S', B', P) of independent Bernoulli pixels, for any S' and
            B'. Called without gradients.
        mu, logvar: (B, D) float32, bfloat16 or float16 of any strides. float64 is passed to the
            decoder as float64.
        x: (B, P) uint8, bool, float32, bfloat16, float16 or float64 in [0, 1].
        noise: (2,) int64 on mu's device, from `noise_key`.
        num_samples: S ≥ 1.
        precision: of matrix products: "float32"; "tf32" on a GPU's tensor cores (float32
            elsewhere); "bfloat16"; or "auto", which is bfloat16 for a decoder that is taken apart
            on a processor that multiplies bfloat16 fast, and else float32. reports/likelihood
            reports the bias of bfloat16 on the test images of trained models. A decoder that is
            called as a function runs under autocast for "bfloat16", and otherwise unchanged.
        row_offset: the global index of row 0.
        sample_offset: the index of sample 0.

    Returns:
        (B,) float32 (float64 for float64). It has no gradient, and its backward raises an error.
        NaN and infinity propagate as in the formula; B = 0 gives an empty result.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range.
    """
    args = (decoder, mu, logvar, x, noise, num_samples, precision)
    estimates = importance_estimates(*args, row_offset=row_offset, sample_offset=sample_offset)
    return estimates.log_likelihood


__all__ = ["ImportanceEstimates", "importance_estimates", "importance_log_likelihood"]
