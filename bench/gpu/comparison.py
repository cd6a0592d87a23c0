"""`vaez-fast compare` on CUDA, one test for each case, so that each case records its own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, zip_longest

import pytest

from vaez_fast.compare import compare_on_cuda
from vaez_kernels.cases import OPS, cases
from vaez_kernels.testing import Case

OF_OPS = [cases([op], large=True) for op in OPS]
# One case of each op in turn, so that a run that is cut off has compared every op.
CASES = [case for case in chain.from_iterable(zip_longest(*OF_OPS)) if case is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_compared(case: Case, record_property: Callable[[str, object], None]) -> None:
    rows = compare_on_cuda(case)
    record_property("comparison", [asdict(row) for row in rows])
    assert all(row.passed for row in rows)
