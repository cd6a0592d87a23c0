"""Counts of what a run executed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counts over all threads of all blocks.

    `loads` and `stores` hold the threads' accesses to global memory by their width in bytes: a
    v4.b32 is one access of 16. A predicated-off thread is not counted. The bytes that a cp.async
    reads count as loaded; the bytes that it writes to shared memory count as shared.
    """

    instructions: int = 0  # executed by a warp, by any number of its threads
    divergent: int = 0  # of these, executed while other threads of the warp were elsewhere
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    atomics: Counter[int] = field(default_factory=Counter)
    shared_bytes: int = 0  # read and written
    barriers: int = 0  # of a block
    conflicting_stores: int = 0  # to shared memory, overridden by another lane's: see shared.py
    products: int = 0  # mma instructions of a warp

    @property
    def bytes_loaded(self) -> int:
        return sum(width * count for width, count in self.loads.items())

    @property
    def bytes_stored(self) -> int:
        return sum(width * count for width, count in self.stores.items())
