"""Rows of images: ink on white, in their places, with their labels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from vaez_fast.drawing import images, style


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept = []
    png = style.png

    def keep(figure: Any) -> bytes:
        kept.append(figure)
        return png(figure)

    monkeypatch.setattr(style, "png", keep)
    return kept


def test_each_image_stands_in_its_row_and_column(drawn: list[Any]) -> None:
    shown = np.zeros((2, 3, 784), dtype=np.float32)
    shown[1, 2, 28 * 5 + 7] = 0.75  # row 5, column 7
    images.rows(shown, "a title", ["first", "second"], ["a", "b", "c"])
    (ax,) = drawn[0].axes
    (picture,) = ax.get_images()
    page = np.asarray(picture.get_array())
    assert page.shape == (2 * 28 + 2, 3 * 28 + 2 * 2)
    assert (picture.get_cmap()(picture.norm(1.0))[0], picture.norm(0.0)) == (1.0, 0.0)
    assert np.argwhere(page != 1.0).tolist() == [[30 + 5, 60 + 7]]
    assert page[35, 67] == 0.25
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert list(ax.get_yticks()) == [14, 44]
    assert list(ax.get_xticks()) == [14, 44, 74]
    assert ax.get_title() == "a title"


def test_without_labels_there_are_none_and_all_is_inside(drawn: list[Any]) -> None:
    from matplotlib.image import imread

    made = images.rows(np.ones((1, 10, 784)), "a")
    (ax,) = drawn[0].axes
    assert not [*ax.get_xticklabels(), *ax.get_yticklabels()]
    ink = imread(io.BytesIO(made))[:, :, 0] == 0.0
    # Ten black squares of one size, nine white gaps.
    crossed = np.diff(ink[ink.shape[0] * 2 // 3].astype(int))
    assert (crossed == 1).sum() == (crossed == -1).sum() == 10
