"""cp.async: copies from global to shared memory, which arrive when their thread waits for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.accesses import EVICTION, PREFETCH, spread
from tests.ptx.form import Form, Run
from tests.ptx.lanes import Lanes
from tests.ptx.types import U32, Array, Mask


def decode_cp(form: Form) -> Run:
    form.one_of(("async",))
    if form.flag("commit_group"):
        form.done(0)
        return lambda lanes, active: lanes.copies.commit(active)
    if form.flag("wait_all"):
        form.done(0)
        return lambda lanes, active: lanes.copies.wait(lanes, active, None)
    if form.flag("wait_group"):
        form.done(1)
        pending = form.integer(0)
        return lambda lanes, active: lanes.copies.wait(lanes, active, pending)
    return _decode_copy(form)


def _decode_copy(form: Form) -> Run:
    cached = form.one_of(("ca", "cg"))
    form.one_of(("shared::cta", "shared"))
    form.one_of(("global",))
    while form.flag(*EVICTION, *PREFETCH):
        pass
    if form.flag("L2::cache_hint"):
        form.operands.pop()
    form.done(3 if len(form.operands) == 3 else 4)
    size = form.integer(2)
    if size not in ((16,) if cached == "cg" else (4, 8, 16)):
        raise form.refuse(f"cannot copy {size} bytes at once")
    form.uses_shared(size)
    to, start = form.address(0, 32), form.address(1, 64)
    given = form.source(3, U32, strict=True) if len(form.operands) == 4 else None

    def run(lanes: Lanes, active: Mask | None) -> None:
        where = np.arange(lanes.size) if active is None else np.flatnonzero(active)
        addresses = spread(lanes, to(lanes, active), where)
        sources = spread(lanes, start(lanes, active), where)
        sizes = spread(lanes, np.uint32(size) if given is None else given(lanes, active), where)
        if (sizes > size).any():
            raise form.refuse(f"reads more than it copies: {sizes.max()} bytes of {size}")
        data = _read(lanes, where, sources, sizes, size)
        lanes.shared.begin_copy(lanes, where, addresses, data)
        lanes.copies.begin(where, addresses, size)

    return run


def _read(lanes: Lanes, where: Array, sources: Array, sizes: Array, size: int) -> Array:
    """The first `sizes` bytes of each lane's source, padded with zeros → (lanes, size)."""
    data = np.zeros((len(where), size), np.uint8)
    whole = sizes == size
    if whole.any():
        words = lanes.memory.load(lanes, where[whole], sources[whole], 4, size // 4)
        data[whole] = np.ascontiguousarray(words.T).view(np.uint8)
        lanes.traffic.loads[size] += int(whole.sum())
    for byte in range(int(sizes[~whole].max(initial=0))):
        some = ~whole & (sizes > byte)
        at = sources[some] + np.uint64(byte)
        data[some, byte] = lanes.memory.load(lanes, where[some], at, 1, 1)[0]
        lanes.traffic.loads[1] += int(some.sum())
    return data


DECODERS: dict[str, Callable[[Form], Run]] = {"cp": decode_cp}
