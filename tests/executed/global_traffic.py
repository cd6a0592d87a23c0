"""Counts the bytes of global memory that an executed kernel moves, as a GPU's memory sees them.

If threads of a block read one address in one instruction, memory reads it once. Triton does this:
all threads load the key, and each column's thread loads its row's number. So an instruction's
addresses are counted once for each block. Triton also emits repeated loads if a number is
broadcast, of which ptxas keeps one (in the mixture's forward kernel 16 of 64 remain). So a load
with the same lanes, width and addresses as an earlier load is not counted again, unless a backward
jump or a store came in between. The key and the step of the noise are counted separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from tests.executed.global_races import GlobalRaceDetector
from tests.ptx.lanes import Lanes
from tests.ptx.memory import GlobalMemory
from tests.ptx.types import Array


@dataclass
class Moved:
    """Bytes by the width of their accesses. The largest width is 16 bytes."""

    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    key: int = 0

    @property
    def loaded(self) -> int:
        return self.loads.total()

    @property
    def stored(self) -> int:
        return self.stores.total()


@contextmanager
def counted(arguments: tuple[Any, ...]) -> Iterator[Moved]:
    """Count what a kernel with these arguments moves inside the block.

    Raises:
        GlobalRace: see global_races.py.
    """
    keys = [
        range(t.data_ptr(), t.data_ptr() + 16)
        for t in arguments
        if isinstance(t, torch.Tensor) and t.dtype == torch.int64 and t.shape == (2,)
    ]
    moved = Moved()
    load, store = GlobalMemory.load, GlobalMemory.store
    stretch, races = _Stretch(), GlobalRaceDetector()

    def noted_load(
        self: GlobalMemory, lanes: Lanes, where: Array | None, at: Array, width: int, count: int
    ) -> Array:
        races.load(lanes, where, at, width * count)
        repeated = stretch.repeats(lanes, where, at, width * count)
        size = 0 if repeated else _bytes(lanes, where, at, width * count)
        if len(at) > 0 and any(int(at[0]) in key for key in keys):
            moved.key += size
        else:
            moved.loads[width * count] += size
        return load(self, lanes, where, at, width, count)

    def noted_store(
        self: GlobalMemory, lanes: Lanes, where: Array | None, at: Array, values: Array
    ) -> None:
        stretch.loads.clear()
        width = values.dtype.itemsize * len(values)
        races.store(lanes, where, at, width)
        moved.stores[width] += _bytes(lanes, where, at, width)
        store(self, lanes, where, at, values)

    with (
        patch.object(GlobalMemory, "load", noted_load),
        patch.object(GlobalMemory, "store", noted_store),
    ):
        yield moved


@dataclass
class _Stretch:
    """The loads since the last backward jump or store."""

    at: int = 0  # the last load's position in the program
    loads: set[tuple[bytes | None, int, bytes]] = field(default_factory=set)

    def repeats(self, lanes: Lanes, where: Array | None, addresses: Array, width: int) -> bool:
        if lanes.instruction.number <= self.at:
            self.loads.clear()
        self.at = lanes.instruction.number
        load = (None if where is None else where.tobytes(), width, addresses.tobytes())
        before = load in self.loads
        self.loads.add(load)
        return before


def _bytes(lanes: Lanes, where: Array | None, at: Array, width: int) -> int:
    lane = np.arange(lanes.size) if where is None else where
    blocks = (lane // lanes.threads).astype(np.uint64)
    # Addresses have 48 bits.
    return width * len(np.unique(blocks << np.uint64(48) | at.astype(np.uint64)))
