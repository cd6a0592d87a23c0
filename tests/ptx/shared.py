"""Shared memory, with checks for unwritten bytes, races and copies under way.

A clock counts barriers. Each granule (the smallest access of the program, to which all accesses are
aligned) remembers when and by which thread it was last written, and when and by which thread of
each warp it was last read. Two accesses are ordered if the same thread made both, or if a bar.sync
of the block came between, or a bar.warp.sync of the warp that made both. Shuffles order nothing.

If lanes of a warp store different numbers to one place in one instruction, the hardware keeps one
of them and does not say which. Triton makes such stores: lanes hold copies of a sum, and the copies
differ in the last bit if a multiplication was fused into the sum in one lane and not in the other.
Here the last lane wins, or with `Units.DOWN` the first; `Traffic.conflicting_stores` counts the
stores that lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.errors import EarlyRead, Misaligned, OutOfBounds, SharedRace, UnwrittenShared
from tests.ptx.types import Array, Mask
from tests.ptx.units import Units

if TYPE_CHECKING:
    from tests.ptx.lanes import Lanes

WARP = 32
SEVERAL = np.iinfo(np.int32).min  # instead of a reading thread: several threads of a warp
UNDER_WAY = np.iinfo(np.int32).max  # instead of a time: a cp.async will write here


class SharedMemory:
    """The shared memory of the running blocks, side by side, `size` bytes each."""

    def __init__(self, blocks: int, threads: int, size: int, granule: int) -> None:
        self.size, self.granule = size, granule
        self.stride = -(-size // 16) * 16  # of a block, so that vectors stay aligned
        self.warps = threads // WARP
        self.threads = threads
        granules = blocks * self.stride // granule
        self._data = np.zeros(blocks * self.stride, np.uint8)
        self._time = 1
        self._block_time = np.ones(blocks, np.int32)  # of the last bar.sync
        self._warp_time = np.ones(blocks * self.warps, np.int32)  # of the last bar(.warp).sync
        self._written = np.zeros(granules, np.int32)  # when; 0 for never
        self._writer = np.zeros(granules, np.int32)
        self._written_by = np.zeros(granules, np.int32)  # the instruction's index
        self._read = np.zeros((granules, self.warps), np.int32)
        self._reader = np.zeros((granules, self.warps), np.int32)
        self._read_by = np.zeros(granules, np.int32)

    def load(
        self,
        lanes: Lanes,
        where: Array | None,
        addresses: Array,
        width: int,
        count: int,
        by_warp: bool = False,
    ) -> Array:
        """Read `count` numbers of `width` bytes in each lane → (count, lanes), unsigned.

        Args:
            where: the indices of the lanes, None for all.
            addresses: their addresses, uint32.
            by_warp: whether all lanes of a warp use what each of its lanes reads.
        """
        access = Access(self, lanes, where, addresses, width * count, "reads", by_warp)
        written = access.of(self._written)
        if written.min(initial=1) == 0:
            access.fault(UnwrittenShared, written == 0, "which nobody has written")
        if written.max(initial=0) >= self._block_time.min():
            self._check_written(access, written)
        self._note_reading(access)
        rows = self._data.view(f"u{width}").reshape(-1, count)
        lanes.traffic.shared_bytes += access.at.size * width * count
        return np.ascontiguousarray(rows[access.at].T)

    def store(
        self,
        lanes: Lanes,
        where: Array | None,
        addresses: Array,
        values: Array,
        by_warp: bool = False,
    ) -> None:
        """Write (count, lanes) unsigned numbers; the other arguments are as for `load`."""
        count, width = len(values), values.dtype.itemsize
        access = Access(self, lanes, where, addresses, width * count, "writes", by_warp)
        rows = self._data.view(f"u{width}").reshape(-1, count)
        new = values.T
        self._check_writing(access, lambda: rows[access.at] != new)
        self._put(access, rows, new, self._time)
        lanes.traffic.shared_bytes += access.at.size * width * count

    def begin_copy(self, lanes: Lanes, where: Array, addresses: Array, data: Array) -> None:
        """Begin a cp.async of the bytes (lanes, size). No access may use them before `land`."""
        access = Access(self, lanes, where, addresses, data.shape[1], "copies")
        self._check_writing(access, None)
        # The bytes can be written now, because no access sees them before they land.
        self._put(access, self._data.reshape(-1, data.shape[1]), data, UNDER_WAY)

    def land(self, lanes: Lanes, where: Array, addresses: Array, size: int) -> None:
        """Let copies of `size` bytes each arrive, as if their threads stored them now."""
        access = Access(self, lanes, where, addresses, size, "copies")
        self._note_writing(access, self._time)
        lanes.traffic.shared_bytes += access.at.size * size

    def _put(self, access: Access, rows: Array, new: Array, time: int) -> None:
        """Write a row for each lane. If lanes of a warp share a place, one of them wins."""
        order = slice(None, None, -1 if access.lanes.units is Units.DOWN else 1)
        rows[access.at[order]] = new[order]
        self._note_writing(access, time, order)
        lost = (rows[access.at] != new).any(1)
        if not lost.any():
            return
        winner = access.of(self._writer)[:, 0]
        disputed = np.isin(access.at, access.at[lost])
        others = disputed & (_warp_of(winner) != access.warp)
        if others.any():
            access.fault(SharedRace, others, "as another warp does, with no barrier between")
        access.lanes.traffic.conflicting_stores += int(lost.sum())

    def sync_blocks(self, blocks: Array | None) -> None:
        """A bar.sync of these blocks, None for all."""
        self._time += 1
        chosen = slice(None) if blocks is None else blocks
        self._block_time[chosen] = self._time
        self._warp_time.reshape(-1, self.warps)[chosen] = self._time

    def sync_warps(self, warps: Array | None) -> None:
        """A bar.warp.sync of these warps, numbered across all blocks, None for all."""
        self._time += 1
        self._warp_time[slice(None) if warps is None else warps] = self._time

    def _check_written(self, access: Access, written: Array) -> None:
        if (under_way := written == UNDER_WAY).any():
            access.fault(EarlyRead, under_way, self._writers(access, under_way, "is copied to by"))
        writer = access.of(self._writer)
        racing = self._unordered(access, written, writer)
        if racing.any():
            access.fault(SharedRace, racing, self._writers(access, racing, "was written by"))

    def _unordered(self, access: Access, written: Array, writer: Array) -> Mask:
        """Which granules another thread wrote since the last common barrier."""
        same_warp = _warp_of(writer) == access.warp[:, None]
        since = np.where(same_warp, self._warp_time[access.warps], self._block_time[access.blocks])
        mine = (writer == access.thread[:, None]) & (not access.by_warp)
        return (written >= since) & ~mine

    def _check_writing(self, access: Access, differs: object) -> None:
        since_block = self._block_time[access.blocks]
        written = access.of(self._written)
        if written.max(initial=0) >= self._block_time.min():
            if (under_way := written == UNDER_WAY).any():
                access.fault(
                    EarlyRead, under_way, self._writers(access, under_way, "is copied to by")
                )
            writer = access.of(self._writer)
            racing = self._unordered(access, written, writer)
            # Storing the value that is already there is harmless: layouts with copies do that.
            if racing.any() and callable(differs):
                racing &= differs().any(1)[:, None]
            if racing.any():
                access.fault(SharedRace, racing, self._writers(access, racing, "was written by"))
        read = access.of(self._read)  # (lanes, granules, warps)
        if read.max(initial=0) < self._block_time.min():
            return
        own = np.arange(self.warps) == access.warp[:, None, None]
        since = np.where(own, self._warp_time[access.warps][..., None], since_block[..., None])
        me = (access.of(self._reader) == access.thread[:, None, None]) & (not access.by_warp)
        racing = ((read >= since) & ~(own & me)).any(2)
        if racing.any():
            index = int(access.of(self._read_by)[racing][0])
            other = f"was read by another thread, with no barrier since: {access.lanes.at(index)}"
            access.fault(SharedRace, racing, f"which {other}")

    def _note_reading(self, access: Access) -> None:
        read = self._read.reshape(-1, access.granules, self.warps)
        reader = self._reader.reshape(-1, access.granules, self.warps)
        at = (access.at, slice(None), access.warp)
        thread = access.thread[:, None]
        others = (read[at] >= self._warp_time[access.warps]) & (reader[at] != thread)
        reader[at] = np.where(others, SEVERAL, thread)
        crowded = reader[at] != thread
        if crowded.any():
            several = np.nonzero(crowded)
            reader[access.at[several[0]], several[1], access.warp[several[0]]] = SEVERAL
        read[at] = self._time
        access.of_writable(self._read_by)[access.at] = access.lanes.instruction.number

    def _note_writing(self, access: Access, time: int, order: slice = slice(None)) -> None:
        access.of_writable(self._written)[access.at] = time
        access.of_writable(self._writer)[access.at[order]] = access.thread[order, None]
        access.of_writable(self._written_by)[access.at] = access.lanes.instruction.number

    def _writers(self, access: Access, chosen: Mask, verb: str) -> str:
        writer = int(access.of(self._writer)[chosen][0])
        index = int(access.of(self._written_by)[chosen][0])
        who = f"thread {writer}" if writer >= 0 else f"warp {-1 - writer}"
        return f"which {verb} {who}, with no barrier since: {access.lanes.at(index)}"


def _warp_of(writer: Array) -> Array:
    return np.where(writer < 0, -1 - writer, writer // WARP)


class Access:
    """Places in shared memory, one a lane and all of one size, checked for bounds and alignment."""

    def __init__(
        self,
        shared: SharedMemory,
        lanes: Lanes,
        where: Array | None,
        addresses: Array,
        size: int,
        verb: str,
        by_warp: bool = False,
    ) -> None:
        self.lanes, self.where, self.addresses = lanes, where, addresses
        self.size, self.verb = size, verb
        index = np.arange(lanes.size) if where is None else where
        self.thread = lanes.thread[index].astype(np.int32)
        self.warp = self.thread // WARP
        if by_warp:
            self.thread = -1 - self.warp
        self.by_warp = by_warp
        block = index // shared.threads
        self.blocks, self.warps = block[:, None], (index // WARP)[:, None]
        self.granules = size // shared.granule
        if (odd := addresses % np.uint32(size) != 0).any():
            self.fault(Misaligned, odd, "which is not aligned")
        if (beyond := addresses.astype(np.int64) + size > shared.size).any():
            self.fault(OutOfBounds, beyond, f"beyond shared memory of {shared.size} bytes")
        self.at = (block * shared.stride + addresses) // size

    def of_writable(self, notes: Array) -> Array:
        return notes.reshape(-1, self.granules, *notes.shape[1:])

    def of(self, notes: Array) -> Array:
        """Notes about granules → (lanes, granules of an access, …)."""
        return self.of_writable(notes)[self.at]

    def fault(self, kind: type, bad: Mask, why: str) -> None:
        first = int(np.argmax(bad if bad.ndim == 1 else bad.any(1)))
        lane = first if self.where is None else int(self.where[first])
        place = f"{self.size} bytes of shared memory at {int(self.addresses[first])}"
        self.lanes.fault(kind, lane, f"{self.verb} {place}, {why}")
