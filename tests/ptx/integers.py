"""Integer arithmetic and bitwise logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.form import Form, Run
from tests.ptx.types import TYPES, Type

SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
INTEGERS = (*SIGNED, *UNSIGNED)
LOGICAL = ("b16", "b32", "b64", "pred")


def elementwise(form: Form, types: list[Type], result: Type, compute: Callable[..., Any]) -> Run:
    """d = compute(a, b, …) for operands of these types."""
    form.done(1 + len(types))
    write = form.target(0, result)
    reads = [form.source(1 + k, type) for k, type in enumerate(types)]
    if len(reads) == 1:
        (one,) = reads
        return lambda lanes, active: write(lanes, active, compute(one(lanes, active)))
    if len(reads) == 2:
        a, b = reads

        def run(lanes: Any, active: Any) -> None:
            write(lanes, active, compute(a(lanes, active), b(lanes, active)))

        return run
    return lambda lanes, active: write(
        lanes, active, compute(*(read(lanes, active) for read in reads))
    )


def same_type(compute: Callable[..., Any], operands: int, *allowed: str) -> Callable[[Form], Run]:
    def decode(form: Form) -> Run:
        type = form.type(*allowed)
        return elementwise(form, [type] * operands, type, compute)

    return decode


def wide(type: Type) -> Type:
    return TYPES[f"{type.kind}{2 * type.bits}"]


def high(a: Any, b: Any) -> Any:
    """The upper half of a product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        double = np.dtype(f"{a.dtype.kind}{bits // 4}")
        return (a.astype(double) * b.astype(double) >> double.type(bits)).astype(a.dtype)
    return _high_of_64(a, b)


def _high_of_64(a: Any, b: Any) -> Any:
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view("u8"), b.view("u8")
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    product = x1 * y1 + (middle >> half) + (((middle & low) + x0 * y1) >> half)
    if a.dtype.kind == "i":  # the unsigned view of a negative number is 2⁶⁴ too large
        product = product - (a < 0) * y - (b < 0) * x
    return product.view(a.dtype)


def decode_mul(form: Form) -> Run:
    type = form.type(*INTEGERS)
    part = form.one_of(("lo", "hi", "wide"))
    if part == "hi":
        return elementwise(form, [type] * 2, type, high)
    if part == "lo":
        return elementwise(form, [type] * 2, type, lambda a, b: a * b)
    to = wide(type)
    return elementwise(form, [type] * 2, to, lambda a, b: a.astype(to.dtype) * b.astype(to.dtype))


def decode_mad(form: Form) -> Run:
    type = form.type(*INTEGERS)
    part = form.one_of(("lo", "hi", "wide"))
    if part == "hi":
        return elementwise(form, [type] * 3, type, lambda a, b, c: high(a, b) + c)
    if part == "lo":
        return elementwise(form, [type] * 3, type, lambda a, b, c: a * b + c)
    to = wide(type)
    return elementwise(
        form, [type] * 2 + [to], to, lambda a, b, c: a.astype(to.dtype) * b.astype(to.dtype) + c
    )


def quotient(a: Any, b: Any) -> Any:
    """Rounded towards zero. Division by zero, undefined in PTX, gives all ones as on hardware."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(zero, a.dtype.type(np.iinfo(a.dtype).max), a // safe)
    floor = a // safe
    up = (floor < 0) & (floor * safe != a)
    return np.where(zero, a.dtype.type(-1), floor + up.astype(a.dtype))


def remainder(a: Any, b: Any) -> Any:
    return a - np.where(b == 0, a.dtype.type(0), quotient(a, b) * b)


DECODERS: dict[str, Callable[[Form], Run]] = {
    "mul": decode_mul,
    "mad": decode_mad,
    "add": same_type(lambda a, b: a + b, 2, *INTEGERS),
    "sub": same_type(lambda a, b: a - b, 2, *INTEGERS),
    "div": same_type(quotient, 2, *INTEGERS),
    "rem": same_type(remainder, 2, *INTEGERS),
    "abs": same_type(np.abs, 1, *SIGNED),
    "neg": same_type(lambda a: a.dtype.type(0) - a, 1, *SIGNED),
    "min": same_type(np.minimum, 2, *INTEGERS),
    "max": same_type(np.maximum, 2, *INTEGERS),
    "and": same_type(lambda a, b: a & b, 2, *LOGICAL),
    "or": same_type(lambda a, b: a | b, 2, *LOGICAL),
    "xor": same_type(lambda a, b: a ^ b, 2, *LOGICAL),
    "not": same_type(np.invert, 1, *LOGICAL),
    "cnot": same_type(lambda a: (a == 0).astype(a.dtype), 1, "b16", "b32", "b64"),
}
