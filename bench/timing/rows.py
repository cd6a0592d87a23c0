"""From rivals to rows: check them, time them in turn, record them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pytest
import torch

from bench.timing.busy import Watch
from bench.timing.clock import (
    FEWEST_ROUNDS,
    Work,
    how_timed,
    interleave,
    peak_memory,
    record_rounds,
)
from vaez_kernels.error_bounds import Check

QUICK_ROUNDS = 3  # at least; a full run has at least 11


@dataclass
class Rival:
    """A provider of a group: the work to time, and the result of its check."""

    work: Work | None  # None for a row that was timed elsewhere
    check: Check
    notes: dict[str, Any] = field(default_factory=dict)
    moved_bytes: int | None = None  # bytes that it loads and stores; None if unknown
    own_memory: bool = True  # whether calls allocate memory; a graph's is allocated at its capture
    calls: int = 1  # calls in one `work`; recorded times are per call


@dataclass
class Group:
    """Rivals that are measured together, and what their rows share."""

    title: str
    rivals: Mapping[str, Rival]
    unavailable: Mapping[str, str]  # provider → why it has no row on this machine
    floor_bytes: int | None  # None if no floor is known
    broken: Mapping[str, str] = field(default_factory=dict)  # provider → its error
    timing: str | None = None  # how it was timed, if not by `interleave`
    products: Mapping[str, str] = field(default_factory=dict)  # provider → the row of its products
    seconds: dict[str, list[float]] = field(default_factory=dict)  # that a caller waits
    # Seconds of the GPU alone, if they are known: see bench.timing.cuda_times.
    device_seconds: dict[str, list[float]] = field(default_factory=dict)
    load: dict[str, Any] | None = None  # of the machine meanwhile: see bench.timing.busy

    def own_time(self, provider: str) -> float:
        """Median seconds of the device alone if they are known, else those that a caller waits."""
        return median(self.device_seconds.get(provider, self.seconds[provider]))


class Bench:
    """Shared by the rows of a session: device, quick or not, copy bandwidth, the latest group."""

    def __init__(self, device: torch.device, quick: bool, copy_bytes_per_second: float) -> None:
        self.device, self.quick = device, quick
        self.copy_bytes_per_second = copy_bytes_per_second
        self._measured: tuple[object, Group] | None = None

    def measured(self, key: object, make: Callable[[], Group], budget: float) -> Group:
        """The group of `key`: made, checked and timed for its first row, then kept for its others.

        Rivals that passed their check are timed in turn for about `budget` seconds, a third of that
        in a quick run. Only the latest group is kept, so that the tensors of the others are freed.
        """
        if self._measured is None or self._measured[0] != key:
            self._measured = None
            group = make()
            works = {name: r.work for name, r in group.rivals.items() if r.work and r.check.passed}
            if works:
                seconds = budget / 3 if self.quick else budget
                fewest = QUICK_ROUNDS if self.quick else FEWEST_ROUNDS
                watch = Watch()
                times = interleave(works, self.device, seconds, fewest)
                group.load = watch.record(next(iter(times.values())).disturbed)
                for name, taken in times.items():
                    calls = group.rivals[name].calls
                    group.seconds[name] = [t / calls for t in taken.wall]
                    if taken.device is not None:
                        group.device_seconds[name] = [t / calls for t in taken.device]
            self._measured = (key, group)
        return self._measured[1]

    def record(self, benchmark: Any, group: Group, provider: str) -> None:
        """Record a row; skip an unavailable provider, and fail one that failed its check."""
        if provider in group.unavailable:
            pytest.skip(f"{provider}: {group.unavailable[provider]}")
        if provider in group.broken:
            pytest.fail(f"{group.title}, {provider}: {group.broken[provider]}")
        rival = group.rivals[provider]
        benchmark.group = group.title
        assert rival.check.passed, (
            f"{group.title}, {provider}: off by {rival.check.error:.3g} times the tolerance "
            f"against the {rival.check.against}; no time is reported"
        )
        seconds = group.seconds[provider]
        info = benchmark.extra_info
        info.update(
            provider=provider,
            timing=group.timing or how_timed(self.device),
            device=self.device.type,
            check="passed",
            check_error_over_tolerance=rival.check.error,
            check_against=rival.check.against,
            peak_memory_bytes=self._peak(rival),
            moved_bytes=rival.moved_bytes,
            load=group.load,
            **rival.notes,
        )
        products = group.products.get(provider)
        if products in group.seconds:  # there are products, and they passed their check
            info["step_over_products"] = group.own_time(provider) / group.own_time(products)
        if self.device.type == "cuda":
            info["device_seconds"] = group.device_seconds.get(provider)
        if group.floor_bytes is None:
            info.update(floor_bytes=None, gb_per_second=None, percent_of_copy=None)
        else:
            rate = group.floor_bytes / group.own_time(provider)
            info.update(
                floor_bytes=group.floor_bytes,
                gb_per_second=rate / 1e9,
                copy_gb_per_second=self.copy_bytes_per_second / 1e9,
                percent_of_copy=100 * rate / self.copy_bytes_per_second,
            )
        record_rounds(benchmark, seconds)

    def _peak(self, rival: Rival) -> int | None:
        return peak_memory(rival.work, self.device) if rival.work and rival.own_memory else None
