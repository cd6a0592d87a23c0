"""The least bytes that each kernel can move: inputs are read once, and outputs are written once.

The key and the step of the noise, 16 bytes, are not counted: they stay in the caches of any GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tests.kernels.helpers import MODES
from vaez_kernels import launch
from vaez_kernels import linear_bernoulli as layer
from vaez_kernels import mixture as kernels
from vaez_kernels.mixture.case import mixture_log_prob_moved


class Floor(NamedTuple):
    """Bytes that a kernel must load and store."""

    loaded: int
    stored: int


def noise(samples: int, rows: int, columns: int) -> Floor:
    return Floor(0, 4 * samples * rows * columns)


def latent(mode: str, mu: Tensor, samples: int) -> tuple[Floor, Floor]:
    """The floors of the forward and backward kernels, if both gradients are wanted.

    A row that is longer than a tile has a partial KL for each tile, which PyTorch sums, and each
    tile reads the gradient of the row's KL.
    """
    write_z, kl = MODES[mode]
    elements, rows = mu.nbytes, 4 * len(mu)
    of_z, of_kl = write_z * samples * elements, (kl != "none") * rows
    tiles = -(-mu.shape[1] // launch.USUAL.block(mu.shape[1])["BLOCK_D"])
    # Without a KL, mu's gradient is the upstream one, and logvar's needs logvar but not mu.
    inputs = 1 if kl == "none" else 2
    forward = Floor(2 * elements, of_z + tiles * of_kl)
    return forward, Floor(inputs * elements + of_z + tiles * of_kl, 2 * elements)


def bernoulli(logits: Tensor, x: Tensor) -> tuple[Floor, Floor]:
    """The floors of the forward and backward kernels, with all possible gradients."""
    of_logits, of_x = logits.nbytes, x.nbytes
    results = 4 * logits.shape[0] * logits.shape[1]
    backward = Floor(of_logits + of_x + results, of_logits + (of_x if x.requires_grad else 0))
    return Floor(of_logits + of_x, results), backward


def mixture(draws: int, components: int, D: int, leave_out: bool) -> tuple[Floor, Floor]:
    """Bytes that the forward and backward kernels move: more than their inputs, see bench/traffic.

    In addition, for each tile of components, each program reads which component its draws leave
    out.
    """
    shape = (draws, components, D)
    forward, both = (mixture_log_prob_moved(shape, back) for back in (False, True))
    tiles = -(-components // kernels.kernel.BLOCK_N)
    splits = kernels.kernel.splits_of(draws, tiles)
    block_d = kernels.kernel.block_d_of(D)
    d_blocks = -(-D // block_d)
    blocks = -(-draws // kernels.kernel.BLOCK_M)
    left = 8 * leave_out * blocks * kernels.kernel.BLOCK_M * tiles
    of_tops = 4 * 2 * splits * draws
    weights = 4 * blocks * tiles * d_blocks * kernels.kernel.BLOCK_M * kernels.kernel.BLOCK_N
    of_sums = 4 * blocks * kernels.kernel.BLOCK_M * d_blocks * block_d * tiles
    return (
        Floor(forward - of_tops + left, of_tops),
        Floor(both - forward - weights - of_sums + d_blocks * left, weights + of_sums),
    )


def last_layer(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor
) -> tuple[Floor, Floor, Floor]:
    """The floors of the forward, hidden and weight kernels, for one program with all the work."""
    inputs = sum(t.nbytes for t in (hidden, weight, bias, x))
    results = 4 * hidden.shape[0] * hidden.shape[1]
    gradients = 4 * (weight.numel() + bias.numel())
    return (
        Floor(inputs, results),
        Floor(inputs + results, hidden.nbytes),
        Floor(inputs + results, gradients),
    )


def last_layer_again(hidden: Tensor, weight: Tensor, x: Tensor) -> tuple[int, int, int]:
    """Bytes that these kernels may load once more, because two uses have different layouts.

    Samples of an image are rows of a tile and share the image's targets, so threads with different
    samples may each load them. The operand of a gradient's product is also an operand of the
    logits' product.
    """
    of_x = (min(len(hidden), layer.kernel.SAMPLES_PER_PROGRAM) - 1) * x.nbytes
    return of_x, of_x + weight.nbytes, of_x + hidden.nbytes


def decoder(shape: tuple[int, ...], precision: str, gpu: str) -> Floor:
    """The floor of the decoder kernel: each program reads its image and all layers.

    shape: images, samples, D, H1, H2 and P; targets are uint8.
    """
    _, _, D, H1, H2, P = shape
    programs = _decoder_programs(shape, precision, gpu)
    size = 2 if precision == "bfloat16" else 4
    layers = size * (H1 * D + H2 * H1 + P * H2) + 4 * (H1 + H2 + P)
    return Floor(programs * (2 * 4 * D + layers + P), 12 * programs)


def decoder_again(shape: tuple[int, ...], precision: str, gpu: str) -> int:
    """Bytes that this kernel may load once more: mu and logvar, in up to three layouts.

    These are the layouts of the noise, of a product, and of the sum over latents.
    """
    return 2 * _decoder_programs(shape, precision, gpu) * 2 * 4 * shape[2]


def _decoder_programs(shape: tuple[int, ...], precision: str, gpu: str) -> int:
    images, samples, _, _, H2, _ = shape
    tile = launch.DECODER_TILES[gpu][precision, H2 > 256]
    return images * -(-samples // tile.rows)
