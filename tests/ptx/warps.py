"""Warp-wide instructions: shuffles, votes, reductions, and barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.errors import InactiveLane
from tests.ptx.form import Form, Run
from tests.ptx.lanes import WARP, Lanes
from tests.ptx.types import PRED, U32, Array, Mask

FULL = np.uint32(0xFFFFFFFF)


def members(lanes: Lanes, active: Mask | None, mask: Any) -> Array:
    """Each lane's member mask. Refused unless exactly its lanes that have not exited take part."""
    mask = np.broadcast_to(mask, lanes.size)
    if active is None and (mask == FULL).all():
        return mask
    own = (mask >> lanes.lane & np.uint32(1)).astype(bool)
    here = lanes.everyone if active is None else active
    if (here & ~own).any():
        lanes.fault(InactiveLane, here & ~own, "is not in the member mask that it names")
    live = lanes.everyone if lanes.exited is None else ~lanes.exited
    weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
    present = ((here.reshape(-1, WARP)) * weights).sum(1, dtype=np.uint32)
    alive = ((live.reshape(-1, WARP)) * weights).sum(1, dtype=np.uint32)
    absent = mask & np.repeat(alive & ~present, WARP)
    if (here & (absent != 0)).any():
        who = here & (absent != 0)
        first = int(np.argmax(who))
        missing = int(absent[first]).bit_length() - 1
        lanes.fault(
            InactiveLane, who, f"names lane {missing} of its warp, which does not execute it"
        )
    return mask


def decode_shfl(form: Form) -> Run:
    type = form.type("b32")
    form.one_of(("sync",))
    mode = form.one_of(("up", "down", "bfly", "idx"))
    form.done(5)
    words = form.operands[0].split("|")
    write = form.target(words[0], type)
    write_inside = form.target(words[1], PRED) if len(words) > 1 else None
    read = form.source(1, U32)
    by, packed, mask = (form.source(k, U32, strict=True) for k in range(2, 5))

    def run(lanes: Lanes, active: Mask | None) -> None:
        members(lanes, active, mask(lanes, active))
        value = np.broadcast_to(read(lanes, active), lanes.size)
        distance = (by(lanes, active) & np.uint32(31)).astype(np.int64)
        clamp_and_segment = packed(lanes, active).astype(np.int64)
        lane, clamp = lanes.lane.astype(np.int64), clamp_and_segment & 31
        segment = clamp_and_segment >> 8 & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment)
        if mode == "up":
            source = lane - distance
            inside = source >= high
        else:
            source = {"down": lane + distance, "bfly": lane ^ distance}.get(
                mode, low | (distance & ~segment)
            )
            inside = source <= high
        source = np.where(inside, source, lane)
        at = np.arange(lanes.size) - lane + source
        if active is not None and (absent := active & ~active[at]).any():
            lanes.fault(InactiveLane, absent, "reads from a lane that does not execute it")
        if lanes.unset is not None:
            lanes.unset = lanes.unset[at]
        write(lanes, active, value[at])
        lanes.unset = None
        if write_inside is not None:
            write_inside(lanes, active, inside)

    return run


def decode_vote(form: Form) -> Run:
    form.one_of(("sync",))
    mode = form.one_of(("all", "any", "uni", "ballot"))
    type = form.type("b32") if mode == "ballot" else form.type("pred")
    form.done(3)
    write, mask = form.target(0, type), form.source(2, U32, strict=True)
    read = form.predicate(form.operands[1], strict=True)

    def run(lanes: Lanes, active: Mask | None) -> None:
        members(lanes, active, mask(lanes, active))
        holds = np.broadcast_to(read(lanes, active), lanes.size)
        here = lanes.everyone if active is None else active
        yes, no = (holds & here).reshape(-1, WARP), (~holds & here).reshape(-1, WARP)
        if mode == "ballot":
            weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
            of_warp = (yes * weights).sum(1, dtype=np.uint32)
        else:
            of_warp = {"all": ~no.any(1), "any": yes.any(1), "uni": ~no.any(1) | ~yes.any(1)}[mode]
        write(lanes, active, np.repeat(of_warp, WARP))

    return run


REDUCTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "add": (np.add, ("u32", "s32")),
    "min": (np.minimum, ("u32", "s32")),
    "max": (np.maximum, ("u32", "s32")),
    "and": (np.bitwise_and, ("b32",)),
    "or": (np.bitwise_or, ("b32",)),
    "xor": (np.bitwise_xor, ("b32",)),
}


def decode_redux(form: Form) -> Run:
    form.one_of(("sync",))
    function, types = REDUCTIONS[form.one_of(REDUCTIONS)]
    type = form.type(*types)
    form.done(3)
    write, read, mask = (
        form.target(0, type),
        form.source(1, type, strict=True),
        form.source(2, U32, strict=True),
    )

    def run(lanes: Lanes, active: Mask | None) -> None:
        members(lanes, active, mask(lanes, active))
        values = np.broadcast_to(read(lanes, active), lanes.size)
        out = np.empty_like(values)
        for start in range(0, lanes.size, WARP):
            part = slice(start, start + WARP)
            chosen = values[part] if active is None else values[part][active[part]]
            if len(chosen):
                out[part] = function.reduce(chosen, dtype=values.dtype)
        write(lanes, active, out)

    return run


def decode_activemask(form: Form) -> Run:
    type = form.type("b32")
    form.done(1)
    write = form.target(0, type)

    def run(lanes: Lanes, active: Mask | None) -> None:
        here = lanes.everyone if active is None else active
        weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
        of_warp = (here.reshape(-1, WARP) * weights).sum(1, dtype=np.uint32)
        write(lanes, active, np.repeat(of_warp, WARP))

    return run


def decode_bar(form: Form) -> Run:
    """bar.sync 0 and barrier.sync 0 of all threads of a block, and bar.warp.sync."""
    if form.flag("warp"):
        form.one_of(("sync",))
        form.done(1)
        mask = form.source(0, U32, strict=True)

        def sync_warp(lanes: Lanes, active: Mask | None) -> None:
            if (members(lanes, active, mask(lanes, active)) != FULL).any():
                raise form.refuse("a part of a warp cannot be synchronised")
            warps = None if active is None else np.flatnonzero(active.reshape(-1, WARP).any(1))
            lanes.shared.sync_warps(warps)

        return sync_warp
    form.flag("cta")
    form.one_of(("sync",))
    form.flag("aligned")
    count = form.integer(1) if len(form.operands) == 2 else None
    if form.integer(0) != 0 and count is None:
        raise form.refuse("only barrier 0 is supported")
    form.done(1 if count is None else 2)

    def sync_block(lanes: Lanes, active: Mask | None) -> None:
        if count not in (None, lanes.threads):
            raise form.refuse("a part of a block cannot be synchronised")
        blocks = lanes.whole_blocks(active)
        lanes.shared.sync_blocks(blocks)
        lanes.traffic.barriers += lanes.blocks if blocks is None else len(blocks)

    return sync_block


DECODERS: dict[str, Callable[[Form], Run]] = {
    "shfl": decode_shfl,
    "vote": decode_vote,
    "redux": decode_redux,
    "activemask": decode_activemask,
    "bar": decode_bar,
    "barrier": decode_bar,
}
