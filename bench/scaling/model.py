"""The time of a step on several ranks: t(N) = s(N)·(a·B/N + b) + c(N), here and beyond.

B rows a batch, N ranks: a seconds a row of compute, b a step's fixed part (every rank updates all
weights), c(N) the all-reduce, s(N) by how much N busy processes slow each other down where they
share cores and caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The constants that were measured; those that depend on N by N."""

    row: float  # a
    fixed: float  # b
    slowdown: dict[int, float]  # s
    all_reduce: dict[int, float]  # c

    def seconds(self, batch: int, ranks: int) -> float:
        """Of a step; KeyError: a number of ranks that was not measured."""
        alone = self.row * batch / ranks + self.fixed
        return self.slowdown[ranks] * alone + self.all_reduce[ranks]


def median(layout: Record, name: str | int) -> float | None:
    """Seconds of what was timed, the middle of its quartiles; None if it failed its check."""
    quartiles = layout["seconds"].get(str(name))
    return None if quartiles is None else float(quartiles[1])


def layout_of(results: Record, processes: int, threads: int = 1) -> Record:
    """The record of so many processes."""
    (found,) = (
        layout
        for layout in results["layouts"]
        if (layout["processes"], layout["threads"]) == (processes, threads)
    )
    return dict(found)


def fitted(results: Record) -> Model | None:
    """a and b from one process's steps, with relative errors least in squares; s and c as measured.

    None where fewer than two batches of one process passed their checks.
    """
    one = layout_of(results, 1)
    points = [(b, t) for b in one["seconds"] if b.isdigit() and (t := median(one, b)) is not None]
    if len(points) < 2:
        return None
    batches, seconds = np.array(points, dtype=float).T
    row, fixed = np.polyfit(batches, seconds, 1, w=1 / seconds)
    slowdown, all_reduce = {1: 1.0}, {1: 0.0}
    first = median(one, results["plan"]["strong"][0])
    for layout in results["layouts"]:
        apart, bare = median(layout, "apart"), median(layout, "all_reduce")
        if first is not None and apart is not None and bare is not None:
            slowdown[layout["processes"]] = apart / first
            all_reduce[layout["processes"]] = bare
    return Model(float(row), float(fixed), slowdown, all_reduce)


@dataclass(frozen=True)
class Cluster:
    """Ranks that share nothing but a network, each with a processor of its own."""

    name: str
    ranks: int
    row: float
    fixed: float
    bandwidth: float  # bytes a second, out of each rank
    latency: float  # seconds a message

    def all_reduce(self, size: int) -> float:
        """Seconds for `size` bytes around a ring: 2(N − 1) messages of size/N bytes each
        (Patarasuk & Yuan 2009).
        """
        messages = 2 * (self.ranks - 1)
        return messages * (size / self.ranks / self.bandwidth + self.latency)

    def speedup(self, batch: int, size: int) -> float:
        """One rank's step over that of all of them."""
        shared = self.row * batch / self.ranks + self.fixed + self.all_reduce(size)
        return (self.row * batch + self.fixed) / shared

    def pays_from(self, size: int) -> float:
        """The batch whose step takes all ranks as long as one."""
        return self.all_reduce(size) / (self.row * (1 - 1 / self.ranks))

    def half_from(self, size: int) -> float:
        """The batch from which the speed-up is at least half of the number of ranks."""
        fixed = self.ranks * (self.fixed + self.all_reduce(size)) - 2 * self.fixed
        return max(0.0, fixed) / self.row
