"""tests/cuda passes without a GPU, on the stand-in for CUDA with computed results.

The PTX of kernels is executed (tests/ptx); the CPU computes ATen's ops and cuBLAS's products. Each
file has a process of its own, two at a time: on one core all of them take eight minutes. The tests
of computed/ are about these results.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from tests.rehearsal.build import environment
from tests.rehearsal.left_out import LEFT_OUT, SKIP_THEMSELVES

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/cuda", "tests/rehearsal/computed")


def named(folder: str) -> list[str]:
    """file.py::test of every test function in a folder."""
    return [
        f"{file.stem}::{node.name}"
        for file in sorted((ROOT / folder).glob("test_*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


TESTS = [test for folder in FOLDERS for test in named(folder)]
NOT_RUN = {*LEFT_OUT, *SKIP_THEMSELVES}


class Outcome(NamedTuple):
    """The outcome of a test over all its parameters."""

    passed: list[str]
    skipped: list[str]  # the reasons
    failed: list[str]  # the messages


@pytest.fixture(scope="module")
def outcomes(stand_in_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    # The PTX executor supports the matrix products of sm_80.
    variables = os.environ | environment(stand_in_folder, device="a100")
    folder = tmp_path_factory.mktemp("cuda_tests")

    def run(tests: str) -> Path:
        report = folder / f"{Path(tests).stem}.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        names = ("tests.project.few", "tests.rehearsal.results", "tests.rehearsal.shortened")
        plugins = [word for name in names for word in ("-p", name)]
        done = subprocess.run(
            [*command, *plugins, f"--junitxml={report}", tests],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert report.exists(), done.stdout + done.stderr
        return report

    found: dict[str, Outcome] = defaultdict(lambda: Outcome([], [], []))
    of_cuda, of_results = FOLDERS
    files = sorted(str(file.relative_to(ROOT)) for file in (ROOT / of_cuda).glob("test_*.py"))
    with ThreadPoolExecutor(2) as pool:
        for report in pool.map(run, [*files, of_results]):
            collect(report, found)
    return found


def collect(report: Path, found: dict[str, Outcome]) -> None:
    """Add the outcomes in a file of --junitxml."""
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"]
        of = found[f"{case.attrib['classname'].rsplit('.', 1)[-1]}::{name.split('[')[0]}"]
        problems = [child for child in case if child.tag in ("failure", "error")]
        skips = [child for child in case if child.tag == "skipped"]
        of.failed.extend(f"{name}: {problem.text}" for problem in problems)
        of.skipped.extend(skip.attrib["message"] for skip in skips)
        if not (problems or skips):
            of.passed.append(name)


@pytest.mark.parametrize("test", [test for test in TESTS if test not in NOT_RUN])
def test_it_passes(outcomes: dict[str, Outcome], test: str) -> None:
    assert test in outcomes, "it did not run"
    assert not outcomes[test].failed, "\n".join(outcomes[test].failed)
    assert not outcomes[test].skipped
    assert outcomes[test].passed


@pytest.mark.parametrize("test", SKIP_THEMSELVES)
def test_it_skips_itself(outcomes: dict[str, Outcome], test: str) -> None:
    """The test itself finds out that the imitated device lacks what it needs."""
    assert outcomes[test] == Outcome([], [SKIP_THEMSELVES[test]], [])


def test_what_is_left_out_exists() -> None:
    assert set(TESTS) >= NOT_RUN
