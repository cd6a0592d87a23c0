"""`make bench` with --quick, as CI runs it, has every row of the full suite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.process import ROOT, environment
from bench.records.records import read
from bench.records.summary import summary
from bench.timing.clock import available_device
from vaez_fast.system.environment import environment as machine_of

FLAGS = ("--benchmark-only", "-p", "no:cacheprovider")


def alone() -> dict[str, str]:
    """A child's variables without xdist's, which would disable its benchmarks."""
    return {n: v for n, v in environment().items() if not n.startswith("PYTEST_XDIST")}


def rows(*flags: str) -> list[str]:
    """The test ids that pytest collects in bench/, in their order."""
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", *FLAGS, *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=alone(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_a_quick_run_drops_no_row() -> None:
    full = rows()
    assert rows("--quick") == full
    files = {row.partition("::")[0] for row in full}
    assert files == {str(path.relative_to(ROOT)) for path in (ROOT / "bench").rglob("bench_*.py")}
    for part in ("bfloat16", "float32", "65536x128", "forward+backward", "sticking-the-landing"):
        assert any(part in row for row in full), part


def test_a_quick_run_records_its_rows_and_the_machine_and_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", "bench/ops/bench_noise.py", "-q", *FLAGS]
    command += ["--quick", f"--benchmark-json={file}", "-k", "16384"]
    done = subprocess.run(
        command, cwd=ROOT, env=alone(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(file.read_text())
    assert (content["schema"], content["quick"]) == (2, True)
    assert content["machine_info"]["threads"] >= 1
    record = read(file)
    assert [row.provider for row in record.rows] == ["torch.randn", "normal"]
    for row in record.rows:
        assert row.info["load"]["seconds"] >= sum(row.seconds)
        assert row.info["load"]["processors"] >= 1
        assert row.info["percent_of_copy"] > 0
    told = summary([row.as_summary() for row in record.rows], machine_of(available_device()))
    assert set(told) <= set(done.stdout.splitlines())
