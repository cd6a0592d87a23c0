"""Discretised logistics against mpmath's 120 digits, and mixtures against their components."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from torch import Tensor

from vaez_fast.likelihoods import (
    DiscretizedLogistic,
    LogisticMixture,
    discretized_logistic_log_prob,
    logistic_mixture_log_prob,
)

from .checking import assert_gradients_are_differences, assert_the_same_if_traced, drawn, gradients

LEVELS = torch.arange(256, dtype=torch.uint8)
LOCATIONS = (-30.0, -1.0, -0.7, 0.003, 0.5, 1.0, 1000.0)
LOG_SCALES = (-69.0, -30.0, -12.0, -7.0, -5.0, -4.9, -2.0, 0.0, 5.0, 30.0, 45.0, 100.0, 150.0)
DTYPES = (torch.float32, torch.float64)


def truth(level: int, location: float, log_scale: float) -> tuple[float, float, float]:
    """log p, and its derivatives by the location and the logarithm of the scale."""
    with mpmath.workdps(120):
        s = mpmath.exp(log_scale)
        a, b = ((mpmath.mpf(2 * level - n) / 255 - location) / s for n in (256, 254))

        def sigmoid(t: mpmath.mpf) -> mpmath.mpf:
            return 1 / (1 + mpmath.exp(-t))

        p, by_location, by_log_scale = mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(0)
        if level < 255:  # log σ(b)
            p *= sigmoid(b)
            by_location -= sigmoid(-b) / s
            by_log_scale -= b * sigmoid(-b)
        if level > 0:  # log σ(−a)
            p *= sigmoid(-a)
            by_location += sigmoid(a) / s
            by_log_scale += a * sigmoid(a)
        if 0 < level < 255:
            p *= -mpmath.expm1(a - b)
            by_log_scale -= (b - a) / mpmath.expm1(b - a)
        return float(mpmath.log(p)), float(by_location), float(by_log_scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_err_by_a_few_roundings_at_every_scale(dtype: torch.dtype) -> None:
    points = list(itertools.product((0, 1, 77, 128, 254, 255), LOCATIONS, LOG_SCALES))
    level = torch.tensor([p[0] for p in points], dtype=torch.uint8)
    location, log_scale = (torch.tensor([p[i] for p in points], dtype=dtype) for i in (1, 2))
    log_p, found = gradients(
        lambda m, s: discretized_logistic_log_prob(level, m, s), location, log_scale
    )
    wanted = [
        truth(*p) for p in zip(level.tolist(), location.tolist(), log_scale.tolist(), strict=True)
    ]
    value, by_location, by_scale = torch.tensor(wanted, dtype=torch.float64).T
    # A rounding of the location, and of a log-scale before its exponential, are not ours to avoid.
    location, log_scale = location.double(), log_scale.double()
    moved = (by_location * location.abs().clamp(min=1)).abs() + (by_scale * log_scale).abs()
    epsilon = torch.finfo(dtype).eps
    error = (log_p - value).abs() / (1 + value.abs() + moved)
    assert error.max() < 2 * epsilon, points[int(error.argmax())]
    # σ changes by a rounding of (location − edge)/s times σ·(1 − σ) ≤ ¼.
    spread = torch.exp(-log_scale) * (1 + torch.exp(-log_scale) * location.abs().clamp(min=1) / 4)
    tiny = torch.finfo(dtype).tiny
    error = (found[0] - by_location).abs() / (by_location.abs() + spread + tiny / epsilon)
    assert error.max() < 2 * epsilon, points[int(error.argmax())]
    error = (found[1] - by_scale).abs() / (1 + by_scale.abs() + moved * 4)
    assert error.max() < 2 * epsilon, points[int(error.argmax())]


@pytest.mark.parametrize("log_scale", [-80.0, -69.0, -12.0, -4.0, 0.0, 20.0, 200.0])
def test_the_256_probabilities_sum_to_one(log_scale: float) -> None:
    for location in (-3.0, -1.0, 0.1234, 1.0):
        parameters = torch.full((256,), location), torch.full((256,), log_scale)
        total = torch.exp(discretized_logistic_log_prob(LEVELS, *parameters).double()).sum()
        # A float32 location moves log p by 6e-8/s, as does a rounding of log p = −200.
        assert total.item() == pytest.approx(1.0, abs=3e-5)
        parameters = parameters[0].double(), parameters[1].double()
        total = torch.exp(discretized_logistic_log_prob(LEVELS, *parameters)).sum()
        assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_gradients_are_finite_where_the_scale_ends_and_x_is_far_from_the_location() -> None:
    location = torch.tensor([[-1.0, 1.0, 0.0, 100.0]]).expand(256, 4)
    for log_scale in (-1e30, -1000.0, -88.0, -70.0, 88.0, 1000.0, 1e30):
        values, found = gradients(
            lambda m, s: discretized_logistic_log_prob(LEVELS[:, None].expand(256, 4), m, s),
            location,
            torch.tensor(log_scale),
        )
        assert values.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16])
def test_floating_point_x_is_rounded_to_its_level(dtype: torch.dtype) -> None:
    parameters = drawn(256), drawn(256, seed=1)
    wanted = discretized_logistic_log_prob(LEVELS, *parameters)
    x = (LEVELS.double() / 255).to(dtype)
    found = discretized_logistic_log_prob(x, *parameters)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("log_scale", [-20.0, -4.0, 1.0])
def test_the_mean_is_that_of_the_levels(log_scale: float) -> None:
    location = torch.tensor([-2.0, -0.9, 0.1, 0.77, 5.0], dtype=torch.float64)
    p = DiscretizedLogistic(location, torch.tensor(log_scale, dtype=torch.float64))
    levels = LEVELS[:, None].expand(256, 5)[..., None]
    weights = torch.exp(
        discretized_logistic_log_prob(
            levels.reshape(-1, 1), location.repeat(256)[:, None], p.log_scale
        )
    ).view(256, 5)
    wanted = (weights * LEVELS.double()[:, None] / 255).sum(0)
    torch.testing.assert_close(p.mean, wanted, rtol=1e-10, atol=1e-13)


def images(*lead: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randint(0, 256, (3, 2, 4, 5), generator=torch.Generator().manual_seed(0))
    shape = (*lead, 3, 6, 2, 4, 5)
    return x.to(torch.uint8), drawn(*shape), drawn(*shape, seed=1) - 2.0


@pytest.mark.parametrize("lead", [(), (2,)])
def test_a_component_that_channels_share_is_chosen_once_for_a_pixel(lead: tuple[int, ...]) -> None:
    x, means, log_scales = images(*lead)
    logits = drawn(*lead, 3, 6, 4, 5, seed=2)
    wanted = torch.zeros(*lead, 3, 4, 5, dtype=torch.float64)
    for k in range(6):
        part = torch.softmax(logits, -3)[..., k, :, :]
        for c in range(2):
            parameters = (t[..., k, c, :, :].reshape(-1) for t in (means, log_scales))
            levels = x[:, c].expand(*lead, 3, 4, 5).reshape(-1)
            part = part * discretized_logistic_log_prob(levels, *parameters).exp().view(part.shape)
        wanted = wanted + part
    found = logistic_mixture_log_prob(x, logits, means, log_scales)
    assert found.shape == (*lead, 3)
    torch.testing.assert_close(found, torch.log(wanted).sum((-1, -2)), rtol=1e-12, atol=1e-10)


def test_logits_of_the_means_shape_give_each_element_a_mixture() -> None:
    x, means, log_scales = images()
    logits = drawn(3, 6, 2, 4, 5, seed=2)
    of_each = logistic_mixture_log_prob(x, logits, means, log_scales)
    alone = [
        logistic_mixture_log_prob(x[:, c], logits[:, :, c], means[:, :, c], log_scales[:, :, c])
        for c in range(2)
    ]
    torch.testing.assert_close(of_each, alone[0] + alone[1])
    shared = [
        logistic_mixture_log_prob(x[:, c : c + 1], logits[:, :, c], *parts)
        for c in range(2)
        for parts in [(means[:, :, c : c + 1], log_scales[:, :, c : c + 1])]
    ]
    torch.testing.assert_close(of_each, shared[0] + shared[1])


def test_a_mixtures_mean_weighs_those_of_its_components() -> None:
    _, means, log_scales = images(2)
    for logits in (drawn(2, 3, 6, 4, 5), drawn(2, 3, 6, 2, 4, 5)):
        p = LogisticMixture(logits, means, log_scales)
        weights = torch.softmax(logits, 2)
        if logits.dim() == 5:
            weights = weights[:, :, :, None]
        parts = DiscretizedLogistic(means, log_scales).mean
        torch.testing.assert_close(p.mean, (weights * parts).sum(2))
    flat = LogisticMixture(drawn(3, 6, 7), drawn(3, 6, 7), drawn(3, 6, 7), event_dims=1)
    assert flat.mean.shape == (3, 7)


def test_a_scale_may_be_one_of_each_channel() -> None:
    x, location = images()[0], drawn(2, 3, 2, 4, 5)
    of_channels = drawn(2, 1, 1, seed=1)
    found = DiscretizedLogistic(location, of_channels).log_prob(x)
    wanted = DiscretizedLogistic(location, of_channels.expand(2, 3, 2, 4, 5)).log_prob(x)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, wanted)


def test_half_precision_is_computed_in_float32() -> None:
    x, means, log_scales = images()
    halves = means[:, 0].bfloat16(), log_scales[:, 0].bfloat16()
    found = discretized_logistic_log_prob(x, *halves)
    assert found.dtype == torch.float32
    wanted = discretized_logistic_log_prob(x, halves[0].float(), halves[1].float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_gradients_are_differences() -> None:
    x = torch.tensor([[0, 130, 255]], dtype=torch.uint8)
    assert_gradients_are_differences(
        lambda m, s: discretized_logistic_log_prob(x, m, s), drawn(2, 1, 3), drawn(3, seed=1) - 2.0
    )
    assert_gradients_are_differences(
        lambda a, m, s: logistic_mixture_log_prob(x, a, m, s),
        *(drawn(2, 1, 4), drawn(2, 1, 4, 3, seed=1), drawn(2, 1, 4, 3, seed=2) - 2.0),
    )


def test_it_is_the_same_if_traced() -> None:
    x, means, log_scales = images(2)
    assert_the_same_if_traced(
        lambda a, m, s: logistic_mixture_log_prob(x, a, m, s),
        *(drawn(2, 3, 6, 4, 5, seed=2), means, log_scales),
    )


X, L = torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(5, 2, 3)
M = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.long(), L, L), TypeError, "x must be uint8 or floating-point, got torch.int64"),
        ((X, L[:, :1], L), ValueError, r"location must have shape \(B, \*event\) or"),
        ((X, L, L[..., :2]), ValueError, r"log_scale must broadcast to the shape \(5, 2, 3\)"),
        ((X, L, 0.0), TypeError, "log_scale must be a tensor, got float"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^discretized_logistic_log_prob: {message}"):
        discretized_logistic_log_prob(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.bool(), M, M, M), TypeError, "x must be uint8 or floating-point, got torch.bool"),
        ((X, M, L[0], M), ValueError, r"means must have shape \(B, K, \*event\) or"),
        ((X, M[:, :0], M[:, :0], M[:, :0]), ValueError, "means must have shape .* with K ≥ 1"),
        ((X, M, M[:1], M[:1]), ValueError, "logits must have means' shape"),
        ((X, M[:1], M[:1], M[:1]), ValueError, r"means must have shape \(B, K, \*event\)"),
        ((X, M, M, M[:, :1]), ValueError, "log_scales must have means' shape"),
        (
            (X, M[:, :2], M, M),
            ValueError,
            r"logits must have means' shape \(2, 4, 3\), or \(2, 4\)",
        ),
        ((X, M.long(), M, M), TypeError, "logits must be float32"),
    ],
)
def test_a_wrong_argument_of_a_mixture_is_named(
    arguments: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^logistic_mixture_log_prob: {message}"):
        logistic_mixture_log_prob(*arguments)


def test_x_of_other_dimensions_than_the_mixture_says_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^LogisticMixture: x must have B and event_dims = 3 dim"):
        LogisticMixture(M, M, M).log_prob(X)
