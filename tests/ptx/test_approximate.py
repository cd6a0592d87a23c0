"""Approximate instructions use all of the error that the PTX ISA allows, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ptx import Units
from tests.ptx.snippets import compute

F32 = np.float32
rng = np.random.default_rng(1)


def ulp(exact: Any) -> Any:
    return np.spacing(np.abs(exact).astype(F32)).astype(np.float64)


def of_rounded(exact: Any) -> Any:
    return 2 * ulp(exact) + np.abs(exact.astype(F32) - exact)


def lg2_bound(exact: Any, a: Any) -> Any:
    return np.where((a > 0.5) & (a < 2), 2.0**-22, 2.0**-22 * np.abs(exact))


# Instruction → its true value, the documented bound, and arguments.
UNITS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "ex2.approx": (np.exp2, lambda exact, a: of_rounded(exact), rng.uniform(-120, 120, 4096)),
    "lg2.approx": (np.log2, lg2_bound, np.exp(rng.uniform(-80, 80, 4096))),
    "rcp.approx": (lambda a: 1 / a, lambda exact, a: ulp(exact), rng.normal(size=4096)),
    "sqrt.approx": (np.sqrt, lambda exact, a: 2.0**-23 * exact, rng.exponential(9, 4096)),
    "rsqrt.approx": (
        lambda a: a**-0.5,
        lambda exact, a: 2.0**-22.9 * exact,
        rng.exponential(9, 4096),
    ),
    "sin.approx": (np.sin, lambda exact, a: 2.0**-20.5, rng.uniform(-6.2, 6.2, 4096)),
    "cos.approx": (np.cos, lambda exact, a: 2.0**-20.5, rng.uniform(-6.2, 6.2, 4096)),
    "tanh.approx": (np.tanh, lambda exact, a: 2.0**-11 * np.abs(exact), rng.normal(size=4096)),
}


def run(unit: str, *operands: Any, units: Units) -> Any:
    registers = ", ".join(f"{{{k}}}" for k in range(len(operands)))
    body = f"{unit}.f32 {{out}}, {registers};"
    parts = [
        compute(body, *(a[at : at + 1024] for a in operands), units=units)
        for at in range(0, len(operands[0]), 1024)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("unit", UNITS)
def test_units_err_by_the_documented_error_and_no_more(unit: str) -> None:
    function, bound, arguments = UNITS[unit]
    a = arguments.astype(F32)
    exact = function(a.astype(np.float64))
    limit = np.broadcast_to(bound(exact, a.astype(np.float64)), exact.shape)
    nearest = run(unit, a, units=Units.NEAREST)
    np.testing.assert_array_equal(nearest, exact.astype(F32))
    for units, sign in ((Units.UP, 1.0), (Units.DOWN, -1.0)):
        error = (run(unit, a, units=units).astype(np.float64) - exact) * sign
        # The nearest float32 is always allowed, though it may lie beyond a bound below half an ulp.
        assert (error <= np.maximum(limit, np.abs(nearest - exact)) * (1 + 1e-12)).all()
        # All of the bound is used, up to the spacing of float32.
        assert (error >= limit - ulp(np.abs(exact) + limit)).all()
        assert error.sum() > 0.45 * limit.sum()


@pytest.mark.parametrize("unit", ["div.full", "div.approx"])
def test_quotients_err_by_two_ulps(unit: str) -> None:
    a, b = rng.normal(size=(2, 2048)).astype(F32)
    exact = a.astype(np.float64) / b
    for units, sign in ((Units.UP, 1.0), (Units.DOWN, -1.0)):
        error = (run(unit, a, b, units=units).astype(np.float64) - exact) * sign / ulp(exact)
        assert error.max() <= 2
        assert error.min() > 1
    far = np.full(32, 2.0**127, F32)
    of_far = compute(f"{unit}.f32 {{out}}, {{0}}, {{1}};", np.ones(32, F32), far)
    assert (of_far == (2.0**-127 if unit == "div.full" else 0)).all()


@pytest.mark.parametrize("units", list(Units))
def test_special_cases_are_as_the_tables_say(units: Units) -> None:
    special = np.tile(np.array([-np.inf, -0.0, 0.0, np.inf, np.nan], F32), 32)[:128]
    nan, inf = np.nan, np.inf
    tables = {
        "ex2": [0.0, 1.0, 1.0, inf, nan],
        "lg2": [nan, -inf, -inf, inf, nan],
        "rcp": [-0.0, -inf, inf, 0.0, nan],
        "sqrt": [nan, -0.0, 0.0, inf, nan],
        "rsqrt": [nan, -inf, inf, 0.0, nan],
        "sin": [nan, -0.0, 0.0, nan, nan],
        "cos": [nan, 1.0, 1.0, nan, nan],
        "tanh": [-1.0, -0.0, 0.0, 1.0, nan],
    }
    for name, wanted in tables.items():
        out = compute(f"{name}.approx.f32 {{out}}, {{0}};", special, units=units)[:5]
        np.testing.assert_array_equal(out, np.array(wanted, F32), err_msg=name)
        signs = [np.signbit(w) for w in wanted if w == w]
        assert [np.signbit(o) for o in out if o == o] == signs, name


@pytest.mark.parametrize("units", list(Units))
def test_where_no_error_is_bounded_the_result_is_nan(units: Units) -> None:
    a = np.tile(np.array([314.15, -314.15, 314.17, -314.17, 1e9], F32), 32)[:128]
    for name in ("sin", "cos"):
        out = compute(f"{name}.approx.f32 {{out}}, {{0}};", a, units=units)[:5]
        assert np.isnan(out).tolist() == [False, False, True, True, True]
    b = np.tile(np.array([2.0**-126, -(2.0**-126), 1e-40, -1e-40, 0.0], F32), 32)[:128]
    one = np.full(128, 0.5, F32)
    out = compute("div.approx.f32 {out}, {0}, {1};", one, b, units=units)[:5]
    assert np.isnan(out).tolist() == [False, False, True, True, False]
    # Flushed to zero they have a row in the table, and div.full supports all numbers.
    flushed = compute("div.approx.ftz.f32 {out}, {0}, {1};", one, b, units=units)[2:5]
    assert flushed.tolist() == [np.inf, -np.inf, np.inf]
    assert not np.isnan(compute("div.full.f32 {out}, {0}, {1};", one, b, units=units)).any()


def test_a_quotient_of_nan_is_nan_however_large_the_divisor() -> None:
    nan, far = np.full(32, np.nan, F32), np.full(32, 2.0**127, F32)
    assert np.isnan(compute("div.approx.f32 {out}, {0}, {1};", nan, far)).all()


@pytest.mark.parametrize("units", list(Units))
def test_flushing_takes_subnormal_arguments_and_results_for_zero(units: Units) -> None:
    subnormal = np.tile(np.array([1e-40, -1e-40], F32), 16)
    assert np.isfinite(compute("lg2.approx.f32 {out}, {0};", np.abs(subnormal))).all()
    assert (compute("lg2.approx.ftz.f32 {out}, {0};", subnormal, units=units) == -np.inf).all()
    low = np.full(32, -130.0, F32)
    assert (compute("ex2.approx.f32 {out}, {0};", low, units=units) > 0).all()
    assert (compute("ex2.approx.ftz.f32 {out}, {0};", low, units=units) == 0).all()


def test_a_positive_result_never_becomes_negative_nor_a_finite_one_infinite() -> None:
    a = np.linspace(-160, -140, 64).astype(F32)
    assert (compute("ex2.approx.f32 {out}, {0};", a, units=Units.DOWN) >= 0).all()
    high = np.full(32, np.nextafter(F32(128), F32(0)), F32)
    assert np.isfinite(compute("ex2.approx.f32 {out}, {0};", high, units=Units.UP)).all()
