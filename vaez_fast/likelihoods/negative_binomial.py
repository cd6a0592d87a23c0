"""The negative binomial probability of a count, to the last digits at every mean and dispersion.

lgamma grows as x·log x, so the textbook's differences of lgammas lose digits where θ or x is large.
Here their large parts cancel on paper. Three formulas cover everything, and `where` chooses one.
There is no control flow. An argument outside a formula's range is replaced by one inside, so that
its gradient is 0 and not NaN. `clamp` would do it too, but drops the gradient at its bounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .shapes import softplus

LARGE = 8.0  # from here on the series of `_stirling` has 16 digits
# 1/(12 y) − 1/(360 y³) + …, Abramowitz & Stegun 6.1.41; the next term is 8e-17 at y = 8.
STIRLING = (
    *(1 / 12, -1 / 360, 1 / 1260, -1 / 1680),
    *(1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400),
)
SMALL = 0.02  # below it `_log1p_ratio` is a series, whose 9th term is 1e-17
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NEAR = 0.4  # |log m/x| where the deviance is used, about m/x from 0.67 to 1.49


def log_pmf(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """log p(x) elementwise, of shapes that broadcast; no gradient flows to x.

    With m the mean, t = m/x − 1, u = x/θ, w = (m − x)/(x + θ), h(v) = log(1 + v)/v − 1 and
    the error of Stirling's formula S(y) = lgamma(y) − (y − ½)·log y + y − ½ log 2π:

    - x and θ ≥ 8 and m near x: −½ log(2πx) − ½ log(1 + u) + S(x + θ) − S(x) − S(θ)
      − (m − x)·(h(w) − h(t)), the deviance (Loader, "Fast and accurate computation of binomial
      probabilities", 2000);
    - else θ ≥ 8 and θ ≥ x + 1: x·log(mθ/(m + θ)) + x·h(u) + (x − ½)·log(1 + u) + S(x + θ) − S(θ)
      − lgamma(x + 1) − θ·log(1 + m/θ);
    - else, with Stirling's formula for lgamma(x + θ) − lgamma(x + 1) as in DiDonato & Morris,
      "Algorithm 708", 1992: that − lgamma(θ) + x·log(m/(m + θ)) − θ·log(1 + m/θ).

    In the first, m is exp(log_mean) alone: a rounding of it counts |m − x| times, not x times.

    Args:
        x: counts, of any real dtype.
        log_mean, log_theta: log m and log θ, of the dtype to compute in, float32 or float64.

    Returns:
        log p in nats, of that dtype. The tests bound its error by 10·ε·(1 + |log p| + |g·log m| +
        |h·log θ|), g and h being its derivatives by log m and log θ; theirs by 4·ε·(8 + |g| or |h|
        + x + min(m, θ)). ε is the dtype's.
    """
    dtype = log_mean.dtype
    x = x.detach().to(dtype)
    most = math.log(torch.finfo(dtype).max) - LARGE  # e^most, times a count, does not overflow
    seen = x > 0
    n = torch.where(seen, x, 1.0)
    log_n = torch.log(n)
    no_event = _no_event(log_mean, log_theta, most)  # θ·log(1 + m/θ) = −log p(0)

    by_theta = log_theta >= torch.log((n + 1.0).clamp(min=LARGE))
    near = (log_mean - log_n).abs() < NEAR
    near = near & (n >= LARGE) & (log_theta >= math.log(LARGE))
    log_p = torch.where(
        by_theta,
        _by_theta(n, log_mean, torch.where(by_theta, log_theta, torch.log(n + LARGE))),
        _by_count(n, log_mean, torch.where(by_theta, 0.0, log_theta)),
    )
    deviance = _by_deviance(
        torch.where(near, n, LARGE),
        torch.where(near, log_mean, math.log(LARGE)),
        torch.where(near, log_theta, math.log(LARGE)),
    )
    return torch.where(seen, torch.where(near, deviance, log_p - no_event), -no_event)


def _no_event(log_mean: Tensor, log_theta: Tensor, most: float) -> Tensor:
    """θ·log(1 + m/θ), as m·(1 + h(m/θ)) where m < θ: its limit there is m, whatever θ is."""
    ratio = log_mean - log_theta
    below = ratio < 0.0
    m, theta = torch.exp(log_mean.clamp(max=most)), torch.exp(log_theta.clamp(max=most))
    many_theta = m * (1.0 + _log1p_ratio(torch.exp(torch.where(below, ratio, 0.0))))
    return torch.where(below, many_theta, theta * softplus(torch.where(below, 0.0, ratio)))


def _by_deviance(n: Tensor, log_m: Tensor, log_theta: Tensor) -> Tensor:
    """log p(n) for n and θ ≥ 8 and m near n."""
    inverse = torch.exp(-log_theta)  # 1/θ; θ itself may overflow
    u, excess = n * inverse, torch.exp(log_m) - n
    w = excess * inverse / (1.0 + u)
    deviance = excess * (_log1p_ratio(w) - _log1p_ratio(excess / n))
    stirling = _stirling(inverse / (1.0 + u)) - _stirling(1.0 / n) - _stirling(inverse)
    return stirling - deviance - 0.5 * (torch.log(n) + torch.log1p(u)) - HALF_LOG_2PI


def _by_theta(n: Tensor, log_m: Tensor, log_theta: Tensor) -> Tensor:
    """log p(n) + θ·log(1 + m/θ) for θ ≥ max(8, n + 1)."""
    inverse = torch.exp(-log_theta)
    u, ratio = n * inverse, log_m - log_theta
    # Not log_m − softplus(ratio) alone, which loses digits where m is far above θ. |ratio| has no
    # gradient at 0.
    below = ratio < 0.0
    log_joint = torch.where(below, log_m, log_theta) - softplus(torch.where(below, ratio, -ratio))
    gammas = n * _log1p_ratio(u) + (n - 0.5) * torch.log1p(u) - torch.lgamma(n + 1.0)
    return n * log_joint + gammas + _stirling(inverse / (1.0 + u)) - _stirling(inverse)


def _by_count(n: Tensor, log_m: Tensor, log_theta: Tensor) -> Tensor:
    """log p(n) + θ·log(1 + m/θ) for θ < max(8, n + 1) and n ≥ 1."""
    theta = torch.exp(log_theta)
    a, d = n + 1.0, theta - 1.0
    gammas = d * torch.log(a) + (n + theta - 0.5) * torch.log1p(d / a) - d
    gammas = gammas + _stirling_of_any(n + theta) - _stirling_of_any(a)
    # lgamma(θ) = lgamma(1 + θ) − log θ, and θ may underflow.
    return gammas - torch.lgamma(1.0 + theta) + log_theta - n * softplus(log_theta - log_m)


def _log1p_ratio(v: Tensor) -> Tensor:
    """h(v) = log(1 + v)/v − 1 for v from −½ on, with h(0) = 0."""
    small = v.abs() < SMALL
    near, far = torch.where(small, v, 0.0), torch.where(small, 1.0, v)
    series = torch.zeros_like(v)
    for k in range(9, 1, -1):
        series = near * ((1.0 if k % 2 else -1.0) / k + series)
    return torch.where(small, series, torch.log1p(far) / far - 1.0)


def _stirling(inverse: Tensor) -> Tensor:
    """S(y) of 1/y ≤ 1/8."""
    square, series = inverse.square(), torch.zeros_like(inverse)
    for coefficient in reversed(STIRLING):
        series = coefficient + square * series
    return inverse * series


def _stirling_of_any(y: Tensor) -> Tensor:
    """S(y) of y ≥ 1, where all terms of its definition are small enough below 8."""
    small = y < LARGE
    low, high = torch.where(small, y, 1.0), torch.where(small, LARGE, y)
    direct = torch.lgamma(low) - (low - 0.5) * torch.log(low) + low - HALF_LOG_2PI
    return torch.where(small, direct, _stirling(1.0 / high))
