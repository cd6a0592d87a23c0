"""The copies of cp.async between their beginning and the wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.ptx.types import Array, Mask

if TYPE_CHECKING:
    from tests.ptx.lanes import Lanes


class Copy(NamedTuple):
    """What some lanes copy: where to, how many bytes, and in which of their groups."""

    where: Array
    addresses: Array
    group: Array
    size: int

    def part(self, chosen: Mask) -> Copy:
        return Copy(self.where[chosen], self.addresses[chosen], self.group[chosen], self.size)


class Copies:
    """The copies under way. Groups are numbered by each lane for itself."""

    def __init__(self, lanes: int) -> None:
        self._group = np.zeros(lanes, np.int64)
        self._under_way: list[Copy] = []

    def begin(self, where: Array, addresses: Array, size: int) -> None:
        self._under_way.append(Copy(where, addresses, self._group[where], size))

    def commit(self, active: Mask | None) -> None:
        self._group[slice(None) if active is None else active] += 1

    def wait(self, lanes: Lanes, active: Mask | None, pending: int | None) -> None:
        """Let all copies of these lanes land but those of their last `pending` groups.

        With None those land, too, that belong to no group yet.
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
