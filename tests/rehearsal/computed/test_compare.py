"""`vaez-fast compare` passes on executed kernels, at one awkward size of every op."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vaez_fast import compare
from vaez_kernels.cases import OPS, cases
from vaez_kernels.testing import Case


def awkward(ops: Sequence[str], large: bool) -> list[Case]:
    """The second size of each op in the grid. The first is (1, 1, 1)."""
    grid = [case for case in cases(ops, large=False) if case.dtype == torch.float32]
    return [[case for case in grid if case.op == op][1] for op in ops]


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_err_no_more_than_pytorch(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "cases", awkward)
    rows = compare.compare(["cuda"], [op])
    assert rows
    assert all(row.backend == "cuda" for row in rows)
    assert [row for row in rows if not row.passed] == []
