"""Shifts, bit fields and byte permutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.form import Form, Run
from tests.ptx.integers import INTEGERS, elementwise, same_type
from tests.ptx.types import U32, Array


def shift_left(a: Any, count: Any) -> Any:
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: Any, count: Any) -> Any:
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":  # filled with the sign bit
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
    """Funnel shift: 32 bits of the 64-bit number (b, a)."""
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


def ones(count: Any, like: Any) -> Any:
    """A number whose lowest `count` bits are set."""
    one, bits = like.dtype.type(1), 8 * like.dtype.itemsize
    return np.where(count >= bits, ~like.dtype.type(0), shift_left(one, count) - one)


def decode_bfe(form: Form) -> Run:
    """`length` bits from `start` on. Signed types are sign-extended from the field's last bit."""
    type = form.type("u32", "s32", "u64", "s64")
    bits = np.uint32(type.bits)

    def compute(a: Any, start: Any, length: Any) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        raw = a.view(type.unsigned)
        taken = np.minimum(length, bits - np.minimum(start, bits))
        field = shift_right(raw, start) & ones(taken, raw)
        if type.kind == "u":
            return field
        last = shift_right(raw, np.minimum(start + length - np.uint32(1), bits - np.uint32(1)))
        sign = (last & raw.dtype.type(1)).astype(bool) & (length > 0)
        return np.where(sign, field | ~ones(taken, raw), field).view(type.dtype)

    return elementwise(form, [type, U32, U32], type, compute)


def decode_bfi(form: Form) -> Run:
    """b with the low `length` bits of a inserted at `start`."""
    type = form.type("b32", "b64")

    def compute(a: Any, b: Any, start: Any, length: Any) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        mask = shift_left(ones(length, b), start)
        return (b & ~mask) | (shift_left(a, start) & mask)

    return elementwise(form, [type, type, U32, U32], type, compute)


def permute(a: Any, b: Any, selector: Any) -> Array:
    """Four bytes of (b, a), each chosen by three bits; a fourth bit replicates its sign."""
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
    """Any function of three bits, given as a lookup table."""
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
            none = left < left.dtype.type(1 << (bits - step))
            zeros = zeros + none.astype(a.dtype) * a.dtype.type(step)
            left = np.where(none, left << a.dtype.type(step), left)
    return np.where(a == 0, a.dtype.type(bits), zeros)


def reverse_bits(a: Any) -> Any:
    bits, out = 8 * a.dtype.itemsize, np.zeros_like(a)
    for k in range(bits):
        out = out << a.dtype.type(1) | (a >> a.dtype.type(k) & a.dtype.type(1))
    return out


DECODERS: dict[str, Callable[[Form], Run]] = {
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
