"""`make bench` as CI runs it, with --quick, has every row of the full suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows(*flags: str) -> list[str]:
    """The test ids that pytest collects in bench/, in their order."""
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", *flags]
    # A test process of several would disable benchmarks in its child, too.
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    command += ["--benchmark-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_a_quick_run_drops_no_row() -> None:
    full = rows()
    assert rows("--quick") == full
    files = {row.partition("::")[0] for row in full}
    assert files == {f"bench/{path.name}" for path in (ROOT / "bench").glob("bench_*.py")}
    for part in ("bfloat16", "float32", "65536x128", "forward+backward", "sticking-the-landing"):
        assert any(part in row for row in full), part
