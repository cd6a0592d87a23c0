"""The few combinations that tests.project.few keeps have every value of each parameter."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

from bench.process import ROOT

TESTS = """
import pytest

@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", "xyz")
@pytest.mark.parametrize(("c", "d"), [(1, 2), (1, 3)])
def test_some(a, b, c, d):
    pass

def test_alone():
    pass
"""


def test_each_value_of_each_parameter_is_met_in_few_combinations(tmp_path: Path) -> None:
    file = tmp_path / "test_of_four_parameters.py"
    file.write_text(TESTS)
    command = [
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "tests.project.few",
        f"--rootdir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, *command, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert "test_alone" in names
    values = [name[len("test_some[") : -1].split("-") for name in names if name != "test_alone"]
    for place, wanted in enumerate((("1", "1"), ("2", "3"), "xyz", "0123")):
        assert {of_test[place] for of_test in values} == set(wanted)
    # As many combinations as the longest parameter has values, and fewer than all.
    assert len(values) == 4 < len(list(product("12", "xyz", "0123")))
