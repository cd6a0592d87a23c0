"""Approximate instructions, within the errors that the PTX ISA documents, in three ways.

`Units.NEAREST` returns the float32 nearest to the true value, `UP` the largest one within the
documented error, `DOWN` the smallest. A bound that holds for all three does not depend on numpy's
accuracy. Real hardware errs less, and not always in one direction. If the ISA's table of special
cases names a result (for an argument of zero, infinity or NaN), all three return it. If the ISA
bounds no error, all three return NaN.

The errors are from PTX ISA 9.1, sections 9.7.3.8 to 9.7.3.22.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.floats import flush
from tests.ptx.form import Form, Run
from tests.ptx.lanes import Lanes
from tests.ptx.types import Array, Mask
from tests.ptx.units import Units

DIV_ULPS = 2  # 9.7.3.8: div.full everywhere, div.approx for 2^-126 <= |b| <= 2^126
SMALLEST_NORMAL = 2.0**-126
RCP_ULPS = 1  # 9.7.3.13: "across the full range of inputs"
SQRT_RELATIVE = 2.0**-23  # 9.7.3.15
RSQRT_RELATIVE = 2.0**-22.9  # 9.7.3.16
SINE_ABSOLUTE = 2.0**-20.5  # 9.7.3.18 and 9.7.3.19: within 2 pi
FAR_SINE_ABSOLUTE = 2.0**-14.7  # the same: within 100 pi
SINE_RANGE = 100 * np.pi  # the same: no bound beyond it
LG2_ABSOLUTE = 2.0**-22  # 9.7.3.20: between 0.5 and 2
LG2_RELATIVE = 2.0**-22  # the same: elsewhere
EX2_ULPS = 2  # 9.7.3.21: "from correctly rounded result across the full range of inputs"
TANH_RELATIVE = 2.0**-11  # 9.7.3.22

LARGEST = float(np.finfo(np.float32).max)

# (true value in float64, arguments) → the largest allowed distance of the result from it.
Error = Callable[..., Any]


def within(exact: Any, error: Any, units: Units) -> Array:
    """The float32 that lies farthest from `exact` on the side of `units`, no farther than `error`.

    The nearest float32, which a correctly rounded unit returns, is always allowed.
    """
    nearest = exact.astype(np.float32)
    if units is Units.NEAREST:
        return nearest
    sign = 1.0 if units is Units.UP else -1.0
    limit = np.clip(exact + sign * error, -LARGEST, LARGEST)
    pushed = limit.astype(np.float32)
    beyond = (pushed - limit) * sign > 0
    pushed = np.where(beyond, np.nextafter(pushed, np.float32(-sign * np.inf)), pushed)
    farther = (pushed - nearest.astype(np.float64)) * sign > 0
    return np.where(farther & np.isfinite(nearest) & (error > 0), pushed, nearest)


def ulps(exact: Any, count: int) -> Any:
    """`count` units in the last place of the nearest float32, but too few to change the sign."""
    nearest = np.minimum(np.abs(exact), LARGEST).astype(np.float32)
    return np.minimum(count * np.spacing(nearest).astype(np.float64), np.abs(exact))


def ex2_error(exact: Any, a: Any) -> Any:
    rounded = np.minimum(exact, LARGEST).astype(np.float32).astype(np.float64)
    return np.minimum(ulps(rounded, EX2_ULPS) + np.abs(rounded - exact), exact)


def lg2_error(exact: Any, a: Any) -> Any:
    return np.where((a > 0.5) & (a < 2), LG2_ABSOLUTE, LG2_RELATIVE * np.abs(exact))


def sine_error(exact: Any, a: Any) -> Any:
    return np.where(np.abs(a) <= 2 * np.pi, SINE_ABSOLUTE, FAR_SINE_ABSOLUTE)


def relative(bound: float) -> Error:
    return lambda exact, a: bound * np.abs(exact)


def approximate(
    function: Callable[..., Any], error: Error, operands: int = 1
) -> Callable[..., Any]:
    """A decoder of the unit that computes `function` in float64, with its documented error."""

    def decode(form: Form) -> Run:
        type = form.type("f32")
        form.one_of(("approx", "full"))
        ftz = form.flag("ftz")
        form.done(1 + operands)
        write = form.target(0, type)
        reads = [form.source(1 + k, type) for k in range(operands)]

        def run(lanes: Lanes, active: Mask | None) -> None:
            given = [read(lanes, active) for read in reads]
            if ftz:
                given = [flush(value) for value in given]
            wide = [np.asarray(value, np.float64) for value in given]
            exact = np.asarray(function(*wide))
            ordinary = np.isfinite(exact)
            for value in wide:
                ordinary = ordinary & np.isfinite(value) & (value != 0)
            out = within(exact, np.where(ordinary, error(exact, *wide), 0.0), lanes.units)
            write(lanes, active, flush(out) if ftz else out)

        return run

    return decode


def divide(a: Any, b: Any) -> Any:
    return a / b


def divide_approx(a: Any, b: Any) -> Any:
    far = (np.abs(b) > 2.0**126) & np.isfinite(b)
    beyond = np.where(np.isfinite(a), np.copysign(0.0, a) * np.sign(b), np.nan)
    subnormal = (np.abs(b) < SMALLEST_NORMAL) & (b != 0)
    return np.where(subnormal, np.nan, np.where(far, beyond, a / b))


def in_range(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a: np.where(np.abs(a) <= SINE_RANGE, function(a), np.nan)


def decode_div(form: Form) -> Run:
    function = divide if "full" in form.modifiers else divide_approx
    return approximate(function, lambda exact, a, b: ulps(exact, DIV_ULPS), 2)(form)


DECODERS: dict[str, Callable[[Form], Run]] = {
    "ex2": approximate(np.exp2, ex2_error),
    "lg2": approximate(np.log2, lg2_error),
    "rcp": approximate(lambda a: 1.0 / a, lambda exact, a: ulps(exact, RCP_ULPS)),
    "sqrt": approximate(np.sqrt, relative(SQRT_RELATIVE)),
    "rsqrt": approximate(lambda a: 1.0 / np.sqrt(a), relative(RSQRT_RELATIVE)),
    "sin": approximate(in_range(np.sin), sine_error),
    "cos": approximate(in_range(np.cos), sine_error),
    "tanh": approximate(np.tanh, relative(TANH_RELATIVE)),
    "div": decode_div,
}
