"""The least bytes that each kernel can move: inputs are read once, and outputs are written once.

The key and the step of the noise, 16 bytes, are not counted: they stay in the caches of any GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.kernels.helpers import MODES
from vaez_kernels import launch
from vaez_kernels.mixture import kernel as mixture_kernel
from vaez_kernels.mixture.case import mixture_log_prob_launches


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


def mixture(shape: tuple[int, int, int], dtype: torch.dtype, leave_out: bool) -> dict[str, Floor]:
    """What the mixture's launches move, of the names in `executed.route.names_of`."""
    forward, backward = mixture_log_prob_launches(shape, dtype.itemsize, leave_out)
    again = {f"{name}, backward" if name in forward else name: of for name, of in backward.items()}
    return {name: Floor(*moved) for name, moved in (forward | again).items()}


def mixture_again(shape: tuple[int, int, int], leave_out: bool) -> dict[str, int]:
    """Bytes that these kernels may load once more: what the last draw leaves out.

    Lanes beyond the last draw read it, too.
    """
    draws, components, D = shape
    tiles = -(-components // mixture_kernel.BLOCK_N)
    lanes = -draws % mixture_kernel.BLOCK_M
    d_blocks = -(-D // mixture_kernel.block_d_of(D))
    again = 8 * lanes * tiles * leave_out
    return {"mixture_forward_kernel": again, "mixture_backward_kernel": again * d_blocks}


def last_layer(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, precision: str
) -> dict[str, Floor]:
    """What the last layer's launches move if one program does the work of each.

    The product's first launch computes the weights' gradient, and its second the hidden units'.
    """
    rows, pixels = hidden.shape[0] * hidden.shape[1], len(weight)
    residuals = rows * pixels * (2 if precision == "bfloat16" else hidden.itemsize)
    inputs = sum(t.nbytes for t in (hidden, weight, bias, x))
    return {
        "linear_bernoulli_forward_kernel": Floor(inputs, 4 * rows),
        "linear_bernoulli_residual_kernel": Floor(inputs + 4 * rows, residuals + bias.nbytes),
        "linear_bernoulli_product_kernel": Floor(residuals + hidden.nbytes, weight.nbytes),
        "linear_bernoulli_product_kernel, backward": Floor(
            residuals + weight.nbytes, hidden.nbytes
        ),
    }


def last_layer_again(hidden: Tensor, x: Tensor) -> dict[str, int]:
    """Bytes that these kernels may load once more: every sample of an image reads its targets."""
    of_x = (len(hidden) - 1) * x.nbytes
    kernels = ("linear_bernoulli_forward_kernel", "linear_bernoulli_residual_kernel")
    return dict.fromkeys(kernels, of_x)


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
