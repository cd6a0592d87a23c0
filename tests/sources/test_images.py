"""Folders of images: which files, in which order, in what shape, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.process import environment
from vaez_fast.data import DataError
from vaez_fast.sources import image_folder

Image = pytest.importorskip("PIL.Image")

RED, GREEN = (255, 0, 0), (0, 255, 0)


def put(path: Path, colour: Any, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Path:
    """An image of one colour; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def grey_levels(folder: Path, **given: Any) -> list[int]:
    x = image_folder(folder, **given)["x"]
    assert x.shape[1] == 1
    assert (x == x[:, :, :1, :1]).all()
    levels: list[int] = x[:, 0, 0, 0].tolist()
    return levels


def refused(folder: Path, **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        image_folder(folder, **given)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    x = image_folder(str(tmp_path))["x"]
    assert x.dtype == torch.uint8
    assert x.is_contiguous()
    assert torch.equal(x, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_files_come_in_the_order_of_their_paths_from_all_folders_below(tmp_path: Path) -> None:
    for level, name in enumerate(["B.PNG", "a.png", "a/z.png", "a/b/c.png", "a-.png", "c.png"]):
        put(tmp_path / name, level, "L")
    # By parts: "a" and what is in it comes before "a-.png" and "a.png".
    assert grey_levels(tmp_path) == [0, 3, 2, 4, 1, 5]


def test_jpegs_are_read_and_other_files_are_not(tmp_path: Path) -> None:
    for level, name in enumerate(["a.jpg", "b.jpeg", "c.JPG", "d.png"]):
        put(tmp_path / name, 50 * level, "L")
    put(tmp_path / "e.gif", 1, "L")
    (tmp_path / "notes.txt").write_text("no image")
    assert grey_levels(tmp_path) == [0, 50, 100, 150]


def test_grey_stays_one_channel_if_all_are_grey(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 7, "L")
    put(tmp_path / "b.png", 1, "1")
    assert grey_levels(tmp_path) == [7, 255]


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_one_colour_image_makes_all_three_channels(colour: int, tmp_path: Path) -> None:
    for i in range(3):
        if i == colour:
            put(tmp_path / f"{i}.png", RED)
        else:
            put(tmp_path / f"{i}.png", 7, "L")
    x = image_folder(tmp_path)["x"]
    assert x.shape == (3, 3, 3, 4)
    for i in range(3):
        assert x[i, :, 0, 0].tolist() == (list(RED) if i == colour else [7, 7, 7])
        assert (x[i] == x[i, :, :1, :1]).all()


def test_palettes_become_colours_and_transparency_is_dropped(tmp_path: Path) -> None:
    put(tmp_path / "a.png", (*GREEN, 0), "RGBA")
    Image.new("RGB", (4, 3), RED).quantize(4).save(tmp_path / "b.png")
    x = image_folder(tmp_path)["x"]
    assert x[:, :, 0, 0].tolist() == [list(GREEN), list(RED)]


def test_a_camera_that_lay_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (4, 3), 0)
    image.paste(255, (0, 0, 4, 1))  # a white line above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    image.save(tmp_path / "a.png", exif=exif)
    x = image_folder(tmp_path)["x"][0, 0]
    assert x.shape == (4, 3)
    assert x[0].tolist() == [0, 0, 255]


def test_images_are_resized_to_height_and_width(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 9, "L", (40, 30))
    put(tmp_path / "b.png", 8, "L", (5, 6))
    assert image_folder(tmp_path, size=(3, 4))["x"].shape == (2, 1, 3, 4)
    assert grey_levels(tmp_path, size=(3, 4)) == [9, 8]


def test_a_smaller_image_averages_the_pixels_of_the_larger(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    x = image_folder(tmp_path, size=(4, 4))["x"].int()
    assert (x - 127).abs().max() < 8


def test_the_first_image_of_another_size_is_named(tmp_path: Path) -> None:
    first = put(tmp_path / "a.png", RED)
    put(tmp_path / "b.png", RED)
    odd = put(tmp_path / "c.png", RED, size=(3, 4))
    put(tmp_path / "d.png", RED, size=(9, 9))
    assert refused(tmp_path) == (
        f"{odd} is 4 × 3 pixels (height × width), but {first} is 3 × 4; "
        "size=(3, 4) would resize all"
    )


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a"])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    (tmp_path / "b.png").write_bytes(content)
    said = "not a PNG or JPEG image, or a damaged one"
    assert refused(tmp_path) == f"cannot read {tmp_path / 'b.png'}: {said}"


def test_an_image_of_another_format_is_not_decoded(tmp_path: Path) -> None:
    put(tmp_path / "a.gif", 1, "L").rename(tmp_path / "a.png")
    assert "not a PNG or JPEG image" in refused(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_that_was_cut_off_is_named(suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert refused(tmp_path).startswith(f"cannot read {path}: ")


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 1000, np.uint16)).save(tmp_path / "a.png")
    assert refused(tmp_path) == (
        f"cannot read {tmp_path / 'a.png'}: it is grey of more than 8 bits, "
        "expected 8 bits of grey or of each colour"
    )


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    said = f"no .png, .jpg, .jpeg files in {tmp_path} or the folders in it"
    assert refused(tmp_path) == said


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert refused(none) == f"cannot read images in {none}: there is no such folder"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "it is a pipe, expected a regular file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("size", "kind", "says"),
    [
        ((0, 4), ValueError, r"size\[0\] must be at least 1, got 0"),
        ((4, 0), ValueError, r"size\[1\] must be at least 1, got 0"),
        ((4.0, 4), TypeError, r"size\[0\] must be an integer, got float"),
        ((4,), ValueError, r"size must be \(H, W\), got \(4,\)"),
        (4, TypeError, r"size must be \(H, W\), got 4"),
    ],
)
def test_a_size_that_is_none_is_refused(
    size: Any, kind: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=f"^image_folder: {says}"):
        image_folder(tmp_path, size=size)


def test_without_pillow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png", RED)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refused(tmp_path).endswith("pip install pillow")


def test_the_package_needs_neither_pillow_nor_torchvision_nor_scipy() -> None:
    code = (
        "import sys\n"
        "for name in ('PIL', 'torchvision', 'scipy'): sys.modules[name] = None\n"
        "from vaez_fast.sources import SparseRows, sprites\n"
        "assert len(sprites(3)['x']) == 3\n"
        "print(SparseRows.of(([0, 1], [0], [2.0], (1, 2))).dense().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.stdout == "[[2.0, 0.0]]\n", done.stderr
