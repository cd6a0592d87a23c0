"""cp.async copies that have begun and have not been waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.ptx.types import Array, Mask

if TYPE_CHECKING:
    from tests.ptx.lanes import Lanes


class Copy(NamedTuple):
    """Copies of some lanes: destination, bytes, and the number of the lane's group."""

    where: Array
    addresses: Array
    group: Array
    size: int

    def part(self, chosen: Mask) -> Copy:
        return Copy(self.where[chosen], self.addresses[chosen], self.group[chosen], self.size)


class Copies:
    """The copies under way. Each lane numbers its own groups."""

    def __init__(self, lanes: int) -> None:
        self._group = np.zeros(lanes, np.int64)
        self._under_way: list[Copy] = []

    def begin(self, where: Array, addresses: Array, size: int) -> None:
        self._under_way.append(Copy(where, addresses, self._group[where], size))

    def commit(self, active: Mask | None) -> None:
        self._group[slice(None) if active is None else active] += 1

    def wait(self, lanes: Lanes, active: Mask | None, pending: int | None) -> None:
        """Let the copies of these lanes land, except those of their last `pending` groups.

        With None, all copies land, including those that belong to no group yet.
        """
        left = []
        for copy in self._under_way:
            group = self._group[copy.where]
            done = copy.group < group - pending if pending is not None else copy.group <= group
            if active is not None:
                done = done & active[copy.where]
            if done.any():
                landed = copy.part(done)
                lanes.shared.land(lanes, landed.where, landed.addresses, landed.size)
            if not done.all():
                left.append(copy.part(~done))
        self._under_way = left
