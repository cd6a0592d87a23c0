"""What a run executed, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counts over all threads of all blocks.

    `loads` and `stores` hold the threads' accesses to global memory by their width in bytes: a
    v4.b32 is one access of 16. A predicated-off thread counts nowhere. Of cp.async the bytes that
    are read count as loaded, those that reach shared memory as shared.
    """

    instructions: int = 0  # executed by a warp, however many of its threads
    divergent: int = 0  # of those, executed by a part of a warp, whose other threads were elsewhere
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    atomics: Counter[int] = field(default_factory=Counter)
    shared_bytes: int = 0  # read and written
    barriers: int = 0  # of a block
    conflicting_stores: int = 0  # to shared memory, that lost against another lane's: shared.py
    products: int = 0  # mma instructions of a warp

    @property
    def bytes_loaded(self) -> int:
        return sum(width * count for width, count in self.loads.items())

    @property
    def bytes_stored(self) -> int:
        return sum(width * count for width, count in self.stores.items())
