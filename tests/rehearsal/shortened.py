"""Adapts tests/cuda to a rehearsal: tests that need a GPU's speed are left out or shortened.

This is a pytest plugin, used together with `results`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest
import triton
from torch._inductor.runtime.benchmarking import benchmarker

from tests.project.few import leave_out
from tests.rehearsal import results, stand_in
from tests.rehearsal.left_out import LEFT_OUT, NOT_EXECUTED
from vaez_fast.training import phases as regime
from vaez_kernels import launch

MEMORY = 8 << 30
STEPS_PER_REPLAY = 2
# Limit of the product of a case's sizes: executing a larger kernel takes a minute each.
LARGEST = 10**6
# Number of parameter combinations to run of those that tests/project/few.py keeps; tests/executed
# has them all. Training steps take long to compile, so training tests run only the first precision,
# bfloat16, which has copies of the weights.
MOST, MOST_TRAINED = 3, 1


def _once(work: Callable[[], Any], *args: object, **options: object) -> float:
    work()
    return 1.0


def pytest_configure() -> None:
    stand_in.set_memory(MEMORY)
    regime.STEPS_PER_REPLAY = STEPS_PER_REPLAY
    launch.CANDIDATES = launch.CANDIDATES[:3]  # each one is compiled
    # There is nothing to time, but inductor would run each configuration of a kernel many times.
    triton.testing.do_bench = _once
    benchmarker.benchmark_gpu = _once  # type: ignore[method-assign]


def _name(item: pytest.Item) -> str:
    return f"{item.path.stem}::{item.name.split('[')[0]}"


def _work(item: pytest.Item) -> int:
    callspec = getattr(item, "callspec", None)
    return math.prod(callspec.params.get("shape", ())) if callspec else 1


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    large = {item for item in items if _name(item) in LEFT_OUT or _work(item) > LARGEST}
    leave_out(config, items, large)
    yield  # tests/project/few.py
    seen: Counter[str] = Counter()
    more = set()
    for item in items:
        seen[_name(item)] += 1
        most = MOST_TRAINED if item.path.stem == "test_training" else MOST
        if item.path.parent.name == "cuda" and seen[_name(item)] > most:
            more.add(item)
    leave_out(config, items, more)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if _name(item) not in NOT_EXECUTED:
        return (yield)
    with results.nothing_executed():
        return (yield)
