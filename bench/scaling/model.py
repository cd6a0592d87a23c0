"""The time of a step on several ranks: t(N) = s(N)·(a·B/N + b) + c(N), here and beyond.

A batch has B rows, shared by N ranks. In seconds, a is the compute of a row, b the fixed part of a
step (every rank updates all weights), and c(N) the all-reduce. s(N) is how much N busy processes
slow each other down where they share cores and caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The measured constants; those that depend on N are dictionaries over N."""

    row: float  # a
    fixed: float  # b
    slowdown: dict[int, float]  # s
    all_reduce: dict[int, float]  # c

    def seconds(self, batch: int, ranks: int) -> float:
        """Seconds of a step; KeyError if that number of ranks was not measured."""
        alone = self.row * batch / ranks + self.fixed
        return self.slowdown[ranks] * alone + self.all_reduce[ranks]


def median(layout: Record, name: str | int) -> float | None:
    """Median seconds of what was timed under `name`; None if it failed its check."""
    quartiles = layout["seconds"].get(str(name))
    return None if quartiles is None else float(quartiles[1])


def layout_of(results: Record, processes: int, threads: int = 1) -> Record:
    """The record of the layout with so many processes and threads."""
    (found,) = (
        layout
        for layout in results["layouts"]
        if (layout["processes"], layout["threads"]) == (processes, threads)
    )
    return dict(found)


def fitted(results: Record) -> Model | None:
    """a and b fitted to the steps of one process (least squares of relative errors), measured s, c.

    None if fewer than two batches of one process passed their checks.
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
    """Ranks with a processor each that share only a network."""

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
        """The step of one rank over the step of all ranks."""
        shared = self.row * batch / self.ranks + self.fixed + self.all_reduce(size)
        return (self.row * batch + self.fixed) / shared

    def pays_from(self, size: int) -> float:
        """The batch at which a step of all ranks takes as long as a step of one."""
        return self.all_reduce(size) / (self.row * (1 - 1 / self.ranks))

    def half_from(self, size: int) -> float:
        """The batch from which on the speed-up is at least half the number of ranks."""
        fixed = self.ranks * (self.fixed + self.all_reduce(size)) - 2 * self.fixed
        return max(0.0, fixed) / self.row
