"""Every op of vaez_kernels.cases.TIMED against textbook code, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import NO_BFLOAT16, Contest, providers
from bench.timing.rows import Bench, Group
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.cases import TIMED
from vaez_kernels.testing import Timed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, op = available_device(), TIMED[metafunc.function.__name__.removeprefix("test_")]
    # Rows keep the names and parameters of older records: dtypes are strings, for JSON, and an op
    # that is timed in only one dtype has no dtype parameter.
    if len(op.dtypes) > 1:
        metafunc.parametrize("dtype", [name_of(dtype) for dtype in op.dtypes])
    sizes = (*op.launch_bound, *op.large[device.type])
    metafunc.parametrize("shape", sizes, ids=lambda shape: "x".join(map(str, shape)))
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", providers(device))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> str:
    """The dtype of an op that is timed in only one dtype."""
    return name_of(TIMED[request.function.__name__.removeprefix("test_")].dtypes[0])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(op: Timed) -> Callable[..., None]:
    @pytest.mark.benchmark(timer=CLOCK)
    def test(
        benchmark: Any, bench: Bench, shape: Any, dtype: str, direction: str, provider: str
    ) -> None:
        if op.products and dtype == "bfloat16" and not has_fast_bfloat16(bench.device):
            pytest.skip(NO_BFLOAT16)

        def make() -> Group:
            return Contest.of(op, shape, getattr(torch, dtype), direction, bench.device).group()

        key = (op.title, shape, dtype, direction)
        bench.record(benchmark, bench.measured(key, make, budget=1.0), provider)

    return test


for _name, _op in TIMED.items():
    _test = rows_of(_op)
    _test.__name__ = _test.__qualname__ = f"test_{_name}"
    globals()[_test.__name__] = _test
