"""The one call for a CUDA machine, as far as it can be seen without one."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import gpu
from vaez_fast.compare import Row, record
from vaez_fast.comparison import OPS
from vaez_fast.data import DataError


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "bench.gpu: error: no CUDA device is here\n"
    assert not (tmp_path / "out").exists()


def test_a_command_is_run_uninstalled_and_its_output_kept() -> None:
    code = "import bench, vaez_kernels, sys; print('both'); sys.exit(3)"
    outcome = gpu.run("name", ["-c", code], time.monotonic() + 60)
    assert (outcome.status, outcome.output) == (3, "both\n")
    assert outcome.verdict == "FAILED (exit status 3)"


def test_what_outlives_the_limit_is_interrupted_and_keeps_what_it_said() -> None:
    code = (
        "import time\nprint('begun', flush=True)\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('wrote what it had')"
    )
    outcome = gpu.run("name", ["-c", code], time.monotonic() + 3)
    assert outcome.status is None
    assert outcome.output == "begun\nwrote what it had\n"
    assert outcome.verdict == "cut off after 3 s"


ROW = Row("rsample", "z", "cuda", "float32", "1×7×20", 1e-7, 1e-7, 1.0, 1e-7, 1e-6, 1e-7, True)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1), (None, 1)])
def test_the_report_shows_every_part_and_a_failure_fails_the_call(
    status: int | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(name: str, command: list[str], deadline: float) -> gpu.Outcome:
        commands.append(command)
        if "--out" in command:
            file = Path(command[command.index("--out") + 1])
            row = replace(ROW, op=command[command.index("--ops") + 1])
            file.write_text(json.dumps(record([row], {})))
        return gpu.Outcome(name, 0 if "compare" in name else status, f"said by {name}", 1.0)

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "environment", lambda _: _machine())
    assert gpu._run_all(tmp_path, "data", 10.0, lambda _: None) == code
    page = (tmp_path / "README.md").read_text()
    assert "# The ops on a GPU" in page
    assert "| tests/cuda/test_numbers.py | " in page
    assert "| compare rsample_kl/analytic | passed | 1 |" in page
    assert ("cut off" in page) == (status is None)
    assert f"{len(OPS)} of {len(OPS)} comparisons passed" in page
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert len(rows) == len(OPS)
    assert "said by tests/cuda/test_launches.py" in (tmp_path / "tests.txt").read_text()
    assert not list(tmp_path.glob(".comparison*"))
    (benchmarks,) = (c for c in commands if "--benchmark-only" in c)
    assert all((gpu.ROOT / name).exists() for name in benchmarks if name.endswith(".py"))


class Runs:
    """Stands for `run`: notes the deadlines; of the ops that are `lost` no file is written."""

    def __init__(self, lost: str = "", row: Row = ROW) -> None:
        self.lost, self.row = lost, row
        self.deadlines: dict[str, float] = {}

    def __call__(self, name: str, command: list[str], deadline: float) -> gpu.Outcome:
        self.deadlines[name] = deadline
        if "--out" in command and name != f"compare {self.lost}":
            op = command[command.index("--ops") + 1]
            content = json.dumps(record([replace(self.row, op=op)], {}))
            Path(command[command.index("--out") + 1]).write_text(content)
        return gpu.Outcome(name, 0, "", 1.0)


@pytest.fixture
def at_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call begins at 1,000 s of the monotonic clock, where no digits are."""

    def load(*_: Any) -> None:
        raise DataError("mnist-5k is not here")

    clock = SimpleNamespace(monotonic=lambda: 1000.0, strftime=time.strftime)
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "load", load)
    monkeypatch.setattr(gpu, "environment", lambda _: _machine())


@pytest.mark.usefixtures("at_1000")
def test_correctness_has_half_of_the_time_and_the_rest_is_for_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    monkeypatch.setattr(gpu, "run", runs)
    assert gpu._run_all(tmp_path, "data", 480.0, lambda _: None) == 0
    # What is stopped has 20 s to write what it has.
    assert runs.deadlines.pop("benchmarks") == 1000 + 480 - 20
    assert set(runs.deadlines.values()) == {1000 + 240}


@pytest.mark.usefixtures("at_1000")
def test_an_op_that_was_not_compared_is_missing_and_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lost, missing in (("rsample", ["rsample"]), ("", [])):
        monkeypatch.setattr(gpu, "run", Runs(lost))
        assert gpu._run_all(tmp_path, "data", 480.0, lambda _: None) == len(missing)
        comparison = json.loads((tmp_path / "comparison.json").read_text())
        assert comparison["missing"] == missing
        assert comparison["passed"] == (not missing)


@pytest.mark.usefixtures("at_1000")
def test_a_row_without_numbers_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = replace(ROW, absolute=math.nan, relative=math.nan, ulp=math.nan, passed=False)
    monkeypatch.setattr(gpu, "run", Runs(row=lacking))
    assert gpu._run_all(tmp_path, "data", 480.0, lambda _: None) == 1
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert not comparison["passed"]
    assert comparison["rows"][0]["absolute"] is None


@pytest.mark.parametrize("digits", [True, False])
def test_training_steps_are_timed_where_there_are_digits(
    digits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        if not digits:
            raise DataError("mnist-5k is not here")

    commands: list[list[str]] = []

    def run(name: str, command: list[str], deadline: float) -> gpu.Outcome:
        commands.append(command)
        return gpu.Outcome(name, 0, "", 1.0)

    monkeypatch.setattr(gpu, "load", load)
    monkeypatch.setattr(gpu, "run", run)
    gpu.measure(tmp_path, "root", 9.0)
    assert ("bench/bench_step.py" in commands[0]) == digits
    assert any(flag.startswith("--data-root=") for flag in commands[0]) == digits
    ops = {f"bench/bench_{op}.py" for op in ("latent", "likelihood", "linear", "mixture", "noise")}
    assert ops | {"bench/bench_importance.py"} <= set(commands[0])


def _machine() -> dict[str, Any]:
    return {
        "device": "a GPU",
        "torch": "2",
        "triton": "3",
        "python": "3",
        "revision": "abc",
        "dirty": False,
    }
