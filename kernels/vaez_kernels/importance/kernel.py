"""From noise to log-weight in one kernel: importance sampling that never leaves the chip.

A program draws a tile of an image's latents, passes it through two hidden layers and the pixels,
and sums the weights p(x, z)/q(z|x): three numbers for a tile of samples are all that reach memory.
The layers' weights come from the L2 cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import TRITON_VERSION, jit, tl
from ..bernoulli import log1p_unit_jit, readable
from ..launch import architecture
from ..linear_bernoulli import dot_jit
from ..noise import normal_jit
from .perceptron import Perceptron


class Tile(NamedTuple):
    """What a program holds at once."""

    samples: int
    hidden: int  # units of the first layer, which go into the second as soon as they are there
    pixels: int
    num_warps: int


# By architecture, precision, and whether the second layer has more than 256 units. Chosen from
# offline builds (tests/kernels/importance/test_offline_importance.py) with triton 3.6 and 3.8:
# nothing spills. Where none fits, there is none.
TILES: dict[str, dict[tuple[str, bool], Tile]] = {
    "sm_80": {
        ("bfloat16", False): Tile(32, 32, 64, 8),
        ("bfloat16", True): Tile(64, 64, 64, 8),
        ("tf32", False): Tile(32, 32, 32, 8),
        ("tf32", True): Tile(32, 32, 32, 8),
    },
    "sm_90": {
        ("bfloat16", False): Tile(128, 64, 64, 8),
        ("bfloat16", True): Tile(64, 32, 64, 8),
        ("tf32", False): Tile(64, 32, 32, 8),
        ("tf32", True): Tile(32, 32, 32, 8),
    },
    "sm_100": {
        ("bfloat16", False): Tile(64, 64, 64, 8),
        ("bfloat16", True): Tile(32, 32, 64, 8),
        ("tf32", False): Tile(64, 32, 32, 8),
        ("tf32", True): Tile(32, 16, 32, 8),
    },
    "gfx942": {
        ("bfloat16", False): Tile(64, 32, 64, 8),
        ("bfloat16", True): Tile(64, 32, 64, 8),
    },
}
# Four of the tiles above spill with triton 3.6, whose compilers need more registers. These do not.
TILES_BEFORE_3_8: dict[str, dict[tuple[str, bool], Tile]] = {
    "sm_80": {("bfloat16", True): Tile(64, 16, 64, 8), ("tf32", False): Tile(32, 16, 32, 8)},
    "sm_90": {("bfloat16", False): Tile(128, 32, 64, 8)},
    "gfx942": {("bfloat16", False): Tile(64, 16, 64, 8)},
}
if TRITON_VERSION < (3, 8):
    for _gpu, _tiles in TILES_BEFORE_3_8.items():
        TILES[_gpu].update(_tiles)


@jit
def activation_jit(a, TANH: tl.constexpr):  # type: ignore[no-untyped-def]
    if TANH:
        return 1.0 - 2.0 / (1.0 + tl.exp2(2.8853900817779268 * a))
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)


@jit
def layer_jit(  # type: ignore[no-untyped-def]
    weight_ptr, inputs, outputs, N_IN: tl.constexpr, N_OUT: tl.constexpr, BFLOAT16: tl.constexpr
):  # → that block of the transposed weight (inputs, outputs), zero beyond its edges
    at = weight_ptr + outputs[None, :].to(tl.int64) * N_IN + inputs[:, None]
    mask = (inputs < N_IN)[:, None] & (outputs < N_OUT)[None, :]
    weight = tl.load(at, mask=mask, other=0.0)
    return weight.to(tl.bfloat16) if BFLOAT16 else weight


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
    largest_ptr,  # (tiles, B) float32: of a tile's samples the largest log p(x, z)/q(z|x),
    total_ptr,  # (tiles, B) float32: Σ p(x, z)/q(z|x) in units of it,
    log_prob_ptr,  # (tiles, B) float32: and Σ log p(x|z)
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
):
    QUADS: tl.constexpr = (D + 3) // 4
    image = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.arange(0, WIDTH_D)
    # Beyond the edge mu = logvar = 0, hence z = eps and no term of the log-ratio.
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
    for first in tl.range(0, H1, BLOCK_H, num_stages=1):
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
    for first in tl.range(0, P, BLOCK_P, num_stages=1):
        pixels = first + tl.arange(0, BLOCK_P)
        weight = layer_jit(weight3_ptr, h2, pixels, H2, P, BFLOAT16)
        logits = dot_jit(hidden, weight, tl.zeros((BLOCK_S, BLOCK_P), tl.float32), PRECISION)
        logits += tl.load(bias3_ptr + pixels, mask=pixels < P, other=0.0)[None, :]
        if P % BLOCK_P != 0:
            logits = tl.where((pixels < P)[None, :], logits, -10000.0)
        x_at = x_ptr + image * X_STRIDE + pixels
        x = tl.load(x_at, mask=pixels < P, other=0).to(tl.float32)[None, :]
        tail = log1p_unit_jit(tl.exp2(tl.abs(logits) * -1.4426950408889634))
        log_prob += tl.sum(x * logits - tl.maximum(logits, 0.0) - tail, 1)

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


def tile_for(decoder: Perceptron, device: torch.device, precision: str) -> Tile | None:
    """The tile of a decoder, or None where the kernel does not take it."""
    if len(decoder.weights) != 3:
        return None
    latents, hidden = decoder.weights[0].shape[1], len(decoder.weights[1])
    if (hidden <= 256 and latents <= 128) or (hidden <= 512 and latents <= 16):
        # In the interpreter, "cpu": anything fits, and small tiles take the least time.
        name = architecture(device).replace("cpu", "sm_80")
        return TILES.get(name, {}).get((precision, hidden > 256))
    return None


def launch_decoder(
    kernel: Any,
    decoder: Perceptron,
    mu: Tensor,
    logvar: Tensor,
    x: Tensor,
    noise: Tensor,
    num_samples: int,
    row_offset: int,
    sample_offset: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """mu, logvar (B, D), x (B, P) → log Σ_s p(x, z_s)/q(z_s|x) and Σ_s log p(x|z_s), each (B,)."""
    images, latents = mu.shape
    tile = tile_for(decoder, mu.device, precision)
    assert tile is not None, "ask tile_for first"
    tiles = -(-num_samples // tile.samples)
    largest, total, log_probs = mu.new_empty((3, tiles, images), dtype=torch.float32)
    x = readable(x)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if images > 0:
        kernel[(images, tiles)](
            mu.float().contiguous(),
            logvar.float().contiguous(),
            noise.contiguous(),
            x,
            *decoder.tensors(dtype),
            largest,
            total,
            log_probs,
            images,
            num_samples,
            row_offset,
            sample_offset,
            D=latents,
            H1=len(decoder.weights[0]),
            H2=len(decoder.weights[1]),
            P=len(decoder.weights[2]),
            X_STRIDE=x.stride(0),
            TANH=decoder.activation == "tanh",
            BFLOAT16=precision == "bfloat16",
            PRECISION="tf32" if precision == "tf32" else "ieee",
            WIDTH_D=_power_of_two(latents),
            WIDTH_H2=_power_of_two(len(decoder.weights[1])),
            BLOCK_S=tile.samples,
            BLOCK_H=tile.hidden,
            BLOCK_P=tile.pixels,
            num_warps=tile.num_warps,
        )
    return torch.logsumexp(largest + total.log(), 0), log_probs.sum(0)


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
