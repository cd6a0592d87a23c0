"""The least bytes that each kernel can move: what goes in read once, what comes out written once.

The key and the step of the noise, 16 bytes, come on top: they stay in the caches of any GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bench.traffic import mixture_log_prob_moved
from tests.helpers import MODES
from vaez_kernels import decoder_kernel
from vaez_kernels import linear_likelihood as layer
from vaez_kernels import mixture as kernels


class Floor(NamedTuple):
    """Bytes that a kernel has to load and to store."""

    loaded: int
    stored: int
    again: int = 0  # what it may load once more: one operand in the layouts of two uses


def noise(samples: int, rows: int, columns: int) -> Floor:
    return Floor(0, 4 * samples * rows * columns)


def latent(mode: str, mu: Tensor, samples: int) -> tuple[Floor, Floor]:
    """Of the forward and of the backward kernel, where both gradients are wanted."""
    write_z, kl = MODES[mode]
    elements, rows = mu.numel() * mu.element_size(), 4 * len(mu)
    of_z, of_kl = write_z * samples * elements, (kl != "none") * rows
    # z alone: its gradient in mu is the upstream one, in logvar it takes logvar but not mu.
    inputs = 1 if kl == "none" else 2
    forward = Floor(2 * elements, of_z + of_kl)
    return forward, Floor(inputs * elements + of_z + of_kl, 2 * elements)


def bernoulli(logits: Tensor, x: Tensor) -> tuple[Floor, Floor]:
    """Of the forward and of the backward kernel, for all gradients that there are."""
    of_logits, of_x = (t.numel() * t.element_size() for t in (logits, x))
    results = 4 * logits.shape[0] * logits.shape[1]
    backward = Floor(of_logits + of_x + results, of_logits + (of_x if x.requires_grad else 0))
    return Floor(of_logits + of_x, results), backward


def mixture(draws: int, components: int, D: int, leave_out: bool) -> tuple[Floor, Floor]:
    """What the forward and the backward kernel move: more than their inputs, as bench/traffic says.

    In addition each program reads, for each tile of components, which one its draws leave out.
    """
    forward, both = (mixture_log_prob_moved(draws, components, D, back) for back in (False, True))
    tiles = -(-components // kernels.BLOCK_N)
    splits = kernels.splits_of(draws, tiles)
    block_d = kernels.block_d_of(D)
    d_blocks = -(-D // block_d)
    blocks = -(-draws // kernels.BLOCK_M)
    left = 8 * leave_out * blocks * kernels.BLOCK_M * tiles
    of_tops = 4 * 2 * splits * draws
    weights = 4 * blocks * tiles * d_blocks * kernels.BLOCK_M * kernels.BLOCK_N
    of_sums = 4 * blocks * kernels.BLOCK_M * d_blocks * block_d * tiles
    return (
        Floor(forward - of_tops + left, of_tops),
        Floor(both - forward - weights - of_sums + d_blocks * left, weights + of_sums),
    )


def last_layer(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor
) -> tuple[Floor, Floor, Floor]:
    """Of the forward, hidden and weight kernels, where one program takes all rows and pixels.

    A target is shared by the samples of an image, which are rows of a tile: threads that hold
    different samples may each load it. The operand of a gradient's product is in the logits', too.
    """
    samples, images, _ = hidden.shape
    of_hidden, of_weight, of_bias, of_x = (
        t.numel() * t.element_size() for t in (hidden, weight, bias, x)
    )
    results = 4 * samples * images
    inputs = of_hidden + of_weight + of_bias + of_x
    again = (min(samples, layer.SAMPLES_PER_PROGRAM) - 1) * of_x
    gradients = 4 * (weight.numel() + bias.numel())
    return (
        Floor(inputs, results, again),
        Floor(inputs + results, of_hidden, again + of_weight),
        Floor(inputs + results, gradients, again + of_hidden),
    )


def decoder(shape: tuple[int, ...], precision: str, gpu: str) -> Floor:
    """Of images, samples, D, H1, H2 and P, uint8 targets: a program reads its image and all layers.

    mu and logvar are in up to three layouts: the noise's, a product's, and the sum's over latents.
    """
    images, samples, D, H1, H2, P = shape
    tile = decoder_kernel.TILES[gpu][precision, H2 > 256]
    programs = images * -(-samples // tile.samples)
    size = 2 if precision == "bfloat16" else 4
    layers = size * (H1 * D + H2 * H1 + P * H2) + 4 * (H1 + H2 + P)
    latents = 2 * 4 * D
    return Floor(programs * (latents + layers + P), 12 * programs, 2 * programs * latents)
