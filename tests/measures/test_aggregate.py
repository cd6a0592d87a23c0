"""Measures of the aggregate posterior against closed forms, quadrature, torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaez_fast.measures import aggregate
from vaez_fast.measures.aggregate import (
    Estimate,
    active_units,
    held_out_marginal_kl,
    kl_per_dimension,
    moments,
    null_sample_kl,
    sample_kl,
    surgery,
)
from vaez_kernels import noise_key, normal, reference, uniform

NOISE = noise_key(3, "evaluate")


def posteriors(N: int, D: int, seed: int = 0, sigma: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(N, D, generator=generator)
    return mu, 2 * math.log(sigma) + 0.3 * torch.randn(N, D, generator=generator)


def gaussian_quantiles(N: int, scale: float) -> Tensor:
    """N means (N,) at the quantiles of N(0, scale²), so without sampling noise."""
    probability = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    return (scale * math.sqrt(2.0) * torch.erfinv(2 * probability - 1)).float()


def kl_of_variance(variance: float) -> float:
    """KL(N(0, variance) ‖ N(0, 1))."""
    return 0.5 * (variance - 1 - math.log(variance))


def agrees(estimate: Estimate, truth: float, slack: float = 0.0) -> bool:
    """Within five standard errors, which fails by chance once in 10⁶, plus `slack`."""
    return abs(estimate.value - truth) <= 5 * estimate.standard_error + slack


# The parts of the rate.


def test_identical_posteriors_tell_nothing_of_the_image() -> None:
    mu, logvar = torch.full((50, 3), 0.7), torch.full((50, 3), -1.0)
    parts = surgery(mu, logvar, NOISE, 500)
    # Sums of 50 equal float32 terms.
    assert parts.index_information.value == pytest.approx(0, abs=1e-5)
    assert parts.total_correlation.value == pytest.approx(0, abs=1e-5)
    assert agrees(parts.dimension_wise_kl, 3 * 0.5 * (0.49 + math.exp(-1) - 1 + 1))


def test_two_posteriors_apart_tell_one_bit() -> None:
    mu, logvar = torch.tensor([[-4.0], [4.0]]), torch.full((2, 1), -4.0)
    parts = surgery(mu, logvar, NOISE, 1000)
    assert parts.index_information.value == pytest.approx(math.log(2), abs=1e-6)
    assert agrees(parts.marginal_kl, parts.rate - math.log(2))
    # Without its own component a draw is 8 away from the only other one, where σ = e^−2.
    assert parts.leave_one_out_marginal_kl.value < -1000


def test_index_information_saturates_at_log_n() -> None:
    mu, logvar = posteriors(100, 64, sigma=0.01)
    assert surgery(mu, logvar, NOISE, 300).index_information.value == pytest.approx(math.log(100))


def test_one_dimension_agrees_with_quadrature() -> None:
    mu, logvar = posteriors(5, 1, sigma=0.6)
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    each = Normal(mu.double(), torch.exp(0.5 * logvar.double())).log_prob(grid)  # (5, grid)
    log_q = each.logsumexp(0) - math.log(5)
    marginal = torch.trapezoid(log_q.exp() * (log_q - Normal(0, 1).log_prob(grid)), grid)
    information = torch.trapezoid(each.exp() * (each - log_q), grid, dim=1).mean()

    parts = surgery(mu, logvar, NOISE, 20_000)
    assert parts.marginal_kl.standard_error < 0.01
    assert agrees(parts.marginal_kl, float(marginal))
    assert agrees(parts.index_information, float(information))
    assert parts.total_correlation.value == pytest.approx(0, abs=1e-5)
    assert agrees(parts.dimension_wise_kl, float(marginal))


def test_a_linear_gaussian_encoder_has_the_channels_capacity() -> None:
    # x ~ N(0, a²), z = x + s·eps: I = ½ log(1 + a²/s²) and q(z) = N(0, a² + s²).
    a, s = 1.5, 0.4
    mu = gaussian_quantiles(2000, a)[:, None]
    parts = surgery(mu, torch.full_like(mu, 2 * math.log(s)), NOISE, 4000)
    # The variance of the 2,000 quantiles is 0.1 % below a².
    assert agrees(parts.index_information, 0.5 * math.log(1 + a**2 / s**2), slack=2e-3)
    assert agrees(parts.marginal_kl, kl_of_variance(a**2 + s**2), slack=2e-3)


def test_perfectly_correlated_means_have_the_total_correlation_of_a_gaussian() -> None:
    # q(z) is Gaussian with correlation r = a²/(a² + s²); its total correlation is −½ log(1 − r²).
    a, s = 1.0, 0.5
    mu = gaussian_quantiles(2000, a)[:, None].repeat(1, 2)
    parts = surgery(mu, torch.full_like(mu, 2 * math.log(s)), NOISE, 4000)
    r = a**2 / (a**2 + s**2)
    assert agrees(parts.total_correlation, -0.5 * math.log(1 - r**2), slack=2e-3)
    assert agrees(parts.dimension_wise_kl, 2 * kl_of_variance(a**2 + s**2), slack=2e-3)


def test_means_on_a_grid_have_no_total_correlation() -> None:
    # Every pair of 40 values occurs once, so q(z) is exactly the product of its marginals.
    mu = torch.cartesian_prod(gaussian_quantiles(40, 1.0), gaussian_quantiles(40, 2.0))
    logvar = torch.tensor([-2.0, -1.0]).expand_as(mu)
    parts = surgery(mu, logvar, NOISE, 300)
    assert parts.total_correlation.value == pytest.approx(0, abs=1e-5)
    assert parts.index_information.value > 1


def test_the_parts_add_up_to_the_rate() -> None:
    mu, logvar = posteriors(300, 6)
    parts = surgery(mu, logvar, NOISE, 2000)
    total, error = 0.0, 0.0
    for part in (parts.index_information, parts.total_correlation, parts.dimension_wise_kl):
        assert part.value > 0
        total, error = total + part.value, error + part.standard_error
    assert error < 0.2
    assert agrees(Estimate(total, error), parts.rate)
    # Both sides use the same draws, so this sum is exact.
    split = parts.total_correlation.value + parts.dimension_wise_kl.value
    assert parts.marginal_kl.value == pytest.approx(split, abs=1e-9)


def float64_parts(mu: Tensor, logvar: Tensor, count: int) -> dict[str, Tensor]:
    """The same draws through torch.distributions, at once and in float64."""
    N, D = mu.shape
    index = uniform(NOISE, 1, N, 1).flatten().argsort(stable=True)[:count]
    eps = reference.normal(NOISE, 1, count, D, sample_offset=1)[0]
    mu, sigma = mu.double(), torch.exp(0.5 * logvar.double())
    z = mu[index] + sigma[index] * eps

    def mixture(keep: Tensor) -> MixtureSameFamily:
        components = Independent(Normal(mu[keep], sigma[keep]), 1)
        return MixtureSameFamily(Categorical(torch.ones(len(keep)).double()), components)

    everything = torch.arange(N)
    log_q = mixture(everything).log_prob(z)
    by_dimension = MixtureSameFamily(Categorical(torch.ones(D, N).double()), Normal(mu.T, sigma.T))
    log_p = Normal(0.0, 1.0).log_prob(z).sum(1)
    others = [mixture(everything[everything != n]).log_prob(z[m]) for m, n in enumerate(index)]
    return {
        "index_information": Normal(mu[index], sigma[index]).log_prob(z).sum(1) - log_q,
        "marginal_kl": log_q - log_p,
        "total_correlation": log_q - by_dimension.log_prob(z).sum(1),
        "dimension_wise_kl": by_dimension.log_prob(z).sum(1) - log_p,
        "leave_one_out_marginal_kl": torch.stack(others) - log_p,
    }


@pytest.mark.parametrize("sigma", [1.0, 0.03, 1e-3])
def test_the_parts_agree_with_float64(sigma: float) -> None:
    mu, logvar = posteriors(60, 7, sigma=sigma)
    parts = surgery(mu, logvar, NOISE, 40)
    for name, draws in float64_parts(mu, logvar, 40).items():
        ours = getattr(parts, name)
        # Rounding z to float32 changes it by 6e-8 of itself, and t = (z − mu)/σ by 6e-8/σ; over 40
        # draws of seven dimensions most of that averages out. Sums over the dimensions are float32.
        # Without its own component a draw is many σ away; its error is relative to that squared.
        left_out = name == "leave_one_out_marginal_kl"
        relative, absolute = (1e-6 if left_out else 0.0), 2e-6 + 1e-8 / sigma
        truth = float(draws.mean())
        assert ours.value == pytest.approx(truth, rel=relative, abs=absolute), name
        standard_error = float(draws.std()) / math.sqrt(40)
        assert ours.standard_error == pytest.approx(standard_error, rel=1e-2, abs=1e-3), name


def test_blocks_do_not_change_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mu, logvar = posteriors(100, 5)
    whole = surgery(mu, logvar, NOISE, 50)
    monkeypatch.setitem(aggregate.BLOCK, "cpu", 7 * 3 * 5)
    monkeypatch.setattr(aggregate, "DRAWS_AT_ONCE", 7)
    in_blocks = surgery(mu, logvar, NOISE, 50)
    for name in ("index_information", "total_correlation", "leave_one_out_marginal_kl"):
        # float32 sums in blocks add in another order.
        assert getattr(in_blocks, name) == pytest.approx(getattr(whole, name), abs=1e-5), name


@pytest.mark.parametrize("logvars", [(-30.0, 0.0, 8.0), (-176.0, -176.0, -176.0)])
def test_posteriors_of_extreme_widths_stay_finite(logvars: tuple[float, ...]) -> None:
    # At −176 the sum of three densities of e^88 overflows float32.
    mu, logvar = torch.zeros(3, 2), torch.tensor(logvars)[:, None].expand(3, 2)
    parts = surgery(mu, logvar, NOISE, 300)
    for name in ("index_information", "marginal_kl", "total_correlation"):
        assert math.isfinite(getattr(parts, name).value), name


# Images beyond those at hand.


def test_the_truth_lies_between_leaving_out_the_own_component_and_keeping_it() -> None:
    # mu ~ N(0, ¾ I) and σ = ½: over infinitely many images q(z) = N(0, I), with a marginal KL of 0.
    mu = math.sqrt(0.75) * torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    parts = surgery(mu, torch.full_like(mu, 2 * math.log(0.5)), NOISE, 2000)
    kept, left_out = parts.marginal_kl, parts.leave_one_out_marginal_kl
    assert left_out.value < -5 * left_out.standard_error
    assert kept.value > 5 * kept.standard_error


def test_a_draw_of_held_out_images_is_like_one_without_its_own_component() -> None:
    mu, logvar = posteriors(4000, 2)
    held_out = held_out_marginal_kl(mu[:2000], logvar[:2000], mu[2000:], logvar[2000:], NOISE, 2000)
    parts = surgery(mu[:2000], logvar[:2000], NOISE, 2000)
    left_out = parts.leave_one_out_marginal_kl
    error = math.hypot(held_out.standard_error, left_out.standard_error)
    assert error < 0.1
    assert agrees(Estimate(held_out.value, error), left_out.value)


def test_held_out_images_elsewhere_find_no_density() -> None:
    mu, logvar = posteriors(100, 2)
    elsewhere = held_out_marginal_kl(mu, logvar, mu + 30, logvar, NOISE, 100)
    assert elsewhere.value < -100
    assert math.isfinite(elsewhere.value)


def test_held_out_images_equal_to_the_mixtures_give_its_marginal_kl() -> None:
    mu, logvar = posteriors(100, 3)
    held_out = held_out_marginal_kl(mu, logvar, mu, logvar, NOISE, 80)
    assert held_out == pytest.approx(surgery(mu, logvar, NOISE, 80).marginal_kl, abs=1e-9)


@pytest.mark.parametrize(("images", "draws"), [(1, 10), (10, 1)])
def test_too_few_images_or_draws_are_refused(images: int, draws: int) -> None:
    mu, logvar = posteriors(images, 2)
    with pytest.raises(ValueError, match="at least"):
        surgery(mu, logvar, NOISE, draws)
    with pytest.raises(ValueError, match="at least"):
        held_out_marginal_kl(mu, logvar, mu, logvar, NOISE, draws)


# The KL of fitted moments.


def test_sample_kl_is_that_of_the_fitted_gaussian() -> None:
    z = torch.tensor([[1.0, -2.0], [3.0, 2.0]])  # means 2, 0; variances 1, 4
    truth = 0.5 * (4 + 1 - 1) + 0.5 * (4 - 1 - math.log(4))
    assert sample_kl(z) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("n", "D"), [(2, 3), (10, 4), (128, 128)])
def test_sample_kl_of_normal_numbers_is_its_null_on_average(n: int, D: int) -> None:
    repeats = 400
    z = normal(noise_key(0, "evaluate"), repeats, n, D)
    kls = torch.tensor([sample_kl(draws) for draws in z], dtype=torch.float64)
    error = float(kls.std()) / math.sqrt(repeats)
    assert error < 0.1 * null_sample_kl(n, D)
    assert agrees(Estimate(float(kls.mean()), error), null_sample_kl(n, D))


def test_the_null_is_one_over_n_to_first_order() -> None:
    assert null_sample_kl(128, 128) == pytest.approx(1.0, abs=0.01)
    assert null_sample_kl(10_000, 128) == pytest.approx(0.0128, rel=1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        null_sample_kl(1, 3)


# Dimensions and moments.


def test_the_kl_of_the_dimensions_sums_to_the_rate() -> None:
    mu, logvar = posteriors(200, 6)
    per_dimension = kl_per_dimension(mu, logvar)
    assert per_dimension.shape == (6,)
    rate = float(reference.kl_standard_normal(mu, logvar).mean())
    assert float(per_dimension.sum()) == pytest.approx(rate, rel=1e-12)
    assert surgery(mu, logvar, NOISE, 2).rate == pytest.approx(rate, rel=1e-12)
    one = kl_per_dimension(mu[:, 2:3], logvar[:, 2:3])
    assert float(one) == pytest.approx(float(per_dimension[2]), rel=1e-12)


def test_a_unit_is_active_where_its_mean_varies() -> None:
    signs = torch.tensor([-1.0, 1.0]).repeat(10)[:, None]
    # Variances 0.0121, 0.0081, 0 and 1. Only the spread counts, not the mean.
    mu = signs * torch.tensor([0.11, 0.09, 0.0, 1.0]) + torch.tensor([0.0, 0.0, 5.0, 0.0])
    assert active_units(mu) == 2
    assert active_units(mu, threshold=0.005) == 3


def test_the_variance_of_a_units_mean_is_that_of_all_images() -> None:
    # ±0.099 over 20 images has the variance 0.0098; the unbiased estimate would be 0.0103.
    assert active_units(0.099 * torch.tensor([-1.0, 1.0]).repeat(10)[:, None]) == 0


def test_moments_of_known_columns() -> None:
    coin = torch.tensor([-1.0, 1.0]).repeat(4)  # variance 1, fourth moment 1: excess −2
    spike = torch.tensor([0, 0, 0, 0, 0, 0, -2.0, 2.0])  # variance 1, fourth moment 4: excess 1
    found = moments(torch.stack([coin + 3, 2 * spike], 1))
    assert found.largest_abs_mean == 3
    assert found.smallest_variance == pytest.approx(1)
    assert found.largest_variance == pytest.approx(4)
    assert found.smallest_excess_kurtosis == pytest.approx(-2)
    assert found.largest_excess_kurtosis == pytest.approx(1)
    # Σ coin·spike / 8 = (−1·−2 + 1·2)/8
    assert found.largest_abs_correlation == pytest.approx(0.5)


def test_the_largest_correlation_is_found_whatever_its_sign() -> None:
    z = normal(noise_key(0, "evaluate"), 1, 1000, 3)[0]
    assert moments(z).largest_abs_correlation < 0.2
    assert moments(torch.cat([z, -z[:, :1]], 1)).largest_abs_correlation == pytest.approx(1)
    assert moments(z[:, :1]).largest_abs_correlation == 0
