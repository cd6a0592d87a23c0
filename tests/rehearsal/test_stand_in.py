"""The tests of inside/ pass in a process that runs on the stand-in for CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.rehearsal.build import build, environment

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).with_name("inside")
CLAIMS = sorted(path.name for path in INSIDE.glob("test_*.py"))


@pytest.fixture(scope="module")
def outcomes(
    stand_in_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The failed tests of each file of inside/, with their messages.

    One process runs all of them, because importing torch takes seconds.
    """
    report = tmp_path_factory.mktemp("inside") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INSIDE)]
    done = subprocess.run(
        [*command, f"--junitxml={report}"],
        cwd=ROOT,
        env=os.environ | environment(stand_in_folder),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["classname"].rsplit(".", 1)[-1] + ".py"
        of_file = found.setdefault(name, [])
        of_file += [f"{case.attrib['name']}: {problem.text}" for problem in case if problem.text]
    return found


@pytest.mark.parametrize("file", CLAIMS)
def test_the_claims_hold(outcomes: dict[str, list[str]], file: str) -> None:
    assert file in outcomes, "no test of this file ran"
    assert not outcomes[file], "\n".join(outcomes[file])


def test_the_other_device_is_an_a100(stand_in_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.get_device_properties(0))"],
        env=os.environ | environment(stand_in_folder, device="a100"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "NVIDIA A100 (rehearsed)" in done.stdout, done.stderr
    assert "multi_processor_count=108" in done.stdout


def test_any_command_runs_on_it_and_ends_with_its_own_status(stand_in_folder: Path) -> None:
    code = "import sys, torch, vaez_kernels; print(torch.cuda.get_device_name()); sys.exit(3)"
    command = ["tests.rehearsal.command", sys.executable, "-c", code]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert (done.stdout, done.returncode) == ("NVIDIA H100 (rehearsed)\n", 3), done.stderr


def test_code_that_does_not_compile_is_told(
    stand_in_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "c"
    sources.mkdir()
    (sources / "mistaken.c").write_text("int here is a mistake;\n")
    monkeypatch.setattr("tests.rehearsal.build.SOURCES", sources)
    with pytest.raises(RuntimeError, match=r"mistaken\.c.*error"):
        build(tmp_path / "built")
