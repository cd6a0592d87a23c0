"""The time to the first training step of a new process, compilation included. On a CPU only."""

from __future__ import annotations

from typing import Any

import pytest

from bench.timing.clock import CLOCK
from bench.timing.rows import Bench
from bench.training.first_steps import first_steps
from bench.training.start import FIRST_STEPS

ROUNDS = 3


@pytest.mark.parametrize("provider", FIRST_STEPS)
@pytest.mark.parametrize("caches", ["cold", "warm"])
@pytest.mark.benchmark(timer=CLOCK)
def test_first_step(benchmark: Any, bench: Bench, caches: str, provider: str) -> None:
    if bench.device.type != "cpu":
        pytest.skip("timed on a CPU only")
    if bench.quick:
        pytest.skip("--quick starts no processes that compile")
    bench.record(benchmark, first_steps(ROUNDS)[caches], provider)
