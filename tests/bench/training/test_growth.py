"""The parts of a training step, and how its time grows with its sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing.clock import Times
from bench.training import growth, parts
from bench.training.growth import AXES, Size, points
from vaez_fast.data import binarized, load
from vaez_fast.drawing import style
from vaez_kernels.error_bounds import Check

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
    found: dict[str, list[int]] = {}
    for axis, size in points(quick=False):
        found.setdefault(axis, []).append(getattr(size, axis))
    assert found == {
        "batch": [32, 128, 512, 2048, 8192],
        "hidden": [128, 256, 512, 1024, 2048, 4096],
        "latent": [2, 8, 32, 128, 512],
    }


def test_a_point_is_checked_and_timed_and_drawn(images: Tensor) -> None:
    row = growth.measure(Size(batch=32, hidden=16, latent=4), images, budget=0.1)
    assert row["failed"] == []
    assert set(row["seconds"]) == {"engine", "textbook", "compiled", "products"}
    # 784-16-16-8, 4-16-16-784: forward and both gradients; the images need no gradient.
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


def caught(figures: list[Any]) -> Callable[[Any], bytes]:
    """A stand-in for `style.png` that keeps each figure."""

    def png(figure: Any) -> bytes:
        figures.append(figure)
        return PNG

    return png


Works = dict[str, Callable[[], object]]
# Medians 4, 6, 2 and 1 ms; means 5, 7, 3 and 2 ms.
TAKEN = {
    "textbook": [1e-3, 4e-3, 10e-3],
    "compiled": [5e-3, 6e-3, 10e-3],
    "engine": [1e-3, 2e-3, 6e-3],
    "products": [0.5e-3, 1e-3, 4.5e-3],
}


def test_a_points_times_are_medians_of_those_that_passed(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], float]] = []

    def timed(works: Works, _: object, budget: float, fewest: int) -> dict[str, Times]:
        asked.append((list(works), budget))
        return {name: Times(TAKEN[name]) for name in works}

    monkeypatch.setattr(growth, "interleave", timed)
    monkeypatch.setattr(growth, "check_loss", lambda *_: Check(0.5, "the truth"))
    monkeypatch.setattr(growth, "check_first_step", lambda *_: Check(1.5, "the truth"))
    row = growth.measure(Size(batch=32, hidden=16, latent=4), images, budget=0.1)
    assert asked == [(["textbook", "compiled", "products"], 0.1)]
    assert row["failed"] == ["engine"]
    assert row["seconds"] == {"textbook": 4e-3, "compiled": 6e-3, "products": 1e-3}
    assert (row["batch"], row["hidden"], row["latent"]) == (32, 16, 4)


def point(batch: int = 500, **seconds: float) -> dict[str, Any]:
    times = {"textbook": 4e-3, "compiled": 6e-3, "engine": 2e-3, "products": 1e-3} | seconds
    sizes = {"batch": batch, "hidden": 300, "latent": 20}
    return {**sizes, "operations": 5_000_000_000, "seconds": times}


def test_every_number_of_a_point_is_in_its_column() -> None:
    head, _, line = growth.table([point()]).splitlines()
    assert head == (
        "| batch | hidden | latent | textbook | compiled | engine | images/s | × textbook "
        "| step/products | products |"
    )
    # 500 images in 2 ms; 5e9 operations in 1 ms.
    assert line == (
        "| 500 | 300 | 20 | 4.00 ms | 6.00 ms | 2.00 ms | 250,000 | 2.00 | 2.00 | 5,000 GFLOP/s |"
    )


def test_the_figure_draws_each_time_over_the_size_that_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(style, "png", caught(drawn))
    rows = {axis: [point(), point(1000, engine=3e-3)] for axis in AXES}
    rows["latent"][1]["latent"] = 40
    growth.figure(rows, "growth")
    left, _, right = drawn[0].axes
    of_engine = next(line for line in left.lines if line.get_label() == "engine")
    assert list(of_engine.get_xdata()) == [500, 1000]
    assert list(of_engine.get_ydata()) == pytest.approx([2.0, 3.0])  # milliseconds
    assert list(right.lines[0].get_xdata()) == [20, 40]


def test_the_growth_is_measured_along_each_axis_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float] = []
    digits = torch.zeros(4000, 784, dtype=torch.uint8)

    def measure(size: Size, images: Tensor, budget: float) -> dict[str, Any]:
        budgets.append(budget)
        assert len(images) >= 8192  # the largest batch
        return point() | {"batch": size.batch, "hidden": size.hidden, "latent": size.latent}

    monkeypatch.setattr(growth, "measure", measure)
    monkeypatch.setattr(growth, "load", lambda *_: digits)
    monkeypatch.setattr(growth, "binarized", lambda *_: digits)
    assert growth.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert {axis: [row[axis] for row in of_axis] for axis, of_axis in rows.items()} == {
        "batch": [32, 128],
        "hidden": [128, 256],
        "latent": [2, 8],
    }
    assert budgets == [0.6] * 6
    (tmp_path / "file").write_text("")
    assert growth.main(["--quick", "--out", str(tmp_path / "file")]) == 1


@pytest.fixture
def timed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed median times: 10 ms for the step; 3, 2, 1.5, 1, 0.5 and 0.25 ms for its parts."""
    parts_ms = dict(zip(parts.PARTS, (3.0, 2.0, 1.5, 1.0, 0.5, 0.25), strict=True))

    def timed(works: Works, *_: object) -> dict[str, Times]:
        known = parts_ms | {"step": 10.0}
        assert set(works) == set(known)
        return {name: Times([1e-3 * known[name] * f for f in (0.5, 1.0, 4.0)]) for name in works}

    monkeypatch.setattr(parts, "interleave", timed)
    monkeypatch.setattr(parts, "parts_of", lambda *_: dict.fromkeys(parts.PARTS))


@pytest.mark.usefixtures("timed_parts")
def test_the_rest_is_the_steps_median_less_those_of_its_parts(images: Tensor) -> None:
    profile = parts.profile(images, torch.float32, budget=0.1)
    assert profile["step"] == pytest.approx(10e-3)
    assert profile["latent op"] == pytest.approx(2e-3)
    assert profile[parts.REST] == pytest.approx((10 - 3 - 2 - 1.5 - 1 - 0.5 - 0.25) * 1e-3)
    lines = parts.table({"float32": profile}).splitlines()
    assert "| products | 3.00 ms (30%) |" in lines
    assert "| rest | 1.75 ms (18%) |" in lines
    assert lines[-1] == "| step | 10.00 ms (100%) |"


def test_bars_are_as_long_as_their_parts_and_begin_where_the_last_one_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(style, "png", caught(drawn))
    seconds = dict.fromkeys(parts.PARTS, 1e-3) | {"rest": -0.5e-3, "step": 5.5e-3}
    parts.figure({"float32": seconds}, "a step")
    (ax,) = drawn[0].axes
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([0, 1, 2, 3, 4, 5, 6])
    # A negative rest has a bar of length 0.
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([1, 1, 1, 1, 1, 1, 0])
    assert list(ax.lines[0].get_xdata()) == pytest.approx([5.5])
