"""The step's parts, and how it grows: what is timed is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import growth, parts
from bench.growth import Size, points
from vaez_fast.data import binarized, load

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return binarized(load("mnist-5k"), "train", "static")[:256]


def test_the_parts_and_the_rest_make_up_the_step(images: Tensor) -> None:
    profile = parts.profile(images, torch.float32, budget=0.1)
    assert sum(profile[part] for part in (*parts.PARTS, parts.REST)) == pytest.approx(
        profile["step"]
    )
    assert all(profile[part] > 0 for part in parts.PARTS)
    assert profile["products"] > profile["launch"]
    text = parts.table({"float32": profile})
    assert text.splitlines()[-1].endswith("(100%) |")
    assert parts.figure({"float32": profile}, "a step").startswith(PNG)


def test_each_axis_varies_one_size() -> None:
    standard = Size()
    for axis, size in points(quick=False):
        others = {"batch", "hidden", "latent"} - {axis}
        assert all(getattr(size, other) == getattr(standard, other) for other in others)
    assert len(list(points(quick=True))) == 6


def test_a_point_is_checked_and_timed_and_drawn(images: Tensor) -> None:
    row = growth.measure(Size(batch=32, hidden=16, latent=4), images, budget=0.1)
    assert row["failed"] == []
    assert set(row["seconds"]) == {"engine", "textbook", "compiled", "products"}
    # 784-16-16-8, 4-16-16-784: forward and both gradients, but for the images'
    layers = [(784, 16), (16, 16), (16, 8), (4, 16), (16, 16), (16, 784)]
    assert row["operations"] == 2 * 32 * (3 * sum(i * o for i, o in layers) - 784 * 16)
    lines = growth.table([row]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert growth.figure({axis: [row] for axis in growth.AXES}, "growth").startswith(PNG)


def test_a_rival_that_fails_its_check_has_no_time(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failed:
        passed = False

    monkeypatch.setattr(growth, "check_loss", lambda *_: Failed)
    row = growth.measure(Size(batch=32, hidden=16, latent=4), images, budget=0.1)
    assert row["failed"] == ["textbook", "compiled"]
    assert "failed its check" in growth.table([row])
