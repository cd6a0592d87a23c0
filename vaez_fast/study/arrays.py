"""The files of a run in a grid's folder, and its arrays read back: images, and the law of z."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import TrainConfig
from ..data import PIXELS
from ..system.archives import read_arrays
from ..system.errors import first_line, shown
from ..system.files import OutputError

ARRAYS_MOST_BYTES = 2**24  # a run's images and the law of its z have 250 kB
LAW = "law/"  # the prefix of the arrays of `vaez_fast.measures.law_summary`
# Beside the grids of generated images, which have the names of samplers
TEST_IMAGES, RECONSTRUCTIONS = "test-images", "reconstructions"


def files_of(out: Path, run: TrainConfig) -> tuple[Path, Path]:
    # The record is written last: with it the run is finished.
    name = f"{slug(run.arm)}-seed{run.seed}"
    return out / "runs" / f"{name}.json", out / "runs" / f"{name}.npz"


def slug(arm: str) -> str:
    """An arm's name for use in file names."""
    return arm.replace("/", "_").replace("=", "")


def images_of(out: Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """Grids of a run's images by sampler, and of test images and their reconstructions.

    Each is (count, 784) uint8 grey levels.

    Raises:
        OutputError: there is no such run, or its file cannot be read.
    """
    path, arrays = _arrays(out, arm, seed)
    images = {name: grid for name, grid in arrays.items() if not name.startswith(LAW)}
    for name, grid in images.items():
        if grid.dtype != np.uint8 or grid.ndim != 2 or grid.shape[1] != PIXELS:
            raise OutputError(
                f"cannot read {path}: not a file of images, or a damaged one "
                f"({shown(name)} is {grid.shape} {grid.dtype})"
            )
    return images


def law_of(out: Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """The arrays of `vaez_fast.measures.law_summary.summary_of` of a run.

    Raises:
        OutputError: there is no such run, or its file cannot be read.
    """
    _, arrays = _arrays(out, arm, seed)
    return {name.removeprefix(LAW): array for name, array in arrays.items() if name.startswith(LAW)}


def _arrays(out: Path, arm: str, seed: int) -> tuple[Path, dict[str, np.ndarray]]:
    path = out / "runs" / f"{slug(arm)}-seed{seed}.npz"
    try:
        return path, read_arrays(path, ARRAYS_MOST_BYTES)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except Exception as error:  # a damaged archive fails in many ways
        raise OutputError(
            f"cannot read {path}: not a file of images, or a damaged one ({first_line(error)})"
        ) from None
