"""Runs tests/interpreted: the Triton kernels on the CPU, in Triton's interpreter.

TRITON_INTERPRET is read where a kernel is decorated, hence the process of its own; there are two,
of which test_interpreter_products.py runs the other, because test files share the cores.

Of each test few combinations of its parameters run (tests/project/few.py): tests/executed has the
others' compiled code. `TRITON_INTERPRET=1 VAEZ_BACKEND=triton pytest tests/interpreted` runs them
all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: there are no kernels to interpret")

ROOT = Path(__file__).parents[2]
PRODUCTS = sorted(
    f"tests/interpreted/test_{name}_kernel.py" for name in ("decoder", "linear", "mixture")
)


def run_interpreted(*arguments: str) -> None:
    """Run pytest with these arguments in the interpreter; all must pass, and none be skipped."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "VAEZ_BACKEND": "triton"}
    plugins = ["-p", "no:cacheprovider", "-p", "tests.project.few"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    output = run.stdout + run.stderr
    assert run.returncode == 0, f"{' '.join(command)} ended with {run.returncode}:\n{output}"
    # All skipped would end with 0 too.
    assert " passed" in output, output
    assert " skipped" not in output, output


def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
    run_interpreted("tests/interpreted", *(f"--ignore={path}" for path in PRODUCTS))
