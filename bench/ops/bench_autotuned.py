"""inductor's max-autotune where there are matrix products: the fused last layer, both directions.

A file of its own, because it tries its templates for a minute a size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bench.ops.bench_linear import DTYPES, LARGE, SMALL, Shape, contest
from bench.timing.clock import CLOCK
from bench.timing.rivals import AUTOTUNED, NO_GPU
from bench.timing.rows import Bench, Group

PROVIDERS = ("eager", "compiled", AUTOTUNED, "fallback", "triton")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize(
        "shape", (LARGE["cuda"], SMALL), ids=lambda shape: "x".join(map(str, shape))
    )
    metafunc.parametrize("dtype", list(DTYPES))
    metafunc.parametrize("provider", PROVIDERS)


@pytest.mark.benchmark(timer=CLOCK)
def test_autotuned(benchmark: Any, bench: Bench, shape: Shape, dtype: str, provider: str) -> None:
    if bench.device.type == "cpu":
        pytest.skip(NO_GPU)
    make = partial(_group, shape, dtype, bench)
    bench.record(benchmark, bench.measured((shape, dtype), make, budget=1.0), provider)


def _group(shape: Shape, dtype: str, bench: Bench) -> Group:
    usual = contest(shape, dtype, "forward+backward", bench.device)
    title = usual.title.replace("forward", "with max-autotune, forward", 1)
    return replace(usual, title=title, launch_bound=False, autotuned=True).group()
