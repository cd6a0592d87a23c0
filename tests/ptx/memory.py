"""Global memory: only the regions that a kernel may touch."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.ptx.errors import Misaligned, OutOfBounds
from tests.ptx.types import Array, Mask

if TYPE_CHECKING:
    from tests.ptx.lanes import Lanes


class Region(NamedTuple):
    start: int
    data: Array  # uint8
    name: str

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def rows(self, width: int, count: int) -> tuple[int, Array]:
        """The first aligned address of an access, and the region as (places, count) numbers."""
        skipped = -self.start % (width * count)
        whole = (len(self.data) - skipped) // (width * count) * width * count
        view = self.data[skipped : skipped + max(whole, 0)].view(f"u{width}")
        return self.start + skipped, view.reshape(-1, count)

    def __str__(self) -> str:
        return f"{self.name or 'a region'} [{self.start:#x}, {self.end:#x})"


class GlobalMemory:
    """Regions of bytes by address. Stores write into the arrays that were added."""

    def __init__(self) -> None:
        self._regions: list[Region] = []

    def add(self, address: int, data: Array, name: str = "") -> None:
        """Let kernels access `data`, a writable 1-D array of uint8, from `address` on.

        Raises:
            ValueError: the dtype or shape is wrong, or the data overlaps another region.
        """
        if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
            raise ValueError(f"data must be a contiguous 1-D array of uint8, got {data.dtype}")
        region = Region(address, data, name)
        for other in self._regions:
            if region.start < other.end and other.start < region.end:
                raise ValueError(f"{region} overlaps {other}")
        bisect.insort(self._regions, region, key=lambda one: one.start)

    def load(
        self, lanes: Lanes, where: Array | None, addresses: Array, width: int, count: int
    ) -> Array:
        """Read `count` numbers of `width` bytes in each lane → (count, lanes), unsigned.

        Args:
            where: the indices of the lanes, None for all.
            addresses: their addresses, uint64.
        """
        out = np.empty((count, len(addresses)), f"u{width}")
        for chosen, region in self._split(lanes, where, addresses, width * count, "reads"):
            start, rows = region.rows(width, count)
            at = (addresses[chosen] - np.uint64(start)) // np.uint64(width * count)
            out[:, chosen] = rows[at.astype(np.intp)].T
        return out

    def store(self, lanes: Lanes, where: Array | None, addresses: Array, values: Array) -> None:
        """Write (count, lanes) unsigned numbers; `where` and `addresses` as for `load`."""
        count, width = len(values), values.dtype.itemsize
        for chosen, region in self._split(lanes, where, addresses, width * count, "writes"):
            start, rows = region.rows(width, count)
            at = (addresses[chosen] - np.uint64(start)) // np.uint64(width * count)
            rows[at.astype(np.intp)] = values[:, chosen].T

    def update(
        self,
        lanes: Lanes,
        lane: int,
        address: int,
        width: int,
        change: Callable[[Array], Array],
    ) -> Array:
        """Replace one number by `change(number)` and return the old one."""
        addresses = np.array([address], np.uint64)
        ((_, region),) = self._split(lanes, np.array([lane]), addresses, width, "updates")
        start, rows = region.rows(width, 1)
        at = (address - start) // width
        old = rows[at].copy()
        rows[at] = change(old)
        return old

    def _split(
        self, lanes: Lanes, where: Array | None, addresses: Array, size: int, verb: str
    ) -> Iterator[tuple[slice | Mask, Region]]:
        def refuse(kind: type[OutOfBounds | Misaligned], bad: Mask, why: str) -> None:
            first = int(np.argmax(bad))
            lane = first if where is None else int(where[first])
            address = int(addresses[first])
            lanes.fault(kind, lane, f"{verb} {size} bytes at {address:#x}, {why(address)}")  # type: ignore[operator]

        if (odd := addresses % np.uint64(size) != 0).any():
            refuse(Misaligned, odd, lambda address: "which is not aligned")  # type: ignore[arg-type]
        low, high = int(addresses.min()), int(addresses.max())
        region = self._at(low)
        if region is not None and high + size <= region.end:
            yield slice(None), region
            return
        left = np.ones(len(addresses), bool)
        for region in self._regions:
            inside = (addresses >= np.uint64(region.start)) & (addresses < np.uint64(region.end))
            inside &= addresses + np.uint64(size) <= np.uint64(region.end)
            if inside.any():
                left &= ~inside
                yield inside, region
        if left.any():
            refuse(OutOfBounds, left, self._nearest)  # type: ignore[arg-type]

    def _at(self, address: int) -> Region | None:
        at = bisect.bisect(self._regions, address, key=lambda region: region.start)
        return self._regions[at - 1] if at and address < self._regions[at - 1].end else None

    def _nearest(self, address: int) -> str:
        if not self._regions:
            return "and no region is registered"
        gaps = [max(region.start - address, address - region.end, 0) for region in self._regions]
        return f"beyond {self._regions[int(np.argmin(gaps))]}"
