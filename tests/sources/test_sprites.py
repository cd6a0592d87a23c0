"""Sprites: the factors are what a picture shows, measured from its pixels."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import Tensor

from vaez_fast.sources import sprites
from vaez_fast.sources.sprites import BACKGROUND, FACTORS, SHAPES, draw

COUNT = 1500  # more than a chunk


@pytest.fixture(scope="module")
def made() -> dict[str, Tensor]:
    return sprites(COUNT, seed=3)


def factor(made: dict[str, Tensor], name: str) -> Tensor:
    return made["factors"][:, list(FACTORS).index(name)].double()


def cover(x: Tensor) -> Tensor:
    """How far a shape covers each pixel, 0 … 1, from the channel that is full: (n, 32, 32)."""
    brightest = x.double().div(255).amax(1)
    return (brightest - BACKGROUND) / (1 - BACKGROUND)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area (n,), centre of mass (n, 2) as x and y, and the offsets of all pixels (n, 1024, 2)."""
    weight = cover(x).flatten(1)
    at = torch.arange(32, dtype=torch.float64) + 0.5
    places = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    area = weight.sum(1)
    centre = weight @ places / area[:, None]
    return area, centre, places - centre[:, None]


def test_pictures_and_factors_have_the_shapes_and_dtypes_of_a_data_set(
    made: dict[str, Tensor],
) -> None:
    assert list(made) == ["x", "factors"]
    assert made["x"].shape == (COUNT, 3, 32, 32)
    assert made["x"].dtype == torch.uint8
    assert made["factors"].shape == (COUNT, 6)
    assert made["factors"].dtype == torch.float32


def test_a_factor_is_uniform_between_its_bounds(made: dict[str, Tensor]) -> None:
    for name, (low, high) in FACTORS.items():
        if name != "shape":
            share = (factor(made, name) - low) / (high - low)
            assert 0 <= share.min() < 0.01, name
            assert 0.99 < share.max() <= 1, name
            # The largest distance of the distribution functions exceeds 1.95 / √n once in 1,000.
            steps = torch.arange(1, COUNT + 1) / COUNT
            assert (share.sort().values - steps).abs().max() < 1.95 / math.sqrt(COUNT), name
    counts = factor(made, "shape").long().bincount(minlength=len(SHAPES))
    assert len(counts) == len(SHAPES)
    assert (counts - COUNT / 3).abs().max() < 4 * math.sqrt(COUNT * 2 / 9)


def test_factors_are_independent(made: dict[str, Tensor]) -> None:
    correlations = torch.corrcoef(made["factors"].double().T) - torch.eye(6)
    assert correlations.abs().max() < 4 / math.sqrt(COUNT)


def test_the_centre_of_mass_is_x_and_y(made: dict[str, Tensor]) -> None:
    _, centre, _ = moments(made["x"])
    wanted = torch.stack([factor(made, "x"), factor(made, "y")], 1)
    assert (centre - wanted).abs().max() < 0.1


def test_the_area_is_the_square_of_the_scale(made: dict[str, Tensor]) -> None:
    area, _, _ = moments(made["x"])
    # Soft edges gain a little at a triangle's corners; the area itself varies fourfold.
    assert ((area / factor(made, "scale") ** 2 - 1).abs() < 0.06).all()


def test_the_hue_is_that_of_the_colour(made: dict[str, Tensor]) -> None:
    pixels = made["x"].flatten(2).double() / 255
    whole = cover(made["x"]).flatten(1).argmax(1)
    for picture, at, hue in zip(pixels, whole.tolist(), factor(made, "hue").tolist(), strict=True):
        h, saturation, value = colorsys.rgb_to_hsv(*picture[:, at].tolist())
        assert abs((h - hue + 0.5) % 1 - 0.5) < 0.002
        assert (saturation, value) == (1, 1)


def test_the_shape_is_told_by_its_moments(made: dict[str, Tensor]) -> None:
    """An ellipse is half as long again as wide, a square is not; a triangle has a tip."""
    area, _, offsets = moments(made["x"])
    weight = cover(made["x"]).flatten(1)
    second = (offsets.mT * weight[:, None]) @ offsets / area[:, None, None]
    small, large = torch.linalg.eigvalsh(second).unbind(1)
    # Third moments vanish for whatever a half turn does not change.
    across, down = offsets.unbind(2)
    cubes = [across**3, across**2 * down, across * down**2, down**3]
    third = torch.stack([(weight * cube).sum(1) for cube in cubes], 1) / area[:, None] ** 2.5
    odd = third.norm(dim=1)
    shape = factor(made, "shape").long()
    ratio = (large / small).sqrt()
    assert ((ratio[shape == 1] - 1.5).abs() < 0.1).all()
    assert (ratio[shape == 0] < 1.1).all()
    assert odd[shape == 2].min() > 3 * odd[shape != 2].max()


def test_an_ellipse_points_where_its_orientation_says(made: dict[str, Tensor]) -> None:
    area, _, offsets = moments(made["x"])
    weight = cover(made["x"]).flatten(1)
    second = (offsets.mT * weight[:, None]) @ offsets / area[:, None, None]
    angle = 0.5 * torch.atan2(2 * second[:, 0, 1], second[:, 0, 0] - second[:, 1, 1])
    error = (angle - factor(made, "orientation")) % math.pi
    error = torch.minimum(error, math.pi - error)[factor(made, "shape") == 1]
    assert error.max() < 0.05


def test_a_triangle_points_up_and_turns_clockwise() -> None:
    """Its farthest point from the centre of mass is its tip."""
    angles = torch.linspace(0, 2 * math.pi, 25)[:-1]
    given = torch.tensor([2, 0.5, 8, 0, 16, 16]).repeat(len(angles), 1)
    given[:, 3] = angles
    _, _, offsets = moments(draw(given))
    covered = cover(draw(given)).flatten(1) > 0.5
    tip = (offsets.norm(dim=2) * covered).argmax(1)
    toward = offsets[torch.arange(len(angles)), tip]
    found = torch.atan2(toward[:, 0], -toward[:, 1])
    error = (found - angles) % (2 * math.pi)
    assert torch.minimum(error, 2 * math.pi - error).max() < 0.15


def test_every_shape_lies_wholly_in_its_picture(made: dict[str, Tensor]) -> None:
    inner = torch.zeros(32, 32, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    assert (made["x"][:, :, ~inner] == 26).all()


@pytest.mark.parametrize("shape", range(3))
def test_edges_are_antialiased(shape: int) -> None:
    """A shift by a tenth of a pixel changes grey levels at the edge, and the area hardly."""
    given = torch.tensor([[shape, 0.0, 7, 0.3, 16, 16], [shape, 0.0, 7, 0.3, 16.1, 16]])
    before, after = draw(given).double()
    assert 10 < (before != after).any(0).sum() < 80
    assert (before - after).abs().max() < 0.2 * 255
    areas = cover(torch.stack([before, after])).sum((1, 2))
    assert (areas[0] - areas[1]).abs() < 0.3


def test_the_first_of_many_are_the_few(made: dict[str, Tensor]) -> None:
    for k in (1, 10, 1030):
        few = sprites(k, seed=3)
        assert torch.equal(few["x"], made["x"][:k])
        assert torch.equal(few["factors"], made["factors"][:k])


def test_no_picture_is_drawn_twice(made: dict[str, Tensor]) -> None:
    assert len(made["factors"].unique(dim=0)) == COUNT


def test_another_seed_draws_others(made: dict[str, Tensor]) -> None:
    assert not (sprites(20, seed=4)["factors"] == made["factors"][:20]).any(0)[1:].any()


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ((0,), ValueError, "sprites: n must be at least 1, got 0"),
        ((2.0,), TypeError, "sprites: n must be an integer, got float"),
        ((5, -1), ValueError, "seed"),
    ],
)
def test_a_bad_argument_is_refused(
    given: tuple[int, ...], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        sprites(*given)
