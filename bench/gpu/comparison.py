"""`vaez-fast compare` on CUDA, a test for each case, so that each leaves its rows by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, zip_longest

import pytest

from vaez_fast.compare import compare_on_cuda
from vaez_fast.comparison import OPS, cases
from vaez_fast.comparison_case import Case

OF_OPS = [cases([op], large=True) for op in OPS]
# A case of each op, then the next of each: a run that is cut off has seen every op.
CASES = [case for case in chain.from_iterable(zip_longest(*OF_OPS)) if case is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_compared(case: Case, record_property: Callable[[str, object], None]) -> None:
    rows = compare_on_cuda(case)
    record_property("comparison", [asdict(row) for row in rows])
    assert all(row.passed for row in rows)
