"""Every op's cases in the interpreter, held to float64 and to the fallback as `compare` holds them.

tests/kernels/test_interpreter.py runs it in a process of its own.
"""

from __future__ import annotations

import pytest

from tests.cli.few_cases import few_cases
from vaez_fast import compare
from vaez_kernels import interpreting
from vaez_kernels.cases import OPS

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_pass_the_comparison(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_cases(monkeypatch, ((8, 7, 3),))
    rows = compare.compare(["fallback", "interpreter"], [op])
    assert {row.backend for row in rows} == {"fallback", "interpreter"}
    assert [row for row in rows if not row.passed] == []
