"""Moves, selections and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.floats import flush, from_bfloat16
from tests.ptx.form import Form, Run
from tests.ptx.integers import elementwise
from tests.ptx.lanes import Lanes
from tests.ptx.types import PRED, TYPES, Mask

NUMBERS = [f"{kind}{bits}" for kind in "bus" for bits in (16, 32, 64)] + [
    "f16",
    "bf16",
    "f32",
    "f64",
]


def decode_mov(form: Form) -> Run:
    type = form.type(*NUMBERS, "pred")
    if form.operands[0].startswith("{"):
        return _unpack(form, type.bits)
    if len(form.operands) > 1 and form.operands[1].startswith("{"):
        return _pack(form, type.bits)
    unsigned = TYPES[f"b{type.bits}"] if type is not PRED else PRED
    form.done(2)
    # A literal keeps its own type, because an f32 can be written as 1.0.
    is_register = form.names.register(form.operands[1]) is not None
    read = form.source(1, unsigned if is_register or type.name == "bf16" else type)
    write = form.target(0, unsigned)
    return lambda lanes, active: write(lanes, active, read(lanes, active))


def _unpack(form: Form, bits: int) -> Run:
    form.done(2)
    words = form.vector(0)
    part = TYPES[f"b{bits // len(words)}"]
    read = form.source(1, TYPES[f"b{bits}"])
    writes = [
        (form.target(word, part), part.bits * k) for k, word in enumerate(words) if word != "_"
    ]

    def run(lanes: Lanes, active: Mask | None) -> None:
        value = read(lanes, active)
        for write, shift in writes:
            write(lanes, active, (value >> value.dtype.type(shift)).astype(part.dtype))

    return run


def _pack(form: Form, bits: int) -> Run:
    form.done(2)
    words = form.vector(1)
    whole, part = TYPES[f"b{bits}"], TYPES[f"b{bits // len(words)}"]
    reads = [form.source(word, part) for word in words]
    write = form.target(0, whole)

    def run(lanes: Lanes, active: Mask | None) -> None:
        out: Any = whole.dtype.type(0)
        for k, read in enumerate(reads):
            shift = whole.dtype.type(part.bits * k)
            out = out | read(lanes, active).astype(whole.dtype) << shift
        write(lanes, active, out)

    return run


def decode_selp(form: Form) -> Run:
    type = form.type(*NUMBERS)
    form.done(4)
    write = form.target(0, type)
    read_first, read_second, choose = (
        form.source(1, type),
        form.source(2, type),
        form.source(3, PRED),
    )

    def run(lanes: Lanes, active: Mask | None) -> None:
        chosen = choose(lanes, active)
        undecided, lanes.unset = lanes.unset, None
        first = read_first(lanes, active)
        of_first, lanes.unset = lanes.unset, None
        second = read_second(lanes, active)
        # The operand that is not chosen may be unset.
        of_second, lanes.unset = lanes.unset, undecided
        for unset, matters in ((of_first, chosen), (of_second, ~chosen)):
            if unset is not None and (unset & matters).any():
                lanes.unset = (
                    unset & matters if lanes.unset is None else lanes.unset | unset & matters
                )
        write(lanes, active, np.where(chosen, first, second))

    return run


ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _unordered(a: Any, b: Any) -> Any:
    return np.isnan(a) | np.isnan(b)


def _comparison(name: str, kind: str) -> Callable[[Any, Any], Any] | None:
    if kind != "f":
        return ORDERED.get(UNSIGNED.get(name, name) if kind == "u" else name)
    if name == "num":
        return lambda a, b: ~_unordered(a, b)
    if name == "nan":
        return _unordered
    if name == "ne":
        return lambda a, b: (a != b) & ~_unordered(a, b)
    if name.endswith("u") and name[:-1] in ORDERED:
        compare = ORDERED[name[:-1]]
        return lambda a, b: compare(a, b) | _unordered(a, b)
    return ORDERED.get(name)


COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def decode_setp(form: Form) -> Run:
    type = form.type(*NUMBERS)
    compare = _comparison(form.modifiers[0], type.kind) if form.modifiers else None
    if compare is None:
        raise form.refuse(f"no comparison of .{type.name}")
    form.modifiers.pop(0)
    combined = next((name for name in COMBINE if form.flag(name)), None)
    ftz = type.name == "f32" and form.flag("ftz")
    form.done(4 if combined else 3)
    a, b = form.source(1, type), form.source(2, type)
    third = form.predicate(form.operands[3]) if combined else None
    words = form.operands[0].split("|")
    writes = [form.target(word, PRED) for word in words]

    def run(lanes: Lanes, active: Mask | None) -> None:
        x, y = a(lanes, active), b(lanes, active)
        if type.name == "bf16":
            x, y = from_bfloat16(x), from_bfloat16(y)
        elif ftz:
            x, y = flush(x), flush(y)
        holds = compare(x, y)
        for write, value in zip(writes, (holds, ~holds), strict=False):
            if combined and third is not None:
                value = COMBINE[combined](value, third(lanes, active))
            write(lanes, active, value)

    return run


def decode_cvta(form: Form) -> Run:
    """Converts between generic and global addresses, which are the same here."""
    form.flag("to")
    form.one_of(("global",))
    type = form.type("u64")
    return elementwise(form, [type], type, lambda a: a)


def decode_createpolicy(form: Form) -> Run:
    """A cache hint, which has no effect here."""
    form.one_of(("fractional",))
    type = form.type("b64")
    form.one_of(("L2::evict_last", "L2::evict_first", "L2::evict_normal", "L2::evict_unchanged"))
    write = form.target(0, type)
    return lambda lanes, active: write(lanes, active, np.uint64(0))


DECODERS: dict[str, Callable[[Form], Run]] = {
    "mov": decode_mov,
    "selp": decode_selp,
    "setp": decode_setp,
    "cvta": decode_cvta,
    "createpolicy": decode_createpolicy,
}
