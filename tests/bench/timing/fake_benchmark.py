"""A stand-in for the `benchmark` fixture of pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.timing.clock import CLOCK


class FakeBenchmark:
    """A stand-in for pytest-benchmark: records the seconds of each round by the suite's timer."""

    def __init__(self) -> None:
        self.group = ""
        self.extra_info: dict[str, Any] = {}
        self.seconds: list[float] = []

    def pedantic(self, work: Callable[[], object], rounds: int) -> None:
        for _ in range(rounds):
            before = CLOCK()
            work()
            self.seconds.append(CLOCK() - before)
