"""Outputs replace only regular files, completely or not at all, and cannot be redirected.

At the place of an output there may be a folder, a pipe, a socket, a device, or a link to a file or
to nowhere. Every command is tried with that in place of each of its own files, and must refuse
before it starts to work.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.process import ROOT, environment
from bench.records import history as bench_history
from bench.records import report as bench_report
from bench.speedrun import run as bench_speedrun
from bench.training import parts as bench_parts
from tests.bench import suite_record
from tests.study import fake_study
from tests.system.fake_run import CONFIG, make_run
from vaez_fast import compare, data
from vaez_fast.cli.main import main
from vaez_fast.report import run as report_run
from vaez_fast.runs import latents, trained
from vaez_fast.runs import samples as generate
from vaez_fast.study import grid, study
from vaez_fast.study.arrays import slug
from vaez_fast.system import files
from vaez_fast.system.environment import environment as machine
from vaez_fast.system.files import OutputError, claimed, write_atomically
from vaez_fast.theory import record as theory
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training import train as training
from vaez_fast.training.checkpoint import Checkpoint


def plant(path: Path, what: str) -> None:
    """Put something that is not a regular file at `path`; a link leads to `victim` beside it."""
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    if what == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's whole path has at most 108 characters
            listener.bind(path.name)
            os.chdir(here)
    if what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null
        except OSError:
            pytest.skip("only root can make a device")
    if what == "link":
        path.symlink_to(victim_of(path))
    if what == "link to nowhere":
        path.symlink_to(path.with_name("nowhere"))


def victim_of(path: Path) -> Path:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    return victim


KINDS = {
    "folder": "a folder",
    "pipe": "a pipe",
    "socket": "a socket",
    "device": "a device",
    "link": "a symbolic link",
    "link to nowhere": "a symbolic link",
}
every_kind = pytest.mark.parametrize("what", KINDS)


def tree(folder: Path) -> dict[str, Any]:
    """Everything beneath a folder, without following links or opening pipes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        link = os.readlink(path) if stat.S_ISLNK(mode) else ""
        found[str(path.relative_to(folder))] = (mode, link, content)
    return found


# A single file.


@every_kind
def test_what_is_no_regular_file_is_neither_replaced_nor_written_through(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.json"
    plant(path, what)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"cannot write .*metrics.json: it is {KINDS[what]}; exp"):
        write_atomically(path, b"{}")
    assert tree(tmp_path) == before


def test_a_regular_file_is_replaced_and_another_name_of_the_old_one_keeps_its_content(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "metrics.json", tmp_path / "other"
    path.write_bytes(b"old")
    os.link(path, other)
    write_atomically(path, b"new")
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"old")


def test_a_folder_behind_a_link_is_written_in(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    write_atomically(tmp_path / "out" / "metrics.json", b"{}")
    assert (tmp_path / "disk" / "metrics.json").read_bytes() == b"{}"
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "metrics.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "metrics.json").stat().st_mode) == 0o666 & ~mask


@contextmanager
def names_while_written(folder: Path) -> Iterator[set[str]]:
    """A set to which each fsync of a regular file adds the names in `folder`."""
    seen: set[str] = set()
    real = os.fsync

    def look(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            seen.update(os.listdir(folder))
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", look)
        yield seen


def test_names_of_files_that_are_not_whole_yet_never_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")
    seen = []
    for _ in range(20):
        with names_while_written(tmp_path) as names:
            write_atomically(path, b"new")
        (name,) = names - {"metrics.json"}
        assert str(os.getpid()) not in name
        seen.append(name)
    assert len(set(seen)) == len(seen)
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_the_content_reaches_the_disk_before_the_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")
    at_sync: list[tuple[bytes, int]] = []
    real = os.fsync

    def look(handle: int) -> None:
        at_sync.append((path.read_bytes(), os.fstat(handle).st_size))
        real(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"content")
    assert at_sync[0] == (b"old", len(b"content"))
    assert at_sync[1][0] == b"content"  # the second sync is the folder's, after the rename


@pytest.mark.parametrize("name", ["the name of a process", "even the right name"])
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_a_link_planted_where_a_checkpoint_is_prepared_leads_nowhere(
    name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path / "run") / "checkpoint.pt"
    kept = checkpoints.read(path)
    victim = victim_of(path)
    if name == "the name of a process":
        planted = path.with_name(f".checkpoint.pt.unfinished-{os.getpid()}")
    else:  # as if an attacker had guessed the name
        with names_while_written(path.parent) as names, monkeypatch.context() as patch:
            patch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
            checkpoints.write(path, kept)
        (unfinished,) = names - {"checkpoint.pt", "metrics.json", "victim"}
        planted = path.with_name(unfinished)
        monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    planted.symlink_to(target)
    before = tree(path.parent)
    newer = replace(kept, step=kept.step + 1)
    if name == "even the right name":
        with pytest.raises(OutputError, match="File exists"):
            checkpoints.write(path, newer)
        assert tree(path.parent) == before
    else:
        checkpoints.write(path, newer)
        assert checkpoints.read(path).step == newer.step
    assert victim.read_bytes() == b"precious"
    assert os.readlink(planted) == target
    assert not path.with_name("nowhere").exists()


# Files that killed processes leave behind.

KILLED = """\
import os, signal, sys
from pathlib import Path
from vaez_fast.system import files
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(Path(sys.argv[1]), bytes(1000))
"""


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("checkpoint.pt", "runs/randn-seed0.json"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / name)],
            env=environment(), cwd=ROOT, timeout=60,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL
    (left,), (other,) = list(tmp_path.glob(".*")), list((tmp_path / "runs").glob(".*"))
    assert left.stat().st_size == 1000
    mine = [".lock", ".notes.unfinished-draft", f"{left.name}.txt", f".x{left.name}", "runs/.mine"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    link = left.name.replace(left.name[12:18], "abcdef")
    (tmp_path / link).symlink_to(tmp_path / ".lock")
    with claimed(tmp_path):
        assert not left.exists()
        assert not other.exists()
    assert [(tmp_path / name).read_text() for name in mine] == ["mine"] * len(mine)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {*mine, link, "runs"}


@every_kind
def test_nothing_planted_at_the_locks_name_is_opened(what: str, tmp_path: Path) -> None:
    with names_while_written(tmp_path) as names, claimed(tmp_path):
        write_atomically(tmp_path / "file", b"")
    (lock,) = (name for name in names if name.endswith("lock"))
    plant(tmp_path / lock, what)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"it is {KINDS[what]}"), claimed(tmp_path):
        pass
    assert tree(tmp_path) == before


# Commands.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("whole")
    make_run(at / "run")
    half = at / "half"
    half.mkdir()
    config = asdict(replace(CONFIG, device="auto"))
    model = checkpoints.read(at / "run" / "checkpoint.pt").model
    where = machine("cpu") | {"ranks": 1}
    checkpoints.write(half / "checkpoint.pt", Checkpoint(config, where, 0, model, {"done": 3}))
    (at / "study" / "runs").mkdir(parents=True)
    results = fake_study.results()
    files.write_json(at / "study" / "results.json", results)
    for arm in study.arm_names(results):
        with (at / "study" / "runs" / f"{slug(arm)}-seed0.npz").open("wb") as file:
            np.savez_compressed(file, **fake_study.images())  # type: ignore[arg-type]
    suite_record.write(at / "suite" / "bench.json", suite_record.content({"an op": {"a": 1.0}}, 1))
    (at / "out" / "runs").mkdir(parents=True)
    return at


@pytest.fixture
def at(whole: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def nobody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a command starts to work instead of refusing first."""

    def work(*_: object, **__: object) -> None:
        pytest.fail("a command started to work")

    for module, name in (
        (compare, "compare"),
        (trained, "draw"),
        (theory, "compute"),
        (report_run, "curve"),
        (training, "train"),
        (study, "Measure"),
        (bench_parts, "profile"),
        *((module, "load") for module in (data, trained, grid, bench_parts, bench_speedrun)),
    ):
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(np, "loadtxt", work)


def bench(program: Any, *words: str) -> Callable[[Path], int]:
    return lambda at: int(program.main([word.format(at=at) for word in words]))


def vaez_fast(*words: str) -> Callable[[Path], int]:
    return lambda at: main([word.format(at=at) for word in words])


TRAIN = vaez_fast("train", "--steps", "2", "--out", "{at}/out")
ARTICLE = vaez_fast("article", "--steps", "2", "--seeds", "2", "--out", "{at}/out")
OUTPUTS: list[tuple[str, Callable[[Path], int]]] = [
    ("comparison.json", vaez_fast("compare", "--ops", "normal", "--out", "{at}/comparison.json")),
    *((f"out/{name}", TRAIN) for name in ("config.json", "checkpoint.pt", "metrics.json")),
    *(
        (f"out/{name}", vaez_fast("sample", "{at}/run", "--out", "{at}/out"))
        for name in generate.FILES
    ),
    *(
        (f"out/{name}", vaez_fast("latents", "{at}/run", "--out", "{at}/out"))
        for name in latents.FILES
    ),
    *(
        (f"out/{name}", vaez_fast("theory", "--out", "{at}/out"))
        for name in ("theory.json", "spiral.png")
    ),
    *(
        (f"run/{name}", vaez_fast("report", "{at}/run"))
        for name in ("report.md", "report.html", "curve.png", "samples.png")
    ),
    *(
        (f"study/{name}", vaez_fast("report", "{at}/study"))
        for name in ("report.md", "report.html", "decay.png", "image-distance.png")
    ),
    *(
        (f"out/{name}", ARTICLE)
        for name in ("study.json", "results.json", "runs/randn-seed1.json", "report.html")
    ),
    ("out/report.md", bench(bench_report, "{at}/suite/bench.json", "--out", "{at}/out")),
    ("out/report.html", bench(bench_history, "{at}/suite", "--out", "{at}/out")),
    ("out/parts.png", bench(bench_parts, "--out", "{at}/out")),
    ("speed.json", bench(bench_speedrun, "--out", "{at}/speed.json")),
]


@pytest.mark.parametrize("what", ["device", "link", "link to nowhere"])
@pytest.mark.parametrize(("name", "command"), OUTPUTS, ids=[name for name, _ in OUTPUTS])
def test_a_command_says_before_it_works_that_it_cannot_write_there(
    name: str,
    command: Callable[[Path], int],
    what: str,
    at: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(at / name, what)
    before = tree(at)
    assert command(at) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    words = (f"{at / name}: it is {KINDS[what]}", "holds a run already", "an unfinished run")
    assert any(word in said.err for word in words), said.err
    after = tree(at)
    assert {name: after[name] for name in before} == before
    made = [mode for name, (mode, *_) in after.items() if name not in before]
    assert all(map(stat.S_ISDIR, made))


def test_a_run_whose_metrics_would_go_through_a_link_is_not_gone_on_with(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(at / "half" / "metrics.json", "link to nowhere")
    before = tree(at)
    assert main(["train", "--resume", str(at / "half")]) == 1
    assert "half/metrics.json: it is a symbolic link; expected" in capsys.readouterr().err
    assert tree(at) == before


@pytest.mark.parametrize("what", ["device", "link", "link to nowhere"])
def test_an_export_does_not_go_through_a_link(what: str, tmp_path: Path) -> None:
    plant(tmp_path / "mnist-5k.npz", what)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"cannot write .*: it is {KINDS[what]}; expected a regu"):
        data.export_mnist_5k(tmp_path / "mnist-5k.npz")
    assert tree(tmp_path) == before


# Full disks.


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


def test_an_export_that_meets_a_full_disk_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(256, size=(5000, 785), dtype=np.uint8)
    monkeypatch.setattr(np, "loadtxt", lambda *_, **__: noise)
    path = tmp_path / "mnist-5k.npz"
    path.write_bytes(b"the one before")
    with files_of_at_most(100_000), pytest.raises(OutputError, match="File too large"):
        data.export_mnist_5k(path)
    assert tree(tmp_path) == {path.name: (path.stat().st_mode, "", b"the one before")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one and a half checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = int(1.5 * len(checkpoint_bytes(tmp_path / "elsewhere")))
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)],
            check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can make a file system, and not in every container")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def checkpoint_bytes(folder: Path) -> bytes:
    return (make_run(folder) / "checkpoint.pt").read_bytes()


def test_a_disk_that_fills_in_a_checkpoint_keeps_the_one_before_and_nothing_of_the_new(
    small_disk: Path, tmp_path: Path
) -> None:
    kept = checkpoints.read(tmp_path / "elsewhere" / "checkpoint.pt")
    path = small_disk / "checkpoint.pt"
    checkpoints.write(path, kept)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device"):
        checkpoints.write(path, replace(kept, step=kept.step + 1))
    assert path.read_bytes() == before
    assert os.listdir(small_disk) == ["checkpoint.pt"]


def test_samples_that_meet_a_full_disk_leave_no_part_of_a_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, z=np.zeros(4))
    with files_of_at_most(100), pytest.raises(OutputError, match="File too large"):
        write_atomically(tmp_path / "samples.npz", buffer.getvalue())
    assert tree(tmp_path) == {}
