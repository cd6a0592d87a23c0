"""A folder of images as one tensor."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaez_kernels.checks import check_count

from ..data import DataError
from ..system.errors import first_line
from ..system.inputs import read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes
DEPTHS = {"LA": "grey with transparency", "I": "grey of more than 8 bits", "F": "grey in floats"}


def image_folder(path: str | Path, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """All .png, .jpg and .jpeg files below a folder, in the order of their paths.

    Transparency is dropped. An image that a camera took on its side is turned upright.

    Args:
        path: the folder; folders in it are searched too.
        size: (H, W) to which every image is resized (bilinear, antialiased), its proportions are
            not kept; None if all have the same size.

    Returns:
        "x": (N, C, H, W) uint8 on the CPU; C is 1 if all images are grey, otherwise 3 (RGB).

    Raises:
        DataError: there is no folder or no image, Pillow is missing, or an image is damaged, of
            another size than the first or of more than 8 bits; the message names the file.
        TypeError, ValueError: size is not two numbers of at least 1.
    """
    if size is not None:
        _check_size(size)
    folder = Path(path).expanduser()
    files = _files(folder)
    first = _pixels(files[0], size)
    x = torch.empty((len(files), *first.shape), dtype=torch.uint8)
    for i, file in enumerate(files):
        pixels = first if i == 0 else _pixels(file, size)
        if pixels.shape[1:] != first.shape[1:]:
            (H, W), (its_H, its_W) = first.shape[1:], pixels.shape[1:]
            raise DataError(
                f"{file} is {its_H} × {its_W} pixels (height × width), but {files[0]} is "
                f"{H} × {W}; size=({H}, {W}) would resize all"
            )
        if len(pixels) > x.shape[1]:  # the first colour after grey images
            x = x.repeat(1, len(pixels), 1, 1)
        x[i] = pixels
    return {"x": x}


def _check_size(size: object) -> None:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        kind = ValueError if isinstance(size, (tuple, list)) else TypeError
        raise kind(f"image_folder: size must be (H, W), got {size!r}")
    for i, number in enumerate(size):
        check_count("image_folder", f"size[{i}]", number, least=1)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"cannot read images in {folder}: there is no such folder")
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    # Compared by parts, so that the order is the same on every system.
    files = sorted(found, key=lambda file: file.relative_to(folder).parts)
    if not files:
        raise DataError(f"no {', '.join(SUFFIXES)} files in {folder} or the folders in it")
    return files


def _pixels(file: Path, size: tuple[int, int] | None) -> Tensor:
    """One file: (1, H, W) or (3, H, W) uint8."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"reading images needs Pillow ({error}): pip install pillow") from error
    try:
        # Pillow reads many formats; the readers of others are not needed.
        image: Image.Image = Image.open(io.BytesIO(read_bytes(file)), formats=("PNG", "JPEG"))
        array = _array(ImageOps.exif_transpose(image), size)
    except OSError as error:
        said = error.strerror or "not a PNG or JPEG image, or a damaged one"
        raise DataError(f"cannot read {file}: {said}") from None
    except Exception as error:  # a damaged image fails in many ways
        raise DataError(f"cannot read {file}: {first_line(error)}") from None
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _array(image: Image, size: tuple[int, int] | None) -> np.ndarray:
    if image.mode not in (*GREY, *COLOUR):
        kind = DEPTHS.get(image.mode.split(";")[0], f"of mode {image.mode}")
        raise ValueError(f"it is {kind}, expected 8 bits of grey or of each colour")
    image = image.convert("L" if image.mode in GREY else "RGB")
    if size is not None:
        from PIL.Image import Resampling

        image = image.resize((size[1], size[0]), Resampling.BILINEAR)
    return np.array(image)
