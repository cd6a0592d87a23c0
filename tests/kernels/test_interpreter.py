"""Runs tests/interpreted: the Triton kernels on the CPU, in Triton's interpreter.

Triton reads TRITON_INTERPRET when a kernel is decorated, so this needs a separate process. There
are two processes, because test files share the cores; test_interpreter_products.py runs the other.

Only a few combinations of each test's parameters run (tests/project/few.py): tests/executed runs
the compiled code of the others. `TRITON_INTERPRET=1 VAEZ_BACKEND=triton pytest tests/interpreted`
runs all combinations.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.process import ROOT, environment

pytest.importorskip("triton", reason="triton is not installed: there are no kernels to interpret")

PRODUCTS = sorted(
    f"tests/interpreted/test_{name}_kernel.py" for name in ("decoder", "linear", "mixture")
)


def run_interpreted(*arguments: str) -> None:
    """Run pytest with these arguments in the interpreter; all tests must run and pass."""
    variables = environment() | {"TRITON_INTERPRET": "1", "VAEZ_BACKEND": "triton"}
    plugins = ["-p", "no:cacheprovider", "-p", "tests.project.few"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1800
    )
    output = run.stdout + run.stderr
    assert run.returncode == 0, f"{' '.join(command)} ended with {run.returncode}:\n{output}"
    # pytest also exits with 0 if all tests are skipped.
    assert " passed" in output, output
    assert " skipped" not in output, output


def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
    run_interpreted("tests/interpreted", *(f"--ignore={path}" for path in PRODUCTS))
