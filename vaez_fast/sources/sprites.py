"""Coloured shapes with known factors, after dSprites: a data set that needs no file or network.

dSprites are the white shapes of Matthey, Higgins, Hassabis and Lerchner (2017),
https://github.com/google-deepmind/dsprites-dataset. Here the factors are drawn independently and
not on a grid, each shape has a hue, and the heart is replaced by a triangle.

A pixel is covered by a shape as far as the distance of its centre from the shape's edge says:
wholly half a pixel inside of the edge, not at all half a pixel outside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaez_kernels import uniform
from vaez_kernels.checks import check_count

from ..streams import SPRITES

SHAPES = ("square", "ellipse", "triangle")
# The bounds of each factor; a shape is an index of `SHAPES`. The largest shape stays in the picture
# wherever its centre is: it ends within 9.6 pixels.
FACTORS = {
    "shape": (0, len(SHAPES)),
    "hue": (0.0, 1.0),  # as in HSV: 0 is red, 1/3 green, 2/3 blue
    "scale": (4.0, 8.0),  # the square root of the area, in pixels
    "orientation": (0.0, 2 * math.pi),  # clockwise, as y points down
    "x": (10.5, 21.5),  # of the centre of mass, in pixels from the left edge
    "y": (10.5, 21.5),  # in pixels from the upper edge
}
SIDE = 32  # pixels
BACKGROUND = 26 / 255  # grey
# 1,024 pictures need about 0.1 GB of float64 numbers while they are drawn.
CHUNK_ROWS = 1024


def sprites(n: int, seed: int = 0) -> dict[str, Tensor]:
    """n pictures of one shape each, and the factors that they were drawn from.

    A picture depends only on the seed and its own index: the first k of n are `sprites(k)`.

    Some orientations look the same: four of a square, and two of an ellipse.

    Args:
        n: how many, at least 1.
        seed: 0 … 2³² − 1; the noise is that of `SPRITES`.

    Returns:
        "x": (n, 3, 32, 32) uint8, RGB, and "factors": (n, 6) float32, in the order of `FACTORS`,
        each uniform between its bounds; on the CPU.

    Raises:
        TypeError, ValueError: an argument of another type or range.
    """
    check_count("sprites", "n", n, least=1)
    key = SPRITES.key(seed)
    low, high = torch.tensor(list(FACTORS.values()), dtype=torch.float64).T
    x, factors = torch.empty((n, 3, SIDE, SIDE), dtype=torch.uint8), torch.empty((n, len(FACTORS)))
    for start in range(0, n, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, n))
        u = uniform(key, 1, rows.stop - start, len(FACTORS), row_offset=start)[0].double()
        drawn = low + u * (high - low)
        drawn[:, 0] = drawn[:, 0].floor()
        factors[rows] = drawn
        x[rows] = draw(factors[rows])  # what float32 rounded is what is drawn
    return {"x": x, "factors": factors}


def draw(factors: Tensor) -> Tensor:
    """The pictures of given factors: (n, 6), in the order of `FACTORS`, to (n, 3, 32, 32) uint8."""
    # In float64, a last digit that differs between machines hardly ever changes a grey level.
    shape, hue, scale, angle, x, y = factors.double()[:, :, None, None].unbind(1)  # (n, 1, 1)
    centres = torch.arange(SIDE, dtype=torch.float64) + 0.5
    dx, dy = centres - x, centres[:, None] - y  # (n, 1, 32), (n, 32, 1)
    # The pixel in the coordinates of a shape that is not turned and has an area of 1.
    across = (dx * angle.cos() + dy * angle.sin()) / scale
    down = (dy * angle.cos() - dx * angle.sin()) / scale
    distances = (_square(across, down), _ellipse(across, down), _triangle(across, down))
    distance = torch.zeros_like(across)
    for kind, of_kind in enumerate(distances):
        distance = torch.where(shape == kind, of_kind, distance)
    cover = (0.5 - distance * scale).clamp(0, 1)[:, None]  # (n, 1, 32, 32)
    grey = BACKGROUND + cover * (_rgb(hue[:, 0, 0])[:, :, None, None] - BACKGROUND)
    return (grey * 255).round().to(torch.uint8)


def _rgb(hue: Tensor) -> Tensor:
    """The colour of full saturation and value: (n,) to (n, 3)."""
    turned = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64)) % 6
    return ((turned - 3).abs() - 1).clamp(0, 1)


# Signed distances from the edge of shapes of area 1 around their centre of mass: negative inside.


def _square(across: Tensor, down: Tensor) -> Tensor:
    beyond_x, beyond_y = across.abs() - 0.5, down.abs() - 0.5
    outside = torch.hypot(beyond_x.clamp(min=0), beyond_y.clamp(min=0))
    return outside + torch.maximum(beyond_x, beyond_y).clamp(max=0)


def _ellipse(across: Tensor, down: Tensor) -> Tensor:
    """To first order in the distance, which is enough within a pixel of the edge."""
    b = 1 / math.sqrt(1.5 * math.pi)
    a = 1.5 * b
    radius = torch.hypot(across / a, down / b)  # 1 on the edge
    slope = torch.hypot(across / a**2, down / b**2)
    return radius * (radius - 1) / slope.clamp(min=1e-9)  # 0 / 0 in the centre


def _triangle(across: Tensor, down: Tensor) -> Tensor:
    """Two equal sides that meet above; beyond a corner, the distance from the nearer line."""
    base = math.sqrt(2 / 1.2)
    height = 1.2 * base
    length = math.hypot(height, base / 2)
    # The centre of mass is a third of the height above the base.
    sides = (height * across.abs() - base / 2 * (down + 2 * height / 3)) / length
    return torch.maximum(down - height / 3, sides)
