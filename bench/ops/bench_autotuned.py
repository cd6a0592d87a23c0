"""inductor's max-autotune where there are matrix products: the fused last layer, both directions.

A file of its own, because it tries its templates for a minute a size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bench.timing.clock import CLOCK
from bench.timing.rivals import AUTOTUNED, NO_GPU, Contest
from bench.timing.rows import Bench, Group
from vaez_kernels.linear_bernoulli.case import TIMED
from vaez_kernels.testing import Shape

PROVIDERS = ("eager", "compiled", AUTOTUNED, "fallback", "triton")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shapes = (*TIMED.large["cuda"], *TIMED.launch_bound)
    metafunc.parametrize("shape", shapes, ids=lambda shape: "x".join(map(str, shape)))
    metafunc.parametrize("dtype", ["float32", "bfloat16"])
    metafunc.parametrize("provider", PROVIDERS)


@pytest.mark.benchmark(timer=CLOCK)
def test_autotuned(benchmark: Any, bench: Bench, shape: Shape, dtype: str, provider: str) -> None:
    if bench.device.type == "cpu":
        pytest.skip(NO_GPU)
    make = partial(_group, shape, dtype, bench)
    bench.record(benchmark, bench.measured((shape, dtype), make, budget=1.0), provider)


def _group(shape: Shape, dtype: str, bench: Bench) -> Group:
    usual = Contest.of(TIMED, shape, getattr(torch, dtype), "forward+backward", bench.device)
    title = usual.title.replace("forward", "with max-autotune, forward", 1)
    return replace(usual, title=title, launch_bound=False, autotuned=True).group()
