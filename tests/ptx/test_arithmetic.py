"""Single instructions of the PTX executor against Python's integers, fractions and struct."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.ptx import UnsupportedPtx, parse
from tests.ptx.snippets import compute, module

rng = np.random.default_rng(0)
LANES = 256
F32 = np.float32


def integers(dtype: str, low: int | None = None) -> np.ndarray[Any, Any]:
    """Random bits, small numbers, and both limits of the type."""
    limits = np.iinfo(dtype)
    some = rng.integers(limits.min, limits.max, LANES, dtype=dtype, endpoint=True)
    some[::4] = rng.integers(0, 40, LANES // 4)
    some[:2] = limits.max, limits.min
    return some


def floats() -> np.ndarray[Any, Any]:
    """Float32 numbers of random bits, plus NaN, infinities, zeros and normal draws."""
    some = rng.integers(0, 2**32, LANES, dtype=np.uint32).view(F32)
    some[:8] = 0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38
    some[8:128] = rng.normal(size=120)
    return some


def wrapped(value: int, dtype: str) -> int:
    bits = 8 * np.dtype(dtype).itemsize
    value %= 1 << bits
    return value - (1 << bits) if dtype[0] == "i" and value >> (bits - 1) else value


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO: list[tuple[str, str, Callable[[int, int], int]]] = [
    ("add", "s", lambda a, b: a + b),
    ("sub", "s", lambda a, b: a - b),
    ("mul.lo", "s", lambda a, b: a * b),
    ("min", "s", min),
    ("max", "u", max),
    ("min", "u", min),
    ("div", "s", lambda a, b: towards_zero(a, b)),
    ("div", "u", lambda a, b: a // b),
    ("rem", "s", lambda a, b: a - b * towards_zero(a, b)),
    ("rem", "u", lambda a, b: a % b),
    ("and", "b", lambda a, b: a & b),
    ("or", "b", lambda a, b: a | b),
    ("xor", "b", lambda a, b: a ^ b),
]


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(("name", "kind", "truth"), TWO)
def test_integer_arithmetic(
    name: str, kind: str, truth: Callable[[int, int], int], bits: int
) -> None:
    dtype = f"{'i' if kind == 's' else 'u'}{bits // 8}"
    a, b = integers(dtype), integers(dtype)
    b[b == 0] = 3
    b[(a == np.iinfo(dtype).min) & (b == -1 if dtype[0] == "i" else False)] = 5
    out = compute(f"{name}.{kind}{bits} {{out}}, {{0}}, {{1}};", a, b)
    assert out.tolist() == [
        wrapped(truth(x, y), dtype) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", ["s", "u"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_upper_half_of_a_product_and_the_whole_one(kind: str, bits: int) -> None:
    letter = "i" if kind == "s" else "u"
    dtype = f"{letter}{bits // 8}"
    a, b, c = integers(dtype), integers(dtype), integers(dtype)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    high = compute(f"mul.hi.{kind}{bits} {{out}}, {{0}}, {{1}};", a, b)
    assert high.tolist() == [x * y >> bits for x, y in pairs]
    seven = compute(f"mul.hi.{kind}{bits} {{out}}, {{0}}, 7;", a)
    assert seven.tolist() == [x * 7 >> bits for x in a.tolist()]
    if bits == 64:
        return
    wide = f"{letter}{bits // 4}"
    product = compute(f"mul.wide.{kind}{bits} {{out}}, {{0}}, {{1}};", a, b, out=wide)
    assert product.tolist() == [x * y for x, y in pairs]
    c = integers(wide)
    added = compute(f"mad.wide.{kind}{bits} {{out}}, {{0}}, {{1}}, {{2}};", a, b, c, out=wide)
    assert added.tolist() == [
        wrapped(x * y + z, wide) for (x, y), z in zip(pairs, c.tolist(), strict=True)
    ]


@pytest.mark.parametrize("type", ["b16", "b32", "b64"])
def test_shifts_by_more_than_the_width_leave_nothing(type: str) -> None:
    bits = int(type[1:])
    a, count = integers(f"u{bits // 8}"), rng.integers(0, 80, LANES, dtype=np.uint32)
    pairs = list(zip(a.tolist(), count.tolist(), strict=True))
    left = compute(f"shl.{type} {{out}}, {{0}}, {{1}};", a, count)
    assert left.tolist() == [(x << n) % (1 << bits) for x, n in pairs]
    right = compute(f"shr.u{bits} {{out}}, {{0}}, {{1}};", a, count)
    assert right.tolist() == [x >> n for x, n in pairs]
    signed = a.view(f"i{bits // 8}")
    arithmetic = compute(f"shr.s{bits} {{out}}, {{0}}, {{1}};", signed, count)
    assert arithmetic.tolist() == [
        x >> n for x, n in zip(signed.tolist(), count.tolist(), strict=True)
    ]


def field(a: int, start: int, length: int, bits: int, signed: bool) -> int:
    """Section 9.7.1.19 of the PTX ISA, bit by bit."""
    last = min(start + length - 1, bits - 1)
    sign = a >> last & 1 if signed and length else 0
    return sum(
        (a >> (start + k) & 1 if k < length and start + k < bits else sign) << k
        for k in range(bits)
    )


@pytest.mark.parametrize("kind", ["u", "s"])
@pytest.mark.parametrize("bits", [32, 64])
def test_fields_of_bits(kind: str, bits: int) -> None:
    a = integers(f"u{bits // 8}")
    start, length = rng.integers(0, 70, (2, LANES), dtype=np.uint32)
    out = compute(f"bfe.{kind}{bits} {{out}}, {{0}}, {{1}}, {{2}};", a, start, length)
    triples = zip(a.tolist(), start.tolist(), length.tolist(), strict=True)
    assert out.tolist() == [field(*triple, bits, kind == "s") for triple in triples]
    b = integers(f"u{bits // 8}")
    put = compute(f"bfi.b{bits} {{out}}, {{0}}, {{1}}, {{2}}, {{3}};", a, b, start, length)
    masks = [
        ((1 << n) - 1) << s & ((1 << bits) - 1)
        for s, n in zip(start.tolist(), length.tolist(), strict=True)
    ]
    shifted = [x << s for x, s in zip(a.tolist(), start.tolist(), strict=True)]
    assert put.tolist() == [
        (y & ~m) | (x & m) for x, y, m in zip(shifted, b.tolist(), masks, strict=True)
    ]


def test_bytes_are_permuted_and_signs_copied() -> None:
    a, b, selector = (integers("u4") for _ in range(3))
    out = compute("prmt.b32 {out}, {0}, {1}, {2};", a, b, selector)
    for x, y, choice, got in zip(a, b, selector.tolist(), out, strict=True):
        given = struct.pack("<II", x, y)
        wanted = []
        for k in range(4):
            nibble = choice >> 4 * k & 15
            byte = given[nibble & 7]
            wanted.append((255 if byte > 127 else 0) if nibble & 8 else byte)
        assert struct.pack("<I", got) == bytes(wanted)


def test_any_function_of_three_bits_and_counts() -> None:
    a, b, c = (integers("u4") for _ in range(3))
    assert (compute("lop3.b32 {out}, {0}, {1}, {2}, 0x96;", a, b, c) == a ^ b ^ c).all()
    assert (compute("lop3.b32 {out}, {0}, {1}, {2}, 0xCA;", a, b, c) == (a & b | ~a & c)).all()
    counted = compute("popc.b32 {out}, {0};", a)
    assert counted.tolist() == [x.bit_count() for x in a.tolist()]
    zeros = compute("clz.b32 {out}, {0};", a)
    assert zeros.tolist() == [32 - x.bit_length() for x in a.tolist()]
    mirrored = compute("brev.b32 {out}, {0};", a)
    assert mirrored.tolist() == [int(f"{x:032b}"[::-1], 2) for x in a.tolist()]
    n = rng.integers(0, 70, LANES, dtype=np.uint32)
    funnel = compute("shf.l.wrap.b32 {out}, {0}, {1}, {2};", a, b, n)
    assert funnel.tolist() == [
        ((y << 32 | x) << (k & 31) >> 32) & 0xFFFFFFFF
        for x, y, k in zip(a.tolist(), b.tolist(), n.tolist(), strict=True)
    ]


def nearest(value: Fraction) -> float:
    """The nearest float32, ties to even, computed with Python's integers."""
    if value == 0:
        return 0.0
    exponent = max(abs(value).numerator.bit_length() - abs(value).denominator.bit_length(), -126)
    exponent -= abs(value) < Fraction(2) ** exponent and exponent > -126
    unit = Fraction(2) ** (exponent - 23)
    whole = round(value / unit)  # ties to even
    return (
        float(whole * unit)
        if abs(whole * unit) < 2**128
        else float("inf") * (1 if value > 0 else -1)
    )


def test_a_fused_product_and_sum_is_rounded_once() -> None:
    a, b = rng.normal(size=(2, LANES)).astype(F32)
    c = (-a.astype(np.float64) * b).astype(F32)  # the sum is the product's rounding error
    c[::2] = rng.normal(size=LANES // 2)
    # Ties between two float32 that the last bit of the product breaks.
    a[:2], b[:2] = F32(1 + 2.0**-12), F32(1 + 2.0**-12)
    c[:2] = F32(2.0**30), F32(-(2.0**-30))
    a[2:4], b[2:4], c[2:4] = F32(2.0**-100), F32(2.0**-49 * (1 + 2.0**-23)), F32(1e-40)
    a[4], b[4], c[4] = F32(1 + 2.0**-23), F32(1 + 2.0**-22), F32(2.0**24 + 2)
    out = compute("fma.rn.f32 {out}, {0}, {1}, {2};", a, b, c)
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), out.tolist(), strict=True):
        assert got == nearest(Fraction(x) * Fraction(y) + Fraction(z))


def test_a_product_that_float64_cannot_hold_decides_a_tie() -> None:
    """1 + 2^-23 + 2^-24·(1 - 2^-46) becomes a tie in float64, which would round up."""
    a, b, c = 2.0**-24 * (1 + 2.0**-23), 1 - 2.0**-23, 1 + 2.0**-23
    out = compute("fma.rn.f32 {out}, {0}, {1}, {2};", *(np.full(32, v, F32) for v in (a, b, c)))
    assert (out == F32(c)).all()


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("div.rn", np.divide),
        ("max", lambda a, b: np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.maximum(a, b)))),
        ("min", lambda a, b: np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.minimum(a, b)))),
        ("max.NaN", np.maximum),
        ("min.NaN", np.minimum),
    ],
)
def test_float_arithmetic(name: str, truth: Any) -> None:
    a, b = floats(), floats()[::-1]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            compute(f"{name}.f32 {{out}}, {{0}}, {{1}};", a, b), truth(a, b)
        )


def test_of_two_zeros_the_positive_one_is_larger() -> None:
    zeros = np.tile(np.array([0.0, -0.0], F32), 16)
    for name, sign in (("max", False), ("min", True)):
        for a, b in ((zeros, -zeros), (-zeros, zeros)):
            assert (np.signbit(compute(f"{name}.f32 {{out}}, {{0}}, {{1}};", a, b)) == sign).all()


def test_flushing_makes_subnormal_numbers_zeros_of_their_sign() -> None:
    a = np.tile(np.array([1e-40, -1e-40, 1.5e-38, 1.0], F32), 8)
    one = np.ones(32, F32)
    kept = compute("mul.f32 {out}, {0}, {1};", a, one)
    np.testing.assert_array_equal(kept, a)
    flushed = compute("mul.ftz.f32 {out}, {0}, {1};", a, one)
    assert flushed[:4].tolist() == [0.0, -0.0, a[2], 1.0]
    assert np.signbit(flushed[1])
    # Results are flushed too.
    small = compute("mul.ftz.f32 {out}, {0}, {1};", a, np.full(32, 0.5, F32))
    assert small[2] == 0


def test_saturation_leaves_no_negative_zero() -> None:
    a = np.tile(np.array([-0.0, 0.0, -3.0, 0.25, 3.0, np.nan, np.inf, -np.inf], F32), 4)
    out = compute("mul.sat.f32 {out}, {0}, {1};", a, np.ones(32, F32))[:8]
    assert out.tolist() == [0, 0, 0, 0.25, 1, 0, 1, 0]
    assert not np.signbit(out).any()


def test_signs_are_bits() -> None:
    a = floats().view(np.uint32)
    assert (compute("neg.f32 {out}, {0};", a) == a ^ np.uint32(1 << 31)).all()
    assert (compute("abs.f32 {out}, {0};", a) == a & np.uint32((1 << 31) - 1)).all()
    small = np.tile(np.array([1e-40, -1e-40, 2.0, -2.0], F32), 8)
    flushed = compute("neg.ftz.f32 {out}, {0};", small)[:4]
    assert flushed.tolist() == [0, 0, -2, 2]
    assert np.signbit(flushed).tolist() == [True, False, True, False]
    assert compute("abs.ftz.f32 {out}, {0};", small)[:4].tolist() == [0, 0, 2, 2]


def test_sixteen_bit_arithmetic() -> None:
    a, b, c = rng.normal(size=(3, LANES)).astype(np.float16)
    np.testing.assert_array_equal(compute("add.f16 {out}, {0}, {1};", a, b), a + b)
    fused = compute("fma.rn.f16 {out}, {0}, {1}, {2};", a, b, c)
    exact = a.astype(np.longdouble) * b + c
    np.testing.assert_array_equal(fused, exact.astype(np.float16))
    pair = np.stack([a, b], 1).view(np.uint32)[:, 0]
    doubled = compute("add.f16x2 {out}, {0}, {0};", pair)
    np.testing.assert_array_equal(
        doubled.view(np.float16).reshape(-1, 2), np.stack([a + a, b + b], 1)
    )


COMPARISONS: list[tuple[str, Callable[[float, float], bool]]] = [
    ("eq", lambda a, b: a == b),
    ("ne", lambda a, b: a < b or a > b),
    ("lt", lambda a, b: a < b),
    ("ge", lambda a, b: a >= b),
    ("ltu", lambda a, b: not a >= b),
    ("neu", lambda a, b: a != b),
    ("geu", lambda a, b: not a < b),
    ("num", lambda a, b: a == a and b == b),
    ("nan", lambda a, b: a != a or b != b),
]


@pytest.mark.parametrize(("name", "truth"), COMPARISONS)
def test_comparisons_of_floats_know_nan(name: str, truth: Callable[[float, float], bool]) -> None:
    a, b = floats(), floats()
    b[::3], b[4], a[5] = a[::3], np.nan, np.nan
    body = f"setp.{name}.f32 %p1, {{0}}, {{1}}; selp.b32 {{out}}, 1, 0, %p1;"
    out = compute(body, a, b, out=np.uint32)
    assert out.tolist() == [truth(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]


def test_comparisons_of_integers_know_their_sign() -> None:
    a, b = integers("u4"), integers("u4")
    body = "setp.{}.{} %p1|%p2, {{0}}, {{1}}; selp.b32 {{out}}, 1, 0, {};"
    assert (compute(body.format("lt", "u32", "%p1"), a, b) == (a < b)).all()
    signed = a.view(np.int32) < b.view(np.int32)
    assert (compute(body.format("lt", "s32", "%p1"), a, b) == signed).all()
    assert (compute(body.format("lt", "s32", "%p2"), a, b) == ~signed).all()
    both = (
        "setp.gt.u32 %p3, {0}, 20; setp.lt.and.u32 %p1, {0}, {1}, %p3; selp.b32 {out}, 1, 0, %p1;"
    )
    assert (compute(both, a, b) == ((a < b) & (a > 20))).all()
    other = both.replace("gt.u32 %p3, {0}, 20", "lt.u32 %p3, {0}, 1000000000")
    negated = other.replace("{1}, %p3", "{1}, !%p3")
    assert (compute(negated, a, b) == ((a < b) & (a >= 1000000000))).all()


def bfloat16(a: np.ndarray[Any, Any]) -> list[int]:
    """The upper 16 bits, rounded to nearest even, computed with Python's fractions."""
    out = []
    for value in a.tolist():
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        if value != value:
            out.append(0x7FFF)
            continue
        low, kept = bits & 0xFFFF, bits >> 16
        out.append(kept + (low > 0x8000 or (low == 0x8000 and kept & 1)))
    return out


def test_conversions_to_shorter_floats() -> None:
    a = floats()
    a[:4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, np.nan, 1 + 2.0**-11
    with np.errstate(all="ignore"):
        half = a.astype(np.float16)
    np.testing.assert_array_equal(compute("cvt.rn.f16.f32 {out}, {0};", a, out=np.float16), half)
    short = compute("cvt.rn.bf16.f32 {out}, {0};", a, out=np.uint16)
    assert short.tolist() == bfloat16(a)
    b = a[::-1].copy()
    packed = compute("cvt.rn.bf16x2.f32 {out}, {0}, {1};", a, b, out=np.uint32)
    assert packed.tolist() == [x << 16 | y for x, y in zip(bfloat16(a), bfloat16(b), strict=True)]
    back = compute("cvt.f32.bf16 {out}, {0};", short, out=F32)
    assert back.view(np.uint32).tolist() == [x << 16 for x in short.tolist()]


def test_tf32_rounds_half_away() -> None:
    a = np.tile(np.array([1 + 2.0**-11, 1 - 2.0**-12, -1 - 2.0**-11, 3.0], F32), 8)
    out = compute("cvt.rna.tf32.f32 {out}, {0};", a)
    assert out[:4].tolist() == [1 + 2.0**-10, 1.0, -1 - 2.0**-10, 3.0]


def test_conversions_to_integers_round_as_named_and_saturate() -> None:
    a = np.tile(np.array([2.5, -2.5, 3.7, -3.7, 1e20, -1e20, np.nan, 0.0], F32), 4)
    for name, wanted in (
        ("rni", [2, -2, 4, -4]),
        ("rzi", [2, -2, 3, -3]),
        ("rmi", [2, -3, 3, -4]),
        ("rpi", [3, -2, 4, -3]),
    ):
        out = compute(f"cvt.{name}.s32.f32 {{out}}, {{0}};", a, out=np.int32)
        assert out[:8].tolist() == [*wanted, 2**31 - 1, -(2**31), 0, 0]
    long = integers("i8")
    np.testing.assert_array_equal(
        compute("cvt.rn.f32.s64 {out}, {0};", long, out=F32),
        [nearest(Fraction(x)) for x in long.tolist()],
    )


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        ("f32", "s32", 0),
        ("f32", "u32", 0),
        ("f32", "s64", 1 << 63),
        ("f32", "u64", 1 << 63),
        ("f64", "s16", 1 << 15),
        ("f64", "s32", 1 << 31),
        ("f64", "u32", 1 << 31),
        ("f64", "s64", 1 << 63),
        ("f64", "u64", 1 << 63),
    ],
)
def test_nan_becomes_the_integer_that_the_isa_names(start: str, end: str, wanted: int) -> None:
    nan = np.full(32, np.nan, f"f{int(start[1:]) // 8}")
    out = compute(f"cvt.rzi.{end}.{start} {{out}}, {{0}};", nan, out=f"u{int(end[1:]) // 8}")
    assert set(out.tolist()) == {wanted}


def test_narrow_integers_extend_by_their_kind() -> None:
    a = integers("u4")
    low = (a & 0xFF).astype(np.uint8)
    assert (compute("cvt.u32.u8 {out}, {0};", a) == low).all()
    assert (
        compute("cvt.s32.s8 {out}, {0};", a) == low.view(np.int8).astype(np.int32).view("u4")
    ).all()
    wide = compute("cvt.s64.s32 {out}, {0};", a, out=np.int64)
    assert (wide == a.view(np.int32)).all()


def test_registers_are_split_and_joined() -> None:
    a = integers("u8")
    body = "mov.b64 {{%r60, %r61}}, {0}; mov.b64 {out}, {{%r61, %r60}};"
    assert (compute(body, a) == (a >> np.uint64(32) | a << np.uint64(32))).all()
    high = compute("mov.b64 {{_, {out}}}, {0};", a, out=np.uint32)
    assert (high == a >> np.uint64(32)).all()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("frobnicate.b32 %r1, %r2;", "instruction not supported"),
        ("add.exotic.s32 %r1, %r2, %r3;", "unknown modifier .exotic"),
        ("add.s32 %r1, %r2;", "expected 3 operands, got 2"),
        ("add.s32 %r1, %r2, %d3;", "%d3 has 64 bits, and .s32 takes 32"),
        ("add.s32 %r1, %r2, %q3;", "cannot read the operand %q3"),
        ("fma.rz.f32 %r1, %r2, %r3, %r4;", "expected one of the modifiers rn"),
        ("cvt.rz.f32.s32 %r1, %r2;", "expected one of the modifiers rn"),
        ("bra nowhere;", "no label nowhere"),
        ("wgmma.fence.sync.aligned;", "instruction not supported"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_line(line: str, why: str) -> None:
    with pytest.raises(UnsupportedPtx) as caught:
        parse(module(f"\n    {line}\n    ret;"))
    assert why in str(caught.value)
    assert f"line 14: {line.rstrip(';')}" in str(caught.value)
