"""Detects races in global memory: threads of a block that exchange numbers without a barrier.

tests/ptx detects races in shared memory. The mixture's backward kernel passes its weights between
threads through global memory, where a thread sees another thread's writes only after a barrier.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.errors import Fault
from tests.ptx.lanes import Lanes
from tests.ptx.types import Array


class GlobalRace(Fault):
    """Two threads of a block used a word, one wrote it, and no barrier separated them."""


class GlobalRaceDetector:
    """The threads that read and wrote each word since the last barrier.

    Only words that the launch writes are tracked.
    """

    def __init__(self) -> None:
        self._since = (0, 0)
        self._ever = _Users()
        self._read, self._written = _Users(), _Users()

    def load(self, lanes: Lanes, where: Array | None, at: Array, width: int) -> None:
        """Note what these lanes read.

        Raises:
            GlobalRace: another lane wrote it.
        """
        if self._ever.empty():
            return
        self._forget(lanes)
        words, users = _words(lanes, where, at, width)
        of_launch = self._ever.have(words)
        if of_launch.any():
            words, users = words[of_launch], users[of_launch]
            _refuse(lanes, "reads", "wrote", *self._written.others(words, users))
            self._read.add(words, users)

    def store(self, lanes: Lanes, where: Array | None, at: Array, width: int) -> None:
        """Note what these lanes write.

        Raises:
            GlobalRace: another lane read or wrote it.
        """
        self._forget(lanes)
        words, users = _words(lanes, where, at, width)
        here = _Users()
        here.add(words, users)
        for table in (here, self._written):
            _refuse(lanes, "writes", "wrote", *table.others(words, users))
        _refuse(lanes, "writes", "read", *self._read.others(words, users))
        for table in (self._written, self._ever):
            table.add(words, users)

    def _forget(self, lanes: Lanes) -> None:
        # A barrier of some blocks clears all blocks: races may be missed, but none is invented.
        since = (id(lanes), lanes.traffic.barriers)
        if since != self._since:
            self._since = since
            self._read, self._written = _Users(), _Users()


class _Users:
    """Pairs of a word and a lane."""

    def __init__(self) -> None:
        self._parts: list[tuple[Array, Array]] = []

    def empty(self) -> bool:
        return not self._parts

    def add(self, words: Array, lanes: Array) -> None:
        self._parts.append((words, lanes))

    def have(self, words: Array) -> Array:
        known, _ = self._sorted()
        return known[np.searchsorted(known, words).clip(max=len(known) - 1)] == words

    def others(self, words: Array, lanes: Array) -> tuple[Array, Array]:
        """The lanes whose words another lane has used, and that other lane."""
        if self.empty():
            return lanes[:0], lanes[:0]
        known, users = self._sorted()
        first, end = (np.searchsorted(known, words, side) for side in ("left", "right"))
        there = first < end
        lanes, low, high = lanes[there], users[first[there]], users[end[there] - 1]
        # Lanes of a word are sorted: if any of them is another lane, the first or the last is.
        other = np.where(low != lanes, low, high)
        return lanes[other != lanes], other[other != lanes]

    def _sorted(self) -> tuple[Array, Array]:
        words, lanes = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.lexsort((lanes, words))
        self._parts = [(words[order], lanes[order])]
        return self._parts[0]


def _refuse(lanes: Lanes, does: str, did: str, users: Array, others: Array) -> None:
    if len(users) > 0:
        raise GlobalRace(
            f"{lanes.instruction.text}: thread {users[0] % lanes.threads} {does} what thread "
            f"{others[0] % lanes.threads} of its block {did}, with no barrier since"
        )


def _words(lanes: Lanes, where: Array | None, at: Array, width: int) -> tuple[Array, Array]:
    # The words of an access, of at most four bytes, keyed by block, and the lanes that access them.
    size = min(width, 4)
    lane = np.arange(lanes.size) if where is None else where
    blocks = (lane // lanes.threads).astype(np.uint64)
    first = blocks << np.uint64(48) | at.astype(np.uint64)
    words = first[:, None] + np.arange(0, width, size, dtype=np.uint64)
    return words.ravel(), np.repeat(lane, width // size)
