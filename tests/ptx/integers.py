"""Integer and bit arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .form import Form, Run
from .types import PRED, TYPES, U32, Array, Type

SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
INTEGERS = (*SIGNED, *UNSIGNED)
BITS = ("b16", "b32", "b64", "pred")


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
    signed = a.dtype.kind == "i"
    product = np.asarray(a, object) * np.asarray(b, object) >> 64
    return (product & (2**64 - 1)).astype(np.uint64).view("i8" if signed else "u8")


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
    """Rounded towards zero. By zero it is all ones, as on the hardware; PTX leaves it open."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(zero, a.dtype.type(np.iinfo(a.dtype).max), a // safe)
    floor = a // safe
    up = (floor < 0) & (floor * safe != a)
    return np.where(zero, a.dtype.type(-1), floor + up.astype(a.dtype))


def remainder(a: Any, b: Any) -> Any:
    return a - np.where(b == 0, a.dtype.type(0), quotient(a, b) * b)


def shift_left(a: Any, count: Any) -> Any:
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: Any, count: Any) -> Any:
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":  # the sign fills
        return a >> np.minimum(count, bits - 1).astype(a.dtype)
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def decode_shl(form: Form) -> Run:
    type = form.type("b16", "b32", "b64")
    return elementwise(form, [type, U32], type, shift_left)


def decode_shr(form: Form) -> Run:
    type = form.type("b16", "b32", "b64", *INTEGERS)
    return elementwise(form, [type, U32], type, shift_right)


def decode_shf(form: Form) -> Run:
    """A funnel: 32 bits of the 64 of (b, a), shifted."""
    type = form.type("b32")
    left = form.one_of(("l", "r")) == "l"
    clamp = form.one_of(("clamp", "wrap")) == "clamp"

    def compute(a: Any, b: Any, count: Any) -> Array:
        n = np.minimum(count, 32) if clamp else count & np.uint32(31)
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        if left:
            return (both << n.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)
        return (both >> n.astype(np.uint64)).astype(np.uint32)

    return elementwise(form, [type, type, U32], type, compute)


def decode_bfe(form: Form) -> Run:
    """`length` bits from `start` on; signed types extend the last bit taken."""
    type = form.type("u32", "s32", "u64", "s64")
    bits, unsigned = type.bits, type.unsigned.type

    def compute(a: Any, start: Any, length: Any) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        raw = a.view(unsigned)
        field = shift_right(raw, start)
        mask = np.where(length >= bits, ~unsigned(0), shift_left(unsigned(1), length) - unsigned(1))
        out = field & mask
        if type.kind == "u":
            return out
        last = np.minimum(start + length - np.uint32(1), np.uint32(bits - 1))
        sign = (shift_right(raw, last) & unsigned(1)).astype(bool) & (length > 0)
        # Bits beyond the end of the number are its sign, too.
        taken = np.minimum(length, np.uint32(bits) - np.minimum(start, np.uint32(bits)))
        keep = np.where(taken >= bits, ~unsigned(0), shift_left(unsigned(1), taken) - unsigned(1))
        return np.where(sign, out | ~keep, out).view(type.dtype)

    return elementwise(form, [type, U32, U32], type, compute)


def decode_bfi(form: Form) -> Run:
    """The low `length` bits of a, put into b from `start` on."""
    type = form.type("b32", "b64")
    one = type.dtype.type(1)

    def compute(a: Any, b: Any, start: Any, length: Any) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        low = np.where(length >= type.bits, ~type.dtype.type(0), shift_left(one, length) - one)
        mask = shift_left(low, start)
        return (b & ~mask) | (shift_left(a, start) & mask)

    return elementwise(form, [type, type, U32, U32], type, compute)


def permute(a: Any, b: Any, selector: Any) -> Array:
    """Four bytes out of the eight of (b, a), each by four bits; the highest copies a sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out: Any = np.uint32(0)
    for k in range(4):
        choice = selector >> np.uint32(4 * k) & np.uint32(15)
        byte = both >> (choice.astype(np.uint64) & np.uint64(7)) * np.uint64(8)
        byte = (byte & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
        out = out | np.where(choice >= 8, sign, byte) << np.uint32(8 * k)
    return out


def decode_prmt(form: Form) -> Run:
    type = form.type("b32")
    return elementwise(form, [type] * 3, type, permute)


def decode_lop3(form: Form) -> Run:
    """Any function of three bits, by its table."""
    type = form.type("b32")
    table = form.integer(4)
    form.operands.pop(4)

    def compute(a: Any, b: Any, c: Any) -> Array:
        out: Any = np.uint32(0)
        for k in range(8):
            if table >> k & 1:
                x, y, z = (v if k >> s & 1 else ~v for v, s in ((a, 2), (b, 1), (c, 0)))
                out = out | (x & y & z)
        return out

    return elementwise(form, [type] * 3, type, compute)


def count_to_u32(compute: Callable[[Any, int], Any], *allowed: str) -> Callable[[Form], Run]:
    def decode(form: Form) -> Run:
        type = form.type(*allowed)
        return elementwise(form, [type], U32, lambda a: compute(a, type.bits).astype(np.uint32))

    return decode


def leading_zeros(a: Any, bits: int) -> Any:
    left, zeros = a, np.zeros_like(a)
    for step in (32, 16, 8, 4, 2, 1):
        if step < bits:
            none = left < type(left.dtype.type(0))(1 << (bits - step))
            zeros = zeros + none.astype(a.dtype) * a.dtype.type(step)
            left = np.where(none, left << a.dtype.type(step), left)
    return np.where(a == 0, a.dtype.type(bits), zeros)


def reverse_bits(a: Any) -> Any:
    bits, out = 8 * a.dtype.itemsize, np.zeros_like(a)
    for k in range(bits):
        out = out << a.dtype.type(1) | (a >> a.dtype.type(k) & a.dtype.type(1))
    return out


def complement(a: Any) -> Any:
    return ~a


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
    "and": same_type(lambda a, b: a & b, 2, *BITS),
    "or": same_type(lambda a, b: a | b, 2, *BITS),
    "xor": same_type(lambda a, b: a ^ b, 2, *BITS),
    "not": same_type(complement, 1, *BITS),
    "cnot": same_type(lambda a: (a == 0).astype(a.dtype), 1, "b16", "b32", "b64"),
    "shl": decode_shl,
    "shr": decode_shr,
    "shf": decode_shf,
    "bfe": decode_bfe,
    "bfi": decode_bfi,
    "prmt": decode_prmt,
    "lop3": decode_lop3,
    "popc": count_to_u32(lambda a, bits: np.bitwise_count(a), "b32", "b64"),
    "clz": count_to_u32(leading_zeros, "b32", "b64"),
    "brev": same_type(reverse_bits, 1, "b32", "b64"),
}

__all__ = ["DECODERS", "PRED", "elementwise", "same_type"]
