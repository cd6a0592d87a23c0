"""Floating-point arithmetic that IEEE 754 defines to the last bit; approximate.py has the rest.

NaN payloads are not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.form import Form, Run
from tests.ptx.integers import elementwise
from tests.ptx.types import TYPES, Type

SIGN, EXPONENT = np.uint32(1 << 31), np.uint32(0x7F800000)


def flush(a: Any) -> Any:
    """Float32 with subnormal numbers replaced by zeros of the same sign."""
    bits = a.view(np.uint32)
    return np.where(bits & EXPONENT == 0, bits & SIGN, bits).view(np.float32)


def flushing(compute: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: flush(compute(*(flush(operand) for operand in operands)))


def saturating(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Clamp results to [+0, 1]; NaN and -0 become +0."""

    def saturated(*operands: Any) -> Any:
        exact = compute(*operands)
        return np.where(exact > 0, np.minimum(exact, np.float32(1)), np.float32(0))

    return saturated


def to_bfloat16(a: Any) -> Any:
    """Float32 → the bits of the nearest bfloat16, ties to even; NaN → 0x7FFF."""
    bits = a.view(np.uint32)
    near = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.where(np.isnan(a), np.uint32(0x7FFF), near >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fused(a: Any, b: Any, c: Any) -> Any:
    """a·b + c in float32, rounded once."""
    product = a.astype(np.float64) * b  # exact: 48 bits
    total = product + c
    bits = np.asarray(total).view(np.uint64)
    # A second rounding can go wrong only at the middle between two float32, which has these low 29
    # bits, or near zero, where float32 has fewer bits.
    halfway = bits & np.uint64(0x1FFFFFFF) == np.uint64(0x10000000)
    small = (np.abs(total) < 2.0**-125) & (total != 0)
    if (halfway | small).any():
        total = _to_odd(product, c.astype(np.float64), total)
    return total.astype(np.float32)


def _to_odd(a: Any, b: Any, total: Any) -> Any:
    # Where float64 had to round, take the neighbour with an odd last bit. Rounding that again gives
    # the same as rounding the exact value once (Boldo and Melquiond).
    back = total - a
    error = (a - (total - back)) + (b - back)
    even = np.asarray(total).view(np.uint64) & np.uint64(1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even & np.isfinite(total), neighbour, total)


def largest(a: Any, b: Any) -> Any:
    """The maximum. A number wins over NaN (np.fmax keeps a signalling NaN), and +0 over -0."""
    return _of_zeros(np.where((a > b) | np.isnan(b), a, b), a, b, np.bitwise_and)


def smallest(a: Any, b: Any) -> Any:
    return _of_zeros(np.where((a < b) | np.isnan(b), a, b), a, b, np.bitwise_or)


def _of_zeros(chosen: Any, a: Any, b: Any, combine: Any) -> Any:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    both = combine(a.view(unsigned), b.view(unsigned)).view(a.dtype)
    return np.where(a == b, both, chosen)


def or_nan(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compute(a: Any, b: Any) -> Any:
        return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), choose(a, b))

    return compute


def in_float32(compute: Callable[..., Any], type: Type) -> Callable[..., Any]:
    """Compute on 16-bit operands in float32 and round the result once more.

    For operands this short, double rounding does not change a sum, a product or a quotient.
    """
    if type.name == "bf16":
        return lambda *operands: to_bfloat16(compute(*map(from_bfloat16, operands)))
    return lambda *operands: compute(*(x.astype(np.float32) for x in operands)).astype(np.float16)


def halves(compute: Callable[..., Any], one: Type) -> Callable[..., Any]:
    """The same for two packed numbers in 32 bits."""

    def both(*operands: Any) -> Any:
        shape = np.broadcast_shapes(*(x.shape for x in operands))
        pairs = [
            np.ascontiguousarray(np.broadcast_to(x, shape)).view(one.dtype).reshape(-1, 2)
            for x in operands
        ]
        out = [compute(*(pair[:, k] for pair in pairs)) for k in range(2)]
        return np.stack(out, 1).view(np.uint32)[:, 0]

    return both


def arithmetic(compute: Callable[..., Any], operands: int) -> Callable[[Form], Run]:
    """add, sub and mul, rounded to nearest even, the only supported rounding."""

    def decode(form: Form) -> Run:
        type = form.type("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
        form.flag("rn")
        ftz, saturate = form.flag("ftz"), form.flag("sat") if type.name == "f32" else False
        function = compute
        if type.name in ("f16", "bf16"):
            function = in_float32(compute, type)
        elif type.name in ("f16x2", "bf16x2"):
            one = TYPES[type.name[:-2]]
            function = halves(in_float32(compute, one), one)
        elif ftz:
            function = flushing(compute)
        if ftz and type.name != "f32":
            raise form.refuse("flushing of 16-bit numbers is not supported")
        if saturate:
            function = saturating(function)
        return elementwise(form, [type] * operands, type, function)

    return decode


def decode_fma(form: Form) -> Run:
    type = form.type("f32", "f16", "bf16", "f16x2", "bf16x2")
    form.one_of(("rn",))
    if type.name == "f32":
        function: Callable[..., Any] = flushing(fused) if form.flag("ftz") else fused
        return elementwise(form, [type] * 3, type, function)
    one = TYPES[type.name.removesuffix("x2")]
    narrow = _fma_bfloat16 if one.name == "bf16" else _fma_float16
    function = narrow if one is type else halves(narrow, one)
    return elementwise(form, [type] * 3, type, function)


def _fma_float16(a: Any, b: Any, c: Any) -> Any:
    product = a.astype(np.float64) * b
    return _to_odd(product, c.astype(np.float64), product + c).astype(np.float16)


def _fma_bfloat16(a: Any, b: Any, c: Any) -> Any:
    x, y, z = (from_bfloat16(v).astype(np.float64) for v in (a, b, c))
    total = x * y + z
    odd = _to_odd(x * y, z, total)
    near = odd.astype(np.float32)
    # The sum is also rounded to odd in float32, before the last rounding.
    bits = np.asarray(near).view(np.uint32)
    toward = np.where(odd > near, np.inf, -np.inf).astype(np.float32)
    inexact = (odd != near) & (bits & np.uint32(1) == 0) & np.isfinite(near)
    return to_bfloat16(np.where(inexact, np.nextafter(near, toward), near))


def extremum(choose: Callable[[Any, Any], Any]) -> Callable[[Form], Run]:
    def decode(form: Form) -> Run:
        type = form.type("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
        function = or_nan(choose) if form.flag("NaN") else choose
        if type.name == "f32" and form.flag("ftz"):
            function = flushing(function)
        one = TYPES[type.name.removesuffix("x2")]
        if one.bits == 16:
            narrow = in_float32(function, one)
            function = narrow if one is type else halves(narrow, one)
        return elementwise(form, [type] * 2, type, function)

    return decode


def bitwise(compute: Callable[[Any, int], Any]) -> Callable[[Form], Run]:
    """neg and abs: `compute` gets the bits and the value of the sign bit."""

    def decode(form: Form) -> Run:
        type = form.type("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
        flushed = type.name == "f32" and form.flag("ftz")
        sign = 0x80008000 if type.name.endswith("x2") else 1 << (type.bits - 1)
        unsigned = TYPES[f"u{type.bits}"]
        bit = unsigned.dtype.type(sign)

        def signed(a: Any) -> Any:
            # Subnormal inputs become zeros before the sign changes.
            return compute(flush(a.view(np.float32)).view(np.uint32) if flushed else a, bit)

        return elementwise(form, [unsigned], unsigned, signed)

    return decode


def rounded(compute: Callable[..., Any], operands: int) -> Callable[[Form], Run]:
    """div.rn, rcp.rn and sqrt.rn, as IEEE 754 defines them."""

    def decode(form: Form) -> Run:
        type = form.type("f32", "f64")
        form.one_of(("rn",))
        ftz = form.flag("ftz")
        function = flushing(compute) if ftz and type.name == "f32" else compute
        return elementwise(form, [type] * operands, type, function)

    return decode


DECODERS: dict[str, Callable[[Form], Run]] = {
    "add": arithmetic(lambda a, b: a + b, 2),
    "sub": arithmetic(lambda a, b: a - b, 2),
    "mul": arithmetic(lambda a, b: a * b, 2),
    "fma": decode_fma,
    "min": extremum(smallest),
    "max": extremum(largest),
    "neg": bitwise(lambda a, sign: a ^ sign),
    "abs": bitwise(lambda a, sign: a & ~sign),
    "div": rounded(lambda a, b: a / b, 2),
    "rcp": rounded(lambda a: a.dtype.type(1) / a, 1),
    "sqrt": rounded(np.sqrt, 1),
}
