"""cvt: conversion between types, with the named rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.floats import flush, from_bfloat16, to_bfloat16
from tests.ptx.form import Form, Run
from tests.ptx.integers import elementwise
from tests.ptx.types import TYPES, Type

INTEGERS = [f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)]
FLOATS = ["f16", "bf16", "f32", "f64"]
TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def decode_cvt(form: Form) -> Run:
    start = form.type(*INTEGERS, *FLOATS)
    end = form.type(*INTEGERS, *FLOATS, "tf32", "f16x2", "bf16x2")
    if end.name in ("f16x2", "bf16x2"):
        return _pack(form, start, end)
    if end.name == "tf32":
        return _to_tf32(form, start)
    if start.kind != "f" and end.kind != "f":
        return _one(form, start, end, _between_integers(start, end, form.flag("sat")))
    if start.kind == "f" and end.kind == "f":
        return _one(form, start, end, _between_floats(form, start, end))
    if end.kind == "f":
        form.one_of(("rn",))
        return _one(form, start, end, lambda a: _rounded(a, end))
    rounding = TO_INTEGER[form.one_of(TO_INTEGER)]
    form.flag("sat")  # the conversion always saturates
    ftz = form.flag("ftz")
    return _one(form, start, end, _to_integer(start, end, rounding, ftz))


def _one(form: Form, start: Type, end: Type, convert: Callable[[Any], Any]) -> Run:
    form.done(2)
    read, write = form.source(1, start, narrow=True), form.target(0, end, extend=True)
    return lambda lanes, active: write(lanes, active, convert(read(lanes, active)))


def _between_integers(start: Type, end: Type, saturate: bool) -> Callable[[Any], Any]:
    if not saturate:
        return lambda a: a.astype(end.dtype)
    low = max(np.iinfo(start.dtype).min, np.iinfo(end.dtype).min)
    high = min(np.iinfo(start.dtype).max, np.iinfo(end.dtype).max)
    return lambda a: np.clip(a, low, high).astype(end.dtype)


def _between_floats(form: Form, start: Type, end: Type) -> Callable[[Any], Any]:
    ftz = form.flag("ftz")
    whole = next((name for name in TO_INTEGER if name in form.modifiers), None)
    if whole:
        form.flag(whole)
        if start is not end or start.name == "bf16":
            raise form.refuse("cannot round to an integer and convert to another type")
        return lambda a: TO_INTEGER[whole](flush(a) if ftz else a)
    if end.bits < start.bits or (start.bits == 16 and end.bits == 16 and start is not end):
        form.one_of(("rn",))
    if ftz and "f32" not in (start.name, end.name):
        raise form.refuse("ftz needs an f32")

    def convert(a: Any) -> Any:
        a = flush(a) if ftz and start.name == "f32" else a
        out = _rounded(from_bfloat16(a) if start.name == "bf16" else a, end)
        return flush(out) if ftz and end.name == "f32" else out

    return convert


def _rounded(a: Any, end: Type) -> Any:
    """Numpy numbers → the nearest ones of a floating-point type, ties to even."""
    if end.name != "bf16":
        return a.astype(end.dtype)
    if a.dtype == np.float32 or a.dtype.itemsize <= 2:
        return to_bfloat16(a.astype(np.float32))
    # Rounding to odd first makes the second rounding harmless.
    near = a.astype(np.float32)
    exact, bits = a.astype(np.longdouble), np.asarray(near).view(np.uint32)
    toward = np.where(exact > near, np.inf, -np.inf).astype(np.float32)
    inexact = (exact != near) & (bits & np.uint32(1) == 0) & np.isfinite(near)
    return to_bfloat16(np.where(inexact, np.nextafter(near, toward), near))


def _to_integer(
    start: Type, end: Type, rounding: Callable[[Any], Any], ftz: bool
) -> Callable[[Any], Any]:
    limits = np.iinfo(end.dtype)
    low, high = int(limits.min), int(limits.max)
    # PTX ISA 9.7.9.21: NaN gives 0 if neither type has 64 bits, else only the highest bit.
    top = low if end.kind == "s" else 1 << (end.bits - 1)
    nan = top if 64 in (start.bits, end.bits) else 0

    def convert(a: Any) -> Any:
        a = from_bfloat16(a) if start.name == "bf16" else a
        whole = rounding(flush(a) if ftz and start.name == "f32" else a).astype(np.float64)
        inside = np.where((whole >= low) & (whole < float(high)), whole, 0.0)
        out = inside.astype(end.dtype)
        out = np.where(whole >= float(high), end.dtype.type(high), out)
        out = np.where(whole < low, end.dtype.type(low), out)
        return np.where(np.isnan(whole), end.dtype.type(nan), out)

    return convert


def _pack(form: Form, start: Type, end: Type) -> Run:
    """Two float32 → 32 bits, the first one in the upper half."""
    if start.name != "f32":
        raise form.refuse(f"cannot convert .{start.name} to .{end.name}")
    form.one_of(("rn",))
    relu = form.flag("relu")
    one = TYPES[end.name[:-2]]

    def bits(a: Any) -> Any:
        if relu:
            a = np.where(a > 0, a, np.where(np.isnan(a), a, np.float32(0)))
        if one.name == "bf16":
            return to_bfloat16(a).astype(np.uint32)
        half = a.astype(np.float16)
        return np.where(np.isnan(a), np.uint16(0x7FFF), half.view(np.uint16)).astype(np.uint32)

    return elementwise(
        form, [start] * 2, TYPES["b32"], lambda a, b: bits(a) << np.uint32(16) | bits(b)
    )


def _to_tf32(form: Form, start: Type) -> Run:
    """Float32 rounded to ten fraction bits; the remaining bits are zero."""
    if start.name != "f32":
        raise form.refuse(f"cannot convert .{start.name} to .tf32")
    away = form.one_of(("rna", "rn")) == "rna"

    def compute(a: Any) -> Any:
        bits = a.view(np.uint32)
        half = np.uint32(0x1000) if away else np.uint32(0xFFF) + (bits >> np.uint32(13) & 1)
        near = (bits + half) & np.uint32(0xFFFFE000)
        return np.where(np.isfinite(a), near, bits)

    return elementwise(form, [start], TYPES["b32"], compute)


DECODERS: dict[str, Callable[[Form], Run]] = {"cvt": decode_cvt}
