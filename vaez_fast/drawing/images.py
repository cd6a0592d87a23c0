"""Rows of 28 × 28 images, ink on white, with a label for each row and column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import style

SIDE, GAP = 28, 2  # pixels of an image, and between two


def rows(
    images: np.ndarray, title: str, labels: Sequence[str] = (), heads: Sequence[str] = ()
) -> bytes:
    """A PNG of images (R, C, 784) in [0, 1].

    Args:
        images: what is not in [0, 1] is clipped.
        title: above all.
        labels: one for each row, on its left; none if empty.
        heads: one for each column, below it; none if empty.
    """
    R, C, _ = images.shape
    step = SIDE + GAP
    page = np.zeros((R * step - GAP, C * step - GAP))
    for r in range(R):
        for c in range(C):
            place = np.s_[r * step : r * step + SIDE, c * step : c * step + SIDE]
            page[place] = images[r, c].reshape(SIDE, SIDE)
    width = style.WIDTH - 1.0 * bool(labels)
    height = width * page.shape[0] / page.shape[1] + 0.6 + 0.3 * bool(heads)
    with style.figure(height=height) as (drawn, (ax,)):
        ax.imshow(1.0 - page, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        ax.set_yticks([step * r + SIDE / 2 for r in range(len(labels))], labels)
        ax.set_xticks([step * c + SIDE / 2 for c in range(len(heads))], heads)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.set_title(title)
        return style.png(drawn)
