"""Colour sets of others, from the files that torchvision reads: CIFAR-10 and SVHN.

torchvision compares the files' MD5 sums with those that it knows before it reads them. CIFAR-10's
files are pickles, which could run code, so none is read without that. Nothing is downloaded.

The last tenth of the training images is for validation: 5,000 of CIFAR-10, 7,325 of SVHN.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaez_kernels.checks import check_choice

from ..data import SPLITS, DataError
from ..system.errors import first_line


def cifar10(root: str | Path, split: str) -> dict[str, Tensor]:
    """CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

    Args:
        root: the folder that holds `cifar-10-batches-py`.
        split: "train" (45,000 images), "validation" (5,000) or "test" (10,000).

    Returns:
        "x": (N, 3, 32, 32) uint8, RGB, and "label": (N,) int64, 0 … 9; on the CPU.

    Raises:
        ValueError: an unknown split.
        DataError: torchvision or a file is missing, or a file is damaged.
    """
    check_choice("cifar10", "split", split, SPLITS)
    kind = _torchvision("cifar10").CIFAR10
    folder = _folder(root) / kind.base_folder
    # torchvision checks all of them, whichever it reads.
    expected = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    make = partial(kind, _folder(root), train=split != "test", download=False)
    read = _read("cifar10", folder, expected, kind.filename, make)
    return _split(np.transpose(read.data, (0, 3, 1, 2)), read.targets, split)


def svhn(root: str | Path, split: str) -> dict[str, Tensor]:
    """SVHN's cropped digits (Netzer et al., "Reading digits in natural images", 2011).

    Args:
        root: the folder of `train_32x32.mat` and `test_32x32.mat`; a split needs only its own.
        split: "train" (65,932 images), "validation" (7,325) or "test" (26,032).

    Returns:
        "x": (N, 3, 32, 32) uint8, RGB, and "label": (N,) int64, the digit; on the CPU.

    Raises:
        ValueError: an unknown split.
        DataError: torchvision, scipy or the file is missing, or the file is damaged.
    """
    check_choice("svhn", "split", split, SPLITS)
    kind = _torchvision("svhn").SVHN
    of_file = "test" if split == "test" else "train"
    address, name, _ = kind.split_list[of_file]
    make = partial(kind, _folder(root), split=of_file, download=False)
    read = _read("svhn", _folder(root), [name], address, make)
    return _split(read.data, read.labels, split)


def _torchvision(name: str) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(f"{name}: needs torchvision ({error}): pip install torchvision") from error
    return datasets


def _folder(root: str | Path) -> Path:
    return Path(root).expanduser()


def _read(
    name: str, folder: Path, expected: list[str], source: str, make: Callable[[], Any]
) -> Any:
    """torchvision's data set, which `make` returns, if the expected files are in the folder."""
    if missing := [file for file in expected if not os.path.lexists(folder / file)]:
        raise DataError(
            f"{name}: {', '.join(missing)} not found in {folder}. Put the files there (from "
            f"{source}), name another folder with --data-root DIR, or use sprites, which need no "
            "file."
        )
    try:
        return make()
    except ImportError as error:
        raise DataError(f"{name}: needs scipy ({error}): pip install scipy") from error
    except RuntimeError as error:  # what torchvision raises for another MD5 sum
        raise DataError(
            f"{name}: {' or '.join(expected)} in {folder} is damaged: torchvision expects another "
            f"MD5 sum. Fetch it anew (from {source})."
        ) from error
    except Exception as error:  # an unreadable file, or one that fits its sum and nothing else
        raise DataError(f"{name}: cannot read {folder}: {first_line(error)}") from error


def _split(images: np.ndarray, labels: Any, split: str) -> dict[str, Tensor]:
    x, label = torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels).long()
    held_out = len(x) // 10
    rows = {"train": slice(0, -held_out), "validation": slice(-held_out, None), "test": slice(None)}
    # Cloned: a part of a tensor would keep the whole in memory.
    return {"x": x[rows[split]].clone(), "label": label[rows[split]].clone()}
