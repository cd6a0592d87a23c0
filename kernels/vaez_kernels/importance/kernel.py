"""Importance sampling in one kernel, from noise to log-weight, without intermediates in memory.

A program draws a tile of an image's latents, computes two hidden layers and the pixels, and sums
the weights p(x, z)/q(z|x). It writes only three numbers for a tile of samples to memory. The
layers' weights come from the L2 cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import jit, tl
from ..bernoulli.kernel import readable
from ..launch import DECODER_TILES, ProductTile, architecture, start_kernel, with_tile
from ..noise.kernel import normal_jit
from ..scalar import dot_jit, log_jit
from .perceptron import Perceptron
from .twin import Samples, Streaming

# Samples of one launch at most; the sums of its tiles stay below 4 KiB per image.
SAMPLES_PER_LAUNCH = 1 << 13


@jit
def activation_jit(a, TANH: tl.constexpr):  # type: ignore[no-untyped-def]
    if TANH:
        return 1.0 - 2.0 / (1.0 + tl.exp2(2.8853900817779268 * a))
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)


@jit
def layer_jit(  # type: ignore[no-untyped-def]
    weight_ptr, inputs, outputs, N_IN: tl.constexpr, N_OUT: tl.constexpr, BFLOAT16: tl.constexpr
):  # → a block of the transposed weight (inputs, outputs), zero beyond the weight's edges
    at = weight_ptr + outputs[None, :].to(tl.int64) * N_IN + inputs[:, None]
    mask = (inputs < N_IN)[:, None] & (outputs < N_OUT)[None, :]
    weight = tl.load(at, mask=mask, other=0.0)
    return weight.to(tl.bfloat16) if BFLOAT16 else weight


@jit
def product_jit(a, b):  # type: ignore[no-untyped-def]
    return a * b


@jit
def decoder_kernel(  # type: ignore[no-untyped-def]
    mu_ptr,  # (B, D) float32
    logvar_ptr,  # (B, D) float32
    noise_ptr,  # (2,) int64
    x_ptr,  # (B, P), rows X_STRIDE apart
    weight1_ptr,  # (H1, D)
    bias1_ptr,
    weight2_ptr,  # (H2, H1)
    bias2_ptr,
    weight3_ptr,  # (P, H2)
    bias3_ptr,
    largest_ptr,  # (tiles, B) float32: the largest log p(x, z)/q(z|x) of a tile's samples
    total_ptr,  # (tiles, B) float32: Σ p(x, z)/q(z|x), divided by the largest
    log_prob_ptr,  # (tiles, B) float32: Σ log p(x|z)
    n_images,
    num_samples,
    row_offset,
    sample_offset,
    D: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    P: tl.constexpr,
    X_STRIDE: tl.constexpr,
    TANH: tl.constexpr,
    BFLOAT16: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH_D: tl.constexpr,  # powers of two that hold D and H2
    WIDTH_H2: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    QUADS: tl.constexpr = (D + 3) // 4
    image = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.arange(0, WIDTH_D)
    # Beyond the edge mu = logvar = 0, hence z = eps, and the term of the log-ratio is 0.
    mu = tl.load(mu_ptr + image * D + d, mask=d < D, other=0.0)
    logvar = tl.load(logvar_ptr + image * D + d, mask=d < D, other=0.0)
    quad = (image + row_offset) * QUADS + tl.arange(0, WIDTH_D // 4)
    quads = quad[None, :] + tl.zeros((BLOCK_S, WIDTH_D // 4), tl.int64)
    numbers = (samples + sample_offset)[:, None]
    key = tl.load(noise_ptr)
    step = tl.load(noise_ptr + 1)
    eps = normal_jit(key, step, numbers, quads, BLOCK_S, WIDTH_D)
    z = mu[None, :] + tl.exp2(0.7213475204444817 * logvar)[None, :] * eps
    log_weight = 0.5 * (tl.sum((eps - z) * (eps + z), 1) + tl.sum(logvar, 0))
    if BFLOAT16:
        z = z.to(tl.bfloat16)

    h2 = tl.arange(0, WIDTH_H2)
    sums = tl.zeros((BLOCK_S, WIDTH_H2), tl.float32)
    for first in tl.range(0, H1, BLOCK_H, num_stages=STAGES):
        h1 = first + tl.arange(0, BLOCK_H)
        weight = layer_jit(weight1_ptr, d, h1, D, H1, BFLOAT16)
        hidden = dot_jit(z, weight, tl.zeros((BLOCK_S, BLOCK_H), tl.float32), PRECISION)
        bias = tl.load(bias1_ptr + h1, mask=h1 < H1, other=0.0)
        hidden = activation_jit(hidden + bias[None, :], TANH).to(weight.dtype)
        weight = layer_jit(weight2_ptr, h1, h2, H1, H2, BFLOAT16)
        sums = dot_jit(hidden, weight, sums, PRECISION)
    bias = tl.load(bias2_ptr + h2, mask=h2 < H2, other=0.0)
    hidden = activation_jit(sums + bias[None, :], TANH).to(z.dtype)

    log_prob = tl.zeros((BLOCK_S,), tl.float32)
    for first in tl.range(0, P, BLOCK_P, num_stages=STAGES):
        pixels = first + tl.arange(0, BLOCK_P)
        weight = layer_jit(weight3_ptr, h2, pixels, H2, P, BFLOAT16)
        logits = dot_jit(hidden, weight, tl.zeros((BLOCK_S, BLOCK_P), tl.float32), PRECISION)
        logits += tl.load(bias3_ptr + pixels, mask=pixels < P, other=0.0)[None, :]
        if P % BLOCK_P != 0:
            logits = tl.where((pixels < P)[None, :], logits, -10000.0)
        x_at = x_ptr + image * X_STRIDE + pixels
        x = tl.load(x_at, mask=pixels < P, other=0).to(tl.float32)[None, :]
        # One logarithm for all pixels of the tile: 64 factors of at most 2 do not overflow. Their
        # roundings cost at most 1e-4 nats for 784 pixels, where rounded operands cost 0.02.
        tl.static_assert(BLOCK_P <= 64)
        factors = 1.0 + tl.exp2(tl.abs(logits) * -1.4426950408889634)
        tail = log_jit(tl.reduce(factors, 1, product_jit))
        log_prob += tl.sum(x * logits - tl.maximum(logits, 0.0), 1) - tail

    live = samples < num_samples
    log_weight = tl.where(live, log_weight + log_prob, float("-inf"))
    largest = tl.max(log_weight, 0)
    # All weights may be zero: −∞ − (−∞) would be NaN.
    pivot = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp2(1.4426950408889634 * (log_weight - pivot)), 0)
    at = tl.program_id(1).to(tl.int64) * n_images + image
    tl.store(largest_ptr + at, largest)
    tl.store(total_ptr + at, total)
    tl.store(log_prob_ptr + at, tl.sum(tl.where(live, log_prob, 0.0), 0))


def tile_for(decoder: Perceptron, device: torch.device, precision: str) -> ProductTile | None:
    """The tile for a decoder, or None if the kernel does not support the decoder."""
    if len(decoder.weights) != 3:
        return None
    latents, hidden = decoder.weights[0].shape[1], len(decoder.weights[1])
    if (hidden <= 256 and latents <= 128) or (hidden <= 512 and latents <= 16):
        # "cpu" is the interpreter: any tile fits there, and small ones take the least time.
        name = architecture(device).replace("cpu", "sm_80")
        return DECODER_TILES.get(name, {}).get((precision, hidden > 256))
    return None


def run_kernel(of: Samples, decoder: Perceptron, precision: str, streaming: Streaming) -> None:
    """Add all samples of a decoder for which `tile_for` returns a tile."""
    for first in range(0, of.num_samples, SAMPLES_PER_LAUNCH):
        count = min(SAMPLES_PER_LAUNCH, of.num_samples - first)
        part = of._replace(num_samples=count, sample_offset=of.sample_offset + first)
        streaming.add(slice(None), launch_decoder(part, decoder, precision))


def launch_decoder(of: Samples, decoder: Perceptron, precision: str) -> tuple[Tensor, Tensor]:
    """log Σ_s p(x, z_s)/q(z_s|x) and Σ_s log p(x|z_s), each (B,)."""
    images, latents = of.mu.shape
    usual = tile_for(decoder, of.mu.device, precision)
    assert usual is not None, "ask tile_for first"
    x = readable(of.x)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    inputs = (
        *(of.mu.float().contiguous(), of.logvar.float().contiguous()),
        *(of.noise.contiguous(), x, *decoder.tensors(dtype)),
    )
    h1, h2, pixels = (len(weight) for weight in decoder.weights)
    constants = {
        "D": latents,
        "H1": h1,
        "H2": h2,
        "P": pixels,
        "X_STRIDE": x.stride(0),
        "TANH": decoder.activation == "tanh",
        "BFLOAT16": precision == "bfloat16",
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
        "WIDTH_D": _power_of_two(latents),
        "WIDTH_H2": _power_of_two(h2),
    }

    def run(tile: ProductTile) -> Tensor:
        tiles = -(-of.num_samples // tile.rows)
        sums = of.mu.new_empty((3, tiles, images), dtype=torch.float32)
        if images > 0:
            sizes = (images, of.num_samples, of.row_offset, of.sample_offset)
            block = {
                "BLOCK_S": tile.rows,
                "BLOCK_H": tile.hidden,
                "BLOCK_P": tile.pixels,
                "STAGES": tile.stages,
            }
            args = (*inputs, *sums, *sizes)
            start_kernel(decoder_kernel, (images, tiles), args, constants | block, tile.num_warps)
        return sums

    largest, total, log_prob = with_tile("decoder", tuple(constants.items()), inputs, usual, run)
    return torch.logsumexp(largest + total.log(), 0), log_prob.sum(0)


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
