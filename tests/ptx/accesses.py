"""Loads and stores: parameters, global and shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.errors import OutOfBounds
from tests.ptx.form import Form, Run
from tests.ptx.lanes import Lanes
from tests.ptx.types import TYPES, Mask, Type

NUMBERS = [f"{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)] + ["f32", "f64"]
SPACES = ("param", "global", "shared::cta", "shared")
CACHING = ("ca", "cg", "cs", "cv", "wb", "wt", "lu", "nc", "volatile", "weak")
EVICTION = [
    f"L{level}::{how}"
    for level in (1, 2)
    for how in ("evict_last", "evict_first", "evict_normal", "evict_unchanged", "no_allocate")
]
PREFETCH = [f"L2::{size}B" for size in (64, 128, 256)]


def _space(form: Form, hint_at: int) -> tuple[str, int]:
    """The space of an access and its count of numbers. Removes cache hints from the form."""
    space = form.one_of(SPACES).removesuffix("::cta")
    count = int(form.one_of(("v2", "v4", "v8"), "v1")[1:])
    if "relaxed" in form.modifiers or "acquire" in form.modifiers or "release" in form.modifiers:
        form.one_of(("relaxed", "acquire", "release"))
        form.one_of(("cta", "gpu", "sys", "cluster"))
    while form.flag(*CACHING, *EVICTION, *PREFETCH):
        pass
    if form.flag("L2::cache_hint"):
        form.operands.pop(hint_at)
    return space, count


def decode_ld(form: Form) -> Run:
    type = form.type(*NUMBERS)
    space, count = _space(form, 2)
    form.done(2)
    words = form.vector(0)
    if len(words) != count:
        raise form.refuse(f"expected {count} registers, got {len(words)}")
    writes = [form.target(word, type, extend=True) for word in words]
    if space == "param":
        return _load_parameter(form, type, writes)
    width = type.size
    if space == "shared":
        form.uses_shared(width * count)
    address = form.address(1, 64 if space == "global" else 32)

    def run(lanes: Lanes, active: Mask | None) -> None:
        where = lanes.indices(active)
        addresses = spread(lanes, address(lanes, active), where)
        if space == "global":
            loaded = lanes.memory.load(lanes, where, addresses, width, count)
            lanes.traffic.loads[width * count] += len(addresses)
        else:
            loaded = lanes.shared.load(lanes, where, addresses, width, count)
        for write, values in zip(writes, loaded, strict=True):
            if where is not None:
                every = np.zeros(lanes.size, values.dtype)
                every[where] = values
                values = every
            write(lanes, active, values)

    return run


def spread(lanes: Lanes, addresses: Any, where: Any) -> Any:
    """The active lanes' addresses. A literal address is repeated for each."""
    if addresses.ndim == 0:
        addresses = np.full(lanes.size, addresses)
    return addresses if where is None else addresses[where]


def _load_parameter(form: Form, type: Type, writes: list[Any]) -> Run:
    name, offset = form.parameter(1)
    end = offset + type.size * len(writes)

    def run(lanes: Lanes, active: Mask | None) -> None:
        bits = lanes.parameters[name]
        if end > len(bits):
            lanes.fault(OutOfBounds, 0, f"reads beyond {name} of {len(bits)} bytes")
        values = np.frombuffer(bits[offset:end], type.unsigned)
        for write, value in zip(writes, values, strict=True):
            write(lanes, active, value)

    return run


def decode_st(form: Form) -> Run:
    type = form.type(*NUMBERS)
    space, count = _space(form, 2)
    if space == "param":
        raise form.refuse("parameters cannot be written")
    form.done(2)
    words = form.vector(1)
    if len(words) != count:
        raise form.refuse(f"expected {count} registers, got {len(words)}")
    if space == "shared":
        form.uses_shared(type.size * count)
    unsigned = TYPES[f"u{type.bits}"]
    reads = [
        form.source(word, _as_written(form, word, type), narrow=True, strict=True) for word in words
    ]
    address = form.address(0, 64 if space == "global" else 32)

    def run(lanes: Lanes, active: Mask | None) -> None:
        where = lanes.indices(active)
        addresses = spread(lanes, address(lanes, active), where)
        values = np.empty((count, len(addresses)), unsigned.dtype)
        for k, read in enumerate(reads):
            value = read(lanes, active).view(unsigned.dtype)
            values[k] = value if where is None or value.ndim == 0 else value[where]
        if space == "global":
            lanes.memory.store(lanes, where, addresses, values)
            lanes.traffic.stores[values.dtype.itemsize * count] += len(addresses)
        else:
            lanes.shared.store(lanes, where, addresses, values)

    return run


def _as_written(form: Form, word: str, type: Type) -> Type:
    # A literal keeps its own type, because an f32 can be written as 1.0.
    return type if form.names.register(word) is None else TYPES[f"u{type.bits}"]


DECODERS: dict[str, Callable[[Form], Run]] = {"ld": decode_ld, "st": decode_st}
