"""The counts' laws against mpmath's 220 digits, SciPy, and what they become at their ends."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import scipy.stats
import torch
from torch import Tensor

from vaez_fast.likelihoods import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from vaez_fast.likelihoods.negative_binomial import log_pmf

from .checking import assert_gradients_are_differences, assert_the_same_if_traced, drawn, gradients

# Both sides of every border between formulas, and the borders: θ = 8 and x = 8 nearly, m = θ,
# x + θ = 8 exactly.
COUNTS = (0, 1, 2, 7, 8, 20, 100, 1000, 100_000)
LOG_MEANS = (-80.0, -3.0, 0.0, 2.0, 3.1, 4.6, 6.9, 7.3, 11.5, 70.0)
LOG_THETAS = (-150.0, -10.0, 0.0, 2.0, 2.1, 2.5, 4.6, 7.0, 9.0, 30.0, 70.0, 150.0)
DTYPES = (torch.float32, torch.float64)


def truth(count: int, log_mean: float, log_theta: float) -> tuple[float, ...]:
    """log p, its derivatives by log_mean and log_theta, and the scale of their errors."""
    with mpmath.workdps(220):  # θ = e¹⁵⁰ takes 65 digits twice
        x, m, theta = mpmath.mpf(count), mpmath.exp(log_mean), mpmath.exp(log_theta)
        log_p = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        log_p -= theta * mpmath.log1p(m / theta) + x * mpmath.log1p(theta / m)
        by_mean = (x - m) * theta / (theta + m)
        by_theta = mpmath.digamma(x + theta) - mpmath.digamma(theta) - mpmath.log1p(m / theta)
        by_theta = theta * (by_theta + (m - x) / (theta + m))
        return tuple(map(float, (log_p, by_mean, by_theta, 8 + x + min(m, theta))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_err_by_a_few_roundings_at_every_mean_and_dispersion(
    dtype: torch.dtype,
) -> None:
    points = list(itertools.product(COUNTS, LOG_MEANS, LOG_THETAS))
    x = torch.tensor([count for count, _, _ in points])
    log_m, log_theta = (torch.tensor([p[i] for p in points], dtype=dtype) for i in (1, 2))
    log_p, (by_mean, by_theta) = gradients(lambda m, t: log_pmf(x, m, t), log_m, log_theta)
    wanted = [truth(*p) for p in zip(x.tolist(), log_m.tolist(), log_theta.tolist(), strict=True)]
    value, g, h, scale = torch.tensor(wanted, dtype=torch.float64).T
    epsilon = torch.finfo(dtype).eps

    assert all(value.dtype == dtype for value in (log_p, by_mean, by_theta))
    # The bounds that `log_pmf` promises.
    changes = (g * log_m).abs() + (h * log_theta).abs()
    error = (log_p - value).abs() / (1 + value.abs() + changes)
    assert error.max() < 10 * epsilon, points[int(error.argmax())]
    for found, gradient in ((by_mean, g), (by_theta, h)):
        error = (found - gradient).abs() / (gradient.abs() + scale)
        assert error.max() < 4 * epsilon, points[int(error.argmax())]


def test_ordinary_parameters_agree_with_scipy() -> None:
    x = torch.arange(60).view(20, 3)
    logits, log_theta = 3.0 + drawn(20, 3), drawn(3, seed=1)
    m, theta = torch.exp(logits), torch.exp(log_theta)
    wanted = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + m)).sum(1)
    found = negative_binomial_log_prob(x, logits, log_theta)
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_huge_dispersion_gives_the_poisson_law(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 5, 40, 1000]])
    log_m = torch.tensor([[1.0, 0.5, -2.0, 3.5, 6.875]], dtype=dtype)
    for log_theta in (60.0, 300.0):  # e³⁰⁰ overflows as a float32
        of_theta = torch.tensor(log_theta, dtype=dtype)
        found, (by_mean, by_theta) = gradients(
            lambda m, t: negative_binomial_log_prob(x, m, t), log_m, of_theta
        )
        m = torch.exp(log_m.double())
        wanted = torch.from_numpy(scipy.stats.poisson.logpmf(x, m)).sum(1)
        # Roundings of log m times |x − m| ≤ 32, of the terms up to 110 and of gradients up to 1000;
        # SciPy's own of terms up to 7000.
        bound = max(2000 * torch.finfo(dtype).eps, 2e-12)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)
        torch.testing.assert_close(by_mean.double(), x - m, rtol=0, atol=bound)
        assert abs(by_theta) < 1e-15  # (x − (x − m)²)/2θ


def test_a_tiny_dispersion_leaves_zeros_and_rare_large_counts() -> None:
    # θ → 0: p(x) → θ/x for x from 1 to m, and p(0) → 1 − θ·log(m/θ).
    x, log_theta = torch.tensor([[1, 10, 0]]), torch.tensor(-200.0)
    log_m = torch.full((1, 3), 5.0)
    found = [
        negative_binomial_log_prob(x[:, i : i + 1], log_m[:, i : i + 1], log_theta) for i in (0, 1)
    ]
    assert found[0].item() == pytest.approx(-200.0, rel=1e-6)
    assert found[1].item() == pytest.approx(-200.0 - 2.302585, rel=1e-6)
    zero, (by_mean, by_theta) = gradients(
        lambda m, t: negative_binomial_log_prob(x[:, 2:], m, t), log_m[:, 2:], log_theta
    )
    assert zero.item() == pytest.approx(0.0, abs=1e-37)
    assert by_mean.isfinite().all()
    assert by_theta.isfinite()


@pytest.mark.parametrize("log_theta", [-3.0, 1.0, 5.0])
@pytest.mark.parametrize("zero_logit", [None, -1.5, 2.0])
def test_probabilities_sum_to_one(log_theta: float, zero_logit: float | None) -> None:
    x = torch.arange(20_000)[:, None]
    logits = torch.full((len(x), 1), 2.0, dtype=torch.float64)
    theta = torch.tensor(log_theta, dtype=torch.float64)
    if zero_logit is None:
        p: NegativeBinomial | ZeroInflatedNegativeBinomial = NegativeBinomial(logits, theta)
    else:
        zero = torch.tensor(zero_logit, dtype=torch.float64)
        p = ZeroInflatedNegativeBinomial(logits, theta, zero)
    probabilities = torch.exp(p.log_prob(x))
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (probabilities * x[:, 0]).sum().item() == pytest.approx(p.mean[0].item(), rel=1e-10)


def test_extra_zeros_are_a_mixture_with_a_zero() -> None:
    x = torch.tensor([[0, 0, 3, 12]])
    logits, theta, zero = drawn(2, 1, 4), drawn(4, seed=1), drawn(2, 1, 4, seed=2)
    m, t = torch.exp(logits), torch.exp(theta)
    p = torch.from_numpy(scipy.stats.nbinom.pmf(x, t, t / (t + m)))
    wanted = torch.log(torch.sigmoid(zero) * (x == 0) + torch.sigmoid(-zero) * p).sum(-1)
    found = zero_inflated_negative_binomial_log_prob(x, logits, theta, zero)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_log_odds_of_extra_zeros_may_go_to_both_ends() -> None:
    x, logits, theta = torch.tensor([[0], [4]]), torch.ones(2, 1), torch.tensor(0.3)
    plain = negative_binomial_log_prob(x, logits, theta)

    def inflated(zero: Tensor) -> Tensor:
        return zero_inflated_negative_binomial_log_prob(x, logits, theta, zero)

    never, (gradient,) = gradients(inflated, torch.tensor(-1e4))
    torch.testing.assert_close(never, plain, rtol=1e-6, atol=1e-6)
    assert gradient == 0
    always, (gradient,) = gradients(inflated, torch.tensor(1e4))
    torch.testing.assert_close(
        always, torch.tensor([0.0, plain[1].item() - 1e4]), rtol=1e-6, atol=0
    )
    assert gradient == -1  # that of the count of 4


def test_a_zero_that_neither_law_expects_keeps_its_digits() -> None:
    # The Poisson limit has p(0) = exp(−m) = e⁻⁴⁰³, and π = e⁻³⁰⁰.
    log_m = torch.full((1, 1), 6.0)
    log_p, found = gradients(
        lambda m, z: zero_inflated_negative_binomial_log_prob(
            torch.zeros(1, 1), m, torch.tensor(60.0), z
        ),
        *(log_m, torch.tensor(-300.0)),
    )
    assert log_p.item() == pytest.approx(-300.0, rel=1e-6)
    assert [gradient.item() for gradient in found] == pytest.approx([0.0, 1.0], abs=1e-6)


def test_a_library_is_shared_out_by_the_softmax_of_the_logits() -> None:
    x, library = torch.randint(0, 9, (3, 4)), torch.tensor([10, 200, 3000])
    logits, theta = drawn(2, 3, 4), drawn(4, seed=1)
    p = NegativeBinomial(logits, theta, library)
    torch.testing.assert_close(p.mean.sum(-1), library.double().expand(2, 3))
    wanted = negative_binomial_log_prob(x, torch.log(p.mean), theta)
    torch.testing.assert_close(p.log_prob(x), wanted)
    of_samples = NegativeBinomial(logits, theta, library.expand(2, 3))
    torch.testing.assert_close(of_samples.log_prob(x), wanted)
    torch.testing.assert_close(of_samples.mean, p.mean)


def test_a_row_of_zeros_with_library_size_zero_is_certain() -> None:
    x, library = torch.tensor([[0, 0], [1, 2]]), torch.tensor([0, 3])
    log_p, found = gradients(
        lambda a, t: negative_binomial_log_prob(x, a, t, library), drawn(2, 2), drawn(2, seed=1)
    )
    assert log_p[0] == 0
    assert all(gradient.isfinite().all() for gradient in found)


def test_gradients_are_differences() -> None:
    x, library = torch.tensor([[0, 1, 6], [30, 8, 200]]), torch.tensor([9, 300])
    logits, theta, zero = drawn(2, 2, 3), torch.tensor([-1.0, 1.0, 4.0]), drawn(2, 2, 3, seed=2)
    assert_gradients_are_differences(
        lambda a, t: negative_binomial_log_prob(x, a + 2.0, t), logits, theta
    )
    assert_gradients_are_differences(
        lambda a, t, z: zero_inflated_negative_binomial_log_prob(x, a, t, z, library),
        *(logits, theta, zero),
    )


def test_it_is_the_same_if_traced() -> None:
    x, library = torch.tensor([[0, 1, 6], [30, 8, 200]]), torch.tensor([9, 300])
    logits, theta, zero = drawn(2, 2, 3), torch.tensor([-1.0, 1.0, 4.0]), drawn(2, 2, 3, seed=2)
    assert_the_same_if_traced(
        lambda a, t, z: zero_inflated_negative_binomial_log_prob(x, a, t, z, library),
        *(logits, theta, zero),
    )


def test_half_precision_is_computed_in_float32_and_counts_have_any_dtype() -> None:
    x, theta = torch.tensor([[0, 3, 120]]), torch.zeros(3)
    logits = drawn(2, 1, 3).to(torch.bfloat16)
    found = negative_binomial_log_prob(x, logits, theta)
    assert found.dtype == torch.float32
    assert found.shape == (2, 1)
    torch.testing.assert_close(found, negative_binomial_log_prob(x, logits.float(), theta))
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.bfloat16):
        torch.testing.assert_close(
            negative_binomial_log_prob(x.to(dtype), logits, theta), found, rtol=0, atol=0
        )


X, L, T = torch.zeros(2, 3), torch.zeros(5, 2, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.bool(), L, T), TypeError, "x must be of an integer or floating-point dtype, got"),
        ((X, L[..., :2], T), ValueError, r"logits must have shape \(B, \*event\) or \(S, B, \*ev"),
        ((X, L.long(), T), TypeError, "logits must be float32"),
        ((X, L, torch.zeros(2)), ValueError, r"log_dispersion must broadcast to the shape \(5"),
        ((X, L, torch.zeros(1, 5, 2, 3)), ValueError, "log_dispersion must broadcast"),
        ((X, L, T, torch.ones(3)), ValueError, r"library must have the shape of logits' rows \(5"),
        ((X, L, T, 10.0), TypeError, "library must be a tensor, got float"),
        ((X, L, T, torch.ones(2).bool()), TypeError, "library must be of an integer or"),
        ((X[:, 0], L[..., 0], T[0], torch.ones(2)), ValueError, r"library needs x of shape \(B, G"),
        ((X[None], L[:1], T, torch.ones(1)), ValueError, "library needs x of shape"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^negative_binomial_log_prob: {message}"):
        negative_binomial_log_prob(*arguments)


def test_a_wrong_argument_of_the_zero_inflated_law_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"zero_logits must broadcast to the shape \(5, 2, 3\) of logits, got \(2,\)",
    ):
        zero_inflated_negative_binomial_log_prob(X, L, T, torch.zeros(2))
