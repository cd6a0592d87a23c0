"""Damaged files, full disks, a loss that is not finite, memory that runs out: one line, no loss."""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.records import compare as bench_compare
from bench.records import history as bench_history
from bench.records import report as bench_report
from bench.records import summary as bench_summary
from bench.soak.kills import environment
from tests.bench import suite_record
from tests.runs.fake_run import CONFIG, make_run
from tests.study import fake_study
from tests.system.bad_files import FILES, MARK, Code, Damage, cut, flip
from vaez_fast import data
from vaez_fast.cli.main import main
from vaez_fast.data import DataError, Dataset
from vaez_fast.measures import features
from vaez_fast.runs import trained
from vaez_fast.study import study as studies
from vaez_fast.study.study import slug
from vaez_fast.system import files
from vaez_fast.system.environment import environment as machine
from vaez_fast.system.files import OutputError
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training import phases as regime
from vaez_fast.training.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

ROOT = Path(__file__).parents[2]
LOAD = data.load
# One compiled step for all that trains here.
SETTINGS = [
    *("--model", "lyeoni", "--steps", "120", "--batch-size", "20", "--test-samples", "1"),
    *("--precision", "float32", "--checkpoint-seconds", "0"),
]
GROUPS = {"an op, 8 × 128, float32": {"eager": 2e-3, "fallback": 1e-3}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind: see `tests.system.bad_files`."""
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
    files.write_json(at / "study" / "study.json", results["config"])
    for arm in studies.arm_names(results):
        with (at / "study" / "runs" / f"{slug(arm)}-seed0.npz").open("wb") as file:
            np.savez_compressed(file, **fake_study.images())  # type: ignore[arg-type]
    suite_record.write(at / "bench.json", suite_record.content(GROUPS, 1))
    return at


@pytest.fixture
def at(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("mnist-5k")


@pytest.fixture(autouse=True)
def load_once(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data, trained, studies):
        monkeypatch.setattr(module, "load", lambda *_: digits)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def line(words: list[str], capsys: pytest.CaptureFixture[str], status: int | None = None) -> str:
    """What a command that fails says: one line, and nothing else."""
    capsys.readouterr()
    found = main(words)
    assert found in (1, 2) if status is None else found == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vaez-fast {words[0]}: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


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
            data._mnist_5k_of_file(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_code_in_an_archive_does_not_run(self, tmp_path: Path) -> None:
        path = npz_of(tmp_path, images=np.array([Code(tmp_path)], dtype=object), labels=np.zeros(1))
        with pytest.raises(DataError, match="cannot be read"):
            data._mnist_5k_of_file(path)
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
            assert "batch_size must be at most 50000" in said  # grey levels of 10 are no damage
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
    torch.save({"model": Code(tmp_path) if hidden else {}}, file)
    before = file.read_bytes()
    said = line(["article", "--steps", "2", "--seeds", "2", "--out", str(file.parent)], capsys, 1)
    why = "expected tensors and plain values" if hidden else "no feature network"
    assert f"cannot read {file}: {why}" in said
    assert file.read_bytes() == before
    assert not (tmp_path / MARK).exists()


def test_a_classifier_with_another_weight_is_refused(tmp_path: Path) -> None:
    net, file = features.FeatureNet(), tmp_path / "features.pt"
    record = features.Training("mnist-5k", 0, 5, 1, 0.9, 0.8, 1.5, net.sha256())
    features.save_features(net, replace(record, accuracy_grey="high"), file)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="its accuracy_grey is 'high'"):
        features.load_features(file, torch.device("cpu"))
    net.head.bias.data[0] += 1
    features.save_features(net, record, file)
    with pytest.raises(OutputError, match="its weights are not those of its record"):
        features.load_features(file, torch.device("cpu"))


# The suite's records.

BENCH: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("a list", lambda run: [run], "not a benchmark's JSON"),
    ("no rows", lambda run: run | {"benchmarks": []}, "has no rows"),
    ("rows of words", lambda run: run | {"benchmarks": ["x"]}, "not a run of this suite"),
    ("no machine", lambda run: run | {"machine_info": None}, "not a run of this suite"),
    ("no date", lambda run: run | {"datetime": 3}, "its datetime is 3"),
    ("a number as device", lambda run: with_machine(run, device=3), "its device is 3"),
    ("a number as commit", lambda run: with_machine(run, revision=3), "its revision is 3"),
    ("no check", lambda run: with_info(run, check_error_over_tolerance=None), "tolerance is None"),
    ("words as floor", lambda run: with_info(run, floor_bytes="3"), "its floor_bytes is '3'"),
    ("no memory", lambda run: without_info(run, "peak_memory_bytes"), "it lacks 'peak_memory"),
    ("no speed", lambda run: without_info(run, "gb_per_second"), "it lacks 'gb_per_second'"),
    ("no rounds of a GPU", lambda run: with_info(run, device_seconds=[]), "device_seconds are []"),
    ("a round of 0 s", lambda run: with_info(run, device_seconds=[1e-6, 0]), "device_seconds is 0"),
    ("half a metric", lambda run: with_info(run, metrics={}), "it lacks 'images_per_second'"),
    ("a median of zero", lambda run: with_stats(run, median=0.0), "no positive times"),
    ("a spread of NaN", lambda run: with_stats(run, iqr=float("nan")), "no spread of times"),
]


def with_machine(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    return run | {"machine_info": run["machine_info"] | values}


def with_info(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    run["benchmarks"][1]["extra_info"] |= values
    return run


def without_info(run: dict[str, Any], name: str) -> dict[str, Any]:
    del run["benchmarks"][1]["extra_info"][name]
    return run


def with_stats(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    run["benchmarks"][1]["stats"] |= values
    return run


class TestBench:
    def refused(self, at: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
        (at / "folder").mkdir()
        bad, out = str(at / "folder" / "bad.json"), str(at / "out")
        if (at / "bad.json").exists():
            (at / "bad.json").rename(bad)
        for program, words in (
            (bench_compare, [str(at / "bench.json"), bad]),
            (bench_summary, [bad]),
            (bench_report, [str(at / "bench.json"), bad, "--out", out]),
            (bench_history, [str(at / "folder"), "--out", out]),
        ):
            assert program.main(words) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith(f"{program.__name__}: error: ")
            assert captured.err.count("\n") == 1
            if program is not bench_history or message not in ("not a benchmark's JSON", "No such"):
                assert message in captured.err
            assert not (at / "out").exists()

    @pytest.mark.parametrize(
        ("change", "message"), [row[1:] for row in BENCH], ids=[r[0] for r in BENCH]
    )
    def test_a_bad_record_is_one_line_in_every_program(
        self,
        change: Callable[[dict[str, Any]], Any],
        message: str,
        at: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run = change(json.loads((at / "bench.json").read_text()))
        suite_record.write(at / "bad.json", run)
        self.refused(at, capsys, message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[" * 10**5, "not JSON"),
            (None, "No such"),
        ],
        ids=["empty", "noise", "endless", "missing"],
    )
    def test_a_file_that_is_no_record_is_one_line_in_every_program(
        self, content: bytes | None, message: str, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if content is not None:
            (at / "bad.json").write_bytes(content)
        self.refused(at, capsys, message)

    def test_a_record_that_tells_its_time_in_words_is_named(
        self, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine = {"device": "a CPU", "threads": 2}
        speed = {"train_seconds": "long", "steps": 0}
        run = {"arm": "randn", "config": {"model": "burda"}, "environment": machine, "speed": speed}
        suite_record.write(at / "study" / "bad.json", run)
        assert bench_history.main([str(at / "study"), "--out", str(at / "out")]) == 2
        error = capsys.readouterr().err
        assert "bad.json: tells no time (" in error
        assert error.count("\n") == 1

    def test_a_summary_prints_what_the_suite_printed(
        self, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench_summary.main([str(at / "bench.json")]) == 0
        assert "an op, 8 × 128, float32" in capsys.readouterr().out


# Disks.


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_checkpoint_that_cannot_be_replaced_is_still_there(
    call: str, code: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(whole / "run" / "checkpoint.pt", tmp_path)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    old = checkpoints.read(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    class Full:
        """A file on a disk that fills."""

        write = refuse
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    def full(handle: int, _: str) -> Full:
        os.close(handle)
        return Full()

    with monkeypatch.context() as patch:
        if call == "open":
            patch.setattr(os, "open", refuse)
        if call == "write":
            patch.setattr(os, "fdopen", full)
        if call == "fsync":
            patch.setattr(os, "fsync", refuse)
        if call == "replace":
            patch.setattr(os, "replace", refuse)
        with pytest.raises(OutputError) as raised:
            checkpoints.write(path, replace(old, step=old.step + 1))
    assert str(raised.value) == f"out: cannot write {path}: {os.strerror(code)}"
    assert path.read_bytes() == before
    assert checkpoints.read(path).step == old.step
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_file_larger_than_allowed_is_refused_by_the_kernel_and_leaves_the_old_one(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copy(whole / "run" / "checkpoint.pt", tmp_path)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OutputError, match=r"cannot write .*: File too large"):
            checkpoints.write(path, checkpoints.read(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vaez_fast", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT, timeout=60,
        )  # fmt: skip
    said = "vaez-fast: error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


# Training.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *_: digits)
        assert main(["train", *SETTINGS, "--out", str(out)]) == 0
    return measured_in(out)


def measured_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())["test"]
    return found


def failing_at(name: str, write: Callable[..., None]) -> Callable[..., None]:
    def write_or_fail(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OutputError(f"out: cannot write {path}: No space left on device")
        write(path, content)

    return write_or_fail


def test_a_disk_that_is_full_when_metrics_are_written_loses_nothing(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", failing_at("metrics.json", files.write_atomically))
        said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert f"cannot write {out / 'metrics.json'}: No space left" in said
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    assert main(["train", "--resume", str(out)]) == 0
    assert measured_in(out) == undisturbed
    assert checkpoints.read(out / "checkpoint.pt").training is None


def test_a_disk_that_is_full_in_training_leaves_the_checkpoint_before(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real, written = tmp_path / "run", os.fsync, 0

    def full_later(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 4:  # config.json and the first checkpoint, each with its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_later)
        said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert f"cannot write {out / 'checkpoint.pt'}: No space left" in said
    kept = checkpoints.read(out / "checkpoint.pt")
    assert kept.training is not None
    assert kept.training["done"] == 64
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    assert main(["train", "--resume", str(out)]) == 0
    assert measured_in(out) == undisturbed


@pytest.fixture
def breaks_at_step_81(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Rates that lead nowhere finite from the step on."""

    def rates(lr: float, steps: int) -> torch.Tensor:
        found = lr * torch.ones(steps, dtype=torch.float64)
        found[79:] = 1e20
        return found

    with monkeypatch.context() as patch:
        patch.setattr(regime, "warmup_cosine", rates)
        yield patch


def test_a_loss_that_is_not_finite_says_where_and_keeps_the_last_good_checkpoint(
    breaks_at_step_81: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    said = line(["train", *SETTINGS, "--out", str(out)], capsys, 1)
    assert "the loss of elbo/analytic/joint is not finite at step 81 (" in said
    assert "a smaller lr than 0.002 may help" in said
    kept = out / "checkpoint.pt"
    assert f"; the last good checkpoint is {kept}, after step 64" in said
    content = checkpoints.read(kept)
    assert content.training is not None
    ((state,),) = content.training["engines"]
    assert all(bool(w.isfinite().all()) for w in state["weights"].values())
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.pt", "config.json"]
    breaks_at_step_81.undo()
    assert main(["train", "--resume", str(out)]) == 0
    assert np.isfinite(list(measured_in(out).values())).all()


def test_a_loss_that_is_not_finite_at_once_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *SETTINGS, "--out", str(tmp_path / "run"), "--checkpoint-seconds", "60"]
    said = line([*words, "--lr", "1e20"], capsys, 1)
    assert "elbo/analytic/joint is not finite at step 2 (" in said
    assert said.endswith("; there is no checkpoint yet\n")
    assert contents(tmp_path) == {}


def test_memory_that_runs_out_names_the_settings_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *SETTINGS, "--num-samples", "4000000000", "--out", str(tmp_path / "run")]
    said = line(words, capsys, 1)
    asked = "out of memory with batch_size 20, num_samples 4000000000 and model 'lyeoni': a lower "
    assert asked in said
    assert contents(tmp_path) == {}


def test_more_samples_than_memory_holds_name_the_count(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(whole / "run"), "--count", str(2**32 - 1), "--out", str(tmp_path / "s")]
    said = "vaez-fast sample: error: memory ran out; it may fit with a smaller count\n"
    assert line(words, capsys, 1) == said


def test_weights_that_overflow_are_refused(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = at / "run" / "checkpoint.pt"
    kept = checkpoints.read(path)
    kept.model["decoder.4.bias"].fill_(3e38)
    checkpoints.write(path, kept)
    said = line(["evaluate", str(at / "run"), "--json"], capsys, 1)
    assert "run: a measured number is not finite: its weights are damaged" in said


def test_two_runs_in_one_root_do_not_meet(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """One folder is claimed while the other's run begins and ends."""
    with files.claimed(tmp_path / "a"):
        assert main(["train", *SETTINGS, "--out", str(tmp_path / "b")]) == 0
    assert measured_in(tmp_path / "b") == undisturbed
    assert all(name.startswith("b/") for name in contents(tmp_path))


def test_a_folder_at_work_is_refused_to_a_second_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.claimed(tmp_path / "a"):
        said = line(["train", *SETTINGS, "--out", str(tmp_path / "a")], capsys, 1)
    assert "another run is at work in" in said


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
