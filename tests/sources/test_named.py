"""CIFAR-10 and SVHN, from small files in their formats.

torchvision reads no file whose MD5 sum it does not know. So the sums of the small files take the
place of its own, but for the tests of damaged files.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vaez_fast.data import DataError
from vaez_fast.sources import cifar10, svhn

datasets = pytest.importorskip("torchvision.datasets")
io = pytest.importorskip("scipy.io")

A_BATCH, TEST = 10, 12
ALL = 5 * A_BATCH
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar_files(tmp_path: Path) -> Path:
    """The root of CIFAR-10's seven files, each batch with 10 images and the test with 12."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate(CIFAR_FILES[:-1]):
        count = TEST if name == "test_batch" else A_BATCH
        labels = [(i + j) % 10 for j in range(count)]
        batch = {"data": pixels(count, i).reshape(count, -1), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return tmp_path


@pytest.fixture
def cifar_root(cifar_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`cifar_files`, whose sums torchvision takes for the right ones."""
    sums = {name: md5(cifar_files / "cifar-10-batches-py" / name) for name in CIFAR_FILES}
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in CIFAR_FILES[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    return cifar_files


@pytest.fixture
def svhn_files(tmp_path: Path) -> Path:
    """The root of SVHN's two files, with 50 images and 12; the class of the digit 0 is 10."""
    for seed, (name, count) in enumerate({"train": ALL, "test": TEST}.items()):
        labels = (np.arange(count) % 10 + 1)[:, None].astype(np.uint8)
        content = {"X": pixels(count, seed).transpose(2, 3, 1, 0), "y": labels}
        io.savemat(tmp_path / f"{name}_32x32.mat", content)
    return tmp_path


@pytest.fixture
def svhn_root(svhn_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`svhn_files`, whose sums torchvision takes for the right ones."""
    listed = {
        name: [address, file, md5(svhn_files / file)]
        for name, (address, file, _) in datasets.SVHN.split_list.items()
        if name != "extra"
    }
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return svhn_files


def check_kinds(split: dict[str, Tensor], count: int) -> None:
    assert list(split) == ["x", "label"]
    assert split["x"].shape == (count, 3, 32, 32)
    assert split["x"].dtype == torch.uint8
    assert split["x"].is_contiguous()
    assert split["label"].shape == (count,)
    assert split["label"].dtype == torch.int64


def test_cifar10s_training_images_come_in_the_order_of_the_batches(cifar_root: Path) -> None:
    train, validation = (cifar10(str(cifar_root), name) for name in ("train", "validation"))
    check_kinds(train, 45)
    check_kinds(validation, 5)
    images = np.concatenate([pixels(A_BATCH, i) for i in range(5)])
    labels = [(i + j) % 10 for i in range(5) for j in range(A_BATCH)]
    assert torch.equal(torch.cat([train["x"], validation["x"]]), torch.from_numpy(images))
    assert torch.cat([train["label"], validation["label"]]).tolist() == labels


def test_cifar10s_test_images_are_those_of_the_test_batch(cifar_root: Path) -> None:
    test = cifar10(cifar_root, "test")
    check_kinds(test, TEST)
    assert torch.equal(test["x"], torch.from_numpy(pixels(TEST, 5)))
    assert test["label"].tolist() == [(5 + j) % 10 for j in range(TEST)]


def test_svhns_images_are_upright_and_its_label_is_the_digit(svhn_root: Path) -> None:
    train, validation, test = (svhn(svhn_root, name) for name in ("train", "validation", "test"))
    check_kinds(train, 45)
    check_kinds(validation, 5)
    check_kinds(test, TEST)
    images = torch.from_numpy(pixels(ALL, 0))
    assert torch.equal(torch.cat([train["x"], validation["x"]]), images)
    assert torch.equal(test["x"], torch.from_numpy(pixels(TEST, 1)))
    assert test["label"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_a_split_does_not_keep_the_others_in_memory(svhn_root: Path) -> None:
    validation = svhn(svhn_root, "validation")
    assert validation["x"].untyped_storage().nbytes() == validation["x"].numel()


def test_svhn_needs_only_the_file_of_its_split(svhn_root: Path) -> None:
    (svhn_root / "train_32x32.mat").unlink()
    assert len(svhn(svhn_root, "test")["x"]) == TEST


def refused(read: Callable[[Path, str], object], root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        read(root, split)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_missing_files_of_cifar10_are_listed(cifar_root: Path) -> None:
    folder = cifar_root / "cifar-10-batches-py"
    (folder / "data_batch_2").unlink()
    (folder / "batches.meta").unlink()
    assert refused(cifar10, cifar_root) == (
        f"cifar10: data_batch_2, batches.meta not found in {folder}. Put the files there (from "
        "cifar-10-python.tar.gz), name another folder with --data-root DIR, or use sprites, which "
        "need no file."
    )


@pytest.mark.parametrize("read", [cifar10, svhn])
def test_an_empty_folder_lists_all_files_of_the_split(
    read: Callable[[Path, str], object], tmp_path: Path
) -> None:
    said = refused(read, tmp_path, "test")
    wanted = ", ".join(CIFAR_FILES) if read is cifar10 else "test_32x32.mat"
    assert f": {wanted} not found in {tmp_path}" in said


def test_a_missing_file_of_svhn_is_named_with_its_address(svhn_root: Path) -> None:
    (svhn_root / "train_32x32.mat").unlink()
    said = refused(svhn, svhn_root, "validation")
    assert said.startswith(f"svhn: train_32x32.mat not found in {svhn_root}. Put the files there")
    assert "(from http://ufldl.stanford.edu/housenumbers/train_32x32.mat)" in said


def test_files_of_another_sum_are_damaged_and_not_unpickled(cifar_files: Path) -> None:
    folder = cifar_files / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(b"cpytest\nfail\n(S'it was unpickled'\ntR.")
    said = refused(cifar10, cifar_files)
    assert said.startswith("cifar10: data_batch_1 or ")
    assert said.endswith(
        f"in {folder} is damaged: torchvision expects another MD5 sum. Fetch it anew (from "
        "cifar-10-python.tar.gz)."
    )


def test_a_damaged_file_of_svhn_is_named(svhn_root: Path) -> None:
    path = svhn_root / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    said = refused(svhn, svhn_root)
    assert said.startswith(f"svhn: train_32x32.mat in {svhn_root} is damaged")


def test_a_file_that_only_fits_its_sum_is_refused(
    cifar_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cifar_root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"labels": []}))
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(path)]])
    assert refused(cifar10, cifar_root, "test") == (
        f"cifar10: cannot read {path.parent}: it lacks 'data'"
    )


@pytest.mark.parametrize("read", [cifar10, svhn])
def test_an_unknown_split_is_refused(read: Callable[[Path, str], object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'all'"):
        read(tmp_path, "all")


@pytest.mark.parametrize("read", [cifar10, svhn])
def test_without_torchvision_the_message_says_what_to_install(
    read: Callable[[Path, str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert refused(read, tmp_path).endswith("pip install torchvision")


def test_without_scipy_svhn_says_what_to_install(
    svhn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert refused(svhn, svhn_root).endswith("pip install scipy")
