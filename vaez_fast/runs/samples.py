"""The files of `vaez-fast sample`: a picture of the first images, and all images as numbers."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..system.files import write_atomically

FILES = ("samples.npz", "samples.png")
SHOWN = 100
SIDE, GAP, SCALE = 28, 2, 3  # pixels of an image, pixels between images, enlargement


def write(folder: Path, z: Tensor, means: Tensor) -> list[Path]:
    """Write samples.png, the first 100 images, and samples.npz: z (N, D), means (N, 784) float32.

    The same tensors give the same bytes.

    Raises:
        OutputError: a file could not be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, z=z.numpy(), means=means.numpy())
    contents = (buffer.getvalue(), grid(means[:SHOWN].numpy()))
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(folder / name, content)
    return [folder / name for name in FILES]


def grid(means: np.ndarray, columns: int | None = None) -> bytes:
    """A PNG of images (N, 784) in [0, 1], ink on white; `columns` default to a square."""
    from matplotlib.image import imsave

    columns = columns or math.ceil(math.sqrt(len(means)))
    rows = -(-len(means) // columns)
    step = SIDE + GAP
    page = np.full((rows * step + GAP, columns * step + GAP), 255, dtype=np.uint8)
    for i, image in enumerate(means):
        top, left = (GAP + step * k for k in divmod(i, columns))
        ink = np.rint(255 * image).astype(np.uint8).reshape(SIDE, SIDE)
        page[top : top + SIDE, left : left + SIDE] = 255 - ink
    page = page.repeat(SCALE, 0).repeat(SCALE, 1)
    buffer = io.BytesIO()
    colours = np.repeat(page[:, :, None], 3, axis=2)
    nothing: Any = {"Software": None}  # instead of matplotlib's version
    imsave(buffer, colours, format="png", metadata=nothing)
    return buffer.getvalue()
