"""Scalar formulas of the kernels. Those that also exist without `_jit` share one body with PyTorch.

The bodies have no type hints, because Triton's compiler would evaluate them.
"""

from __future__ import annotations

from .backend import interpreting, jit, tl, undecorated

# Polynomials of the Cephes library, single precision.


@jit
def log_tail_jit(f):  # type: ignore[no-untyped-def]
    """(ln(1 + f) − f + f²/2) / f³ for √½ − 1 ≤ f ≤ √2 − 1."""
    p = 7.0376836292e-2
    p = p * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    return p * f + 3.3333331174e-1


@jit
def cosine_jit(a):  # type: ignore[no-untyped-def]
    """cos a for |a| ≤ π/4."""
    b = a * a
    tail = 4.166664568298827e-2 + b * (-1.388731625493765e-3 + b * 2.443315711809948e-5)
    return 1.0 - 0.5 * b + b * b * tail


@jit
def sine_jit(a):  # type: ignore[no-untyped-def]
    """sin a for |a| ≤ π/4."""
    b = a * a
    return a + a * b * (-1.6666654611e-1 + b * (8.3321608736e-3 + b * -1.9515295891e-4))


@jit
def log1p_unit_jit(t):  # type: ignore[no-untyped-def]
    """ln(1 + t) for 0 ≤ t ≤ 1: t + t²·q(t), degree-7 minimax, relative error 1.7e-7 in float32.

    One body for Triton, which has no log1p, and PyTorch. log(1 + t) loses the digits of a small t
    and is slower: a compiled forward of 128×784 takes 0.15 ms on a CPU core with it, and 0.09 ms
    with this.
    """
    q = 0.00536482149
    q = q * t - 0.0300657813
    q = q * t + 0.0792045183
    q = q * t - 0.137538009
    q = q * t + 0.191536543
    q = q * t - 0.248571635
    q = q * t + 0.333213226
    q = q * t - 0.49999648
    return t + t * t * q


@jit
def excess_tail_jit(logvar):  # type: ignore[no-untyped-def]
    """(exp(l) − 1 − l) / l² for |l| ≤ ½: degree-4 minimax, relative error 9.3e-7 in float32.

    One body for Triton and PyTorch. The KL's variance term is exp(l) − 1 − l. Computed as
    expm1(l) − l it would lose its digits at l → 0, where training ends (measured: 5e-4).
    """
    p = 0.00139146532772
    p = p * logvar + 0.00839541103558
    p = p * logvar + 0.0416674768501
    p = p * logvar + 0.16666280115
    return p * logvar + 0.499999959737


log_tail, cosine, sine, log1p_unit, excess_tail = (
    undecorated(f) for f in (log_tail_jit, cosine_jit, sine_jit, log1p_unit_jit, excess_tail_jit)
)


# Only for Triton.


@jit
def sigma_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l / 2)
    # exp2 saves four instructions: exp multiplies by log₂e first and keeps subnormal results.
    return tl.exp2(0.7213475204444817 * logvar)


@jit
def excess_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l) − 1 − l
    direct = tl.exp2(1.4426950408889634 * logvar) - 1.0 - logvar
    return tl.where(tl.abs(logvar) < 0.5, logvar * logvar * excess_tail_jit(logvar), direct)


@jit
def expm1_jit(logvar):  # type: ignore[no-untyped-def]  # exp(l) − 1
    # l + excess would lose digits by cancellation where −l is large, and would be NaN at ±∞.
    near = logvar + logvar * logvar * excess_tail_jit(logvar)
    return tl.where(tl.abs(logvar) < 0.5, near, tl.exp2(1.4426950408889634 * logvar) - 1.0)


@jit
def log_jit(a):  # type: ignore[no-untyped-def]  # ln a of a normal number a > 0
    bits = a.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    f2 = f * f
    return f * f2 * log_tail_jit(f) - 0.5 * f2 + f + exponent.to(tl.float32) * 0.6931471805599453


@jit
def exp_jit(x):  # type: ignore[no-untyped-def]  # eˣ within 1.4 times half a unit in the last place
    # tl.exp multiplies by log₂e first, whose rounding costs as many units as |x| is large. Cephes'
    # expf: x = n·ln 2 + r, with ln 2 as a short number and the rest, and a polynomial in r.
    near = tl.minimum(tl.maximum(x, -104.0), 89.0)  # beyond these results are 0 and ∞
    n = tl.floor(near * 1.4426950408889634 + 0.5)
    r = near - n * 0.693359375 + n * 2.12194440e-4
    p = 1.9875691500e-4
    p = p * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    # Twice, because 2ⁿ itself need not be a normal number.
    half = n.to(tl.int32) // 2
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((n.to(tl.int32) - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x == x, (p * r * r + r + 1.0) * first * second, x)


# The interpreter stores bfloat16 as bits and would multiply these bits. float32 holds the products.
INTERPRETED = interpreting() if tl is None else tl.constexpr(interpreting())


@jit
def tf32_jit(a):  # type: ignore[no-untyped-def]  # float32 rounded to TF32's ten bits
    # Tensor cores ignore the lower thirteen bits, and Triton does not round before that. Truncated
    # operands all err towards zero, which shifts log p(x) by a nat; rounded ones shift it by 0.02
    # (altosaar's decoder).
    rounded = (a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(a == a, rounded.to(tl.float32, bitcast=True), a)  # a NaN may overflow to zero


@jit
def dot_jit(a, b, sums, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # a·b + sums
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a, b = tf32_jit(a), tf32_jit(b)
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)
