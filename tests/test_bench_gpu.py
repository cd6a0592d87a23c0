"""The one call for a CUDA machine, as far as it can be seen without one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from vaez_fast.compare import Row, record
from vaez_fast.comparison import OPS


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
            file.write_text(json.dumps(record([ROW], {})))
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


def _machine() -> dict[str, Any]:
    return {
        "device": "a GPU",
        "torch": "2",
        "triton": "3",
        "python": "3",
        "revision": "abc",
        "dirty": False,
    }
