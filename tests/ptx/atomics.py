"""Atomic updates of global memory, one thread after the other: lanes in order, then blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.accesses import spread
from tests.ptx.form import Form, Run
from tests.ptx.lanes import Lanes
from tests.ptx.types import TYPES, Mask

OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "add": (lambda old, new: old + new, ("u32", "s32", "u64", "f32", "f64", "f16")),
    "min": (np.minimum, ("u32", "s32", "u64", "s64")),
    "max": (np.maximum, ("u32", "s32", "u64", "s64")),
    "and": (lambda old, new: old & new, ("b32", "b64")),
    "or": (lambda old, new: old | new, ("b32", "b64")),
    "xor": (lambda old, new: old ^ new, ("b32", "b64")),
    "exch": (lambda old, new: new, ("b32", "b64")),
    "cas": (lambda old, new: new, ("b32", "b64")),
}


def decode_atom(form: Form) -> Run:
    """Replace the number at [a]; d gets the old one. `red` has no d."""
    returns = form.opcode == "atom"
    form.one_of(("global",))
    form.one_of(("relaxed", "acquire", "release", "acq_rel"), "relaxed")
    form.one_of(("cta", "cluster", "gpu", "sys"), "gpu")
    name = form.one_of(OPERATIONS)
    function, types = OPERATIONS[name]
    type = form.type(*types)
    form.flag("noftz")
    first = int(returns)
    form.done(first + (3 if name == "cas" else 2))
    unsigned = TYPES[f"u{type.bits}"]
    write = form.target(0, unsigned) if returns else None
    address = form.address(first, 64)
    expected = form.source(first + 1, unsigned, strict=True) if name == "cas" else None
    operand = form.source(first + (2 if name == "cas" else 1), type, strict=True)

    def run(lanes: Lanes, active: Mask | None) -> None:
        where = np.arange(lanes.size) if active is None else np.flatnonzero(active)
        addresses = spread(lanes, address(lanes, active), where)
        operands = spread(lanes, operand(lanes, active), where)
        tests = None if expected is None else spread(lanes, expected(lanes, active), where)
        out = np.zeros(lanes.size, unsigned.dtype)
        for k, lane in enumerate(where):

            def change(old: Any, k: int = k) -> Any:
                if tests is not None and old[0] != tests[k]:
                    return old
                return function(old.view(type.dtype), operands[k]).view(unsigned.dtype)

            at = int(addresses[k])
            out[lane] = lanes.memory.update(lanes, int(lane), at, type.size, change)[0]
        lanes.traffic.atomics[type.size] += len(where)
        if write is not None:
            write(lanes, active, out)

    return run


DECODERS: dict[str, Callable[[Form], Run]] = {"atom": decode_atom, "red": decode_atom}
