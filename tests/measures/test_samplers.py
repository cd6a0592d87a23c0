"""What each sampler draws: number by number where the noise stream determines it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vaez_fast.measures import samplers
from vaez_fast.measures.samplers import SAMPLERS, GaussianMixture, Posterior, fit
from vaez_kernels import noise_key, normal, reference, uniform

NOISE = noise_key(0, "generate")


@pytest.fixture(scope="module")
def z() -> Tensor:
    """(600, 3): correlated, off centre, of unequal widths."""
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.3, 0.5], [0.0, 0.0, 2.0]])
    return normal(noise_key(1, "generate"), 1, 600, 3)[0] @ mixing + torch.tensor([1.0, 0, -2])


def gaussian(name: str, z: Tensor) -> GaussianMixture:
    sampler = fit(name, z)
    assert isinstance(sampler, GaussianMixture)
    return sampler


def test_the_standard_normal_is_the_stream_itself(z: Tensor) -> None:
    eps = normal(NOISE, 1, 40, 3)[0]
    assert torch.equal(fit("standard-normal", z).draw(NOISE, 40), eps)


def test_a_diagonal_gaussian_shifts_and_scales_the_same_noise(z: Tensor) -> None:
    eps = normal(NOISE, 1, 40, 3)[0]
    expected = z.mean(0) + z.std(0, correction=0) * eps
    torch.testing.assert_close(fit("diagonal", z).draw(NOISE, 40), expected, rtol=0, atol=1e-5)


def test_a_full_covariance_has_the_moments_of_z(z: Tensor) -> None:
    sampler = gaussian("full-covariance", z)
    factor = sampler.factors[0]
    assert torch.equal(factor, factor.tril())
    covariance = torch.cov(z.double().T, correction=0)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampler.means[0], z.double().mean(0), rtol=1e-12, atol=1e-12)
    eps = normal(NOISE, 1, 40, 3)[0].double()
    expected = (sampler.means[0] + (factor @ eps.T).T).float()
    torch.testing.assert_close(sampler.draw(NOISE, 40), expected, rtol=0, atol=1e-6)


def test_a_mixture_finds_the_clusters_and_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    # Ten tight clusters on a circle, cluster k with 20 (k + 1) points.
    k = torch.repeat_interleave(torch.arange(10), 20 * torch.arange(1, 11))
    angle = 2 * math.pi * k / 10
    centre = 10 * torch.stack([angle.cos(), angle.sin()], 1)
    points = centre + 0.1 * normal(noise_key(2, "generate"), 1, len(k), 2)[0]
    sampler = gaussian("mixture", points[torch.randperm(len(k), generator=generator)])
    shares = sampler.weights.sort().values
    torch.testing.assert_close(
        shares, torch.arange(1, 11) / 55.0, rtol=0, atol=1e-6, check_dtype=False
    )

    drawn = sampler.draw(NOISE, 5000)
    distance, cluster = torch.cdist(
        drawn,
        10
        * torch.stack(
            [torch.arange(10).mul(math.pi / 5).cos(), torch.arange(10).mul(math.pi / 5).sin()], 1
        ),
    ).min(1)
    # A centre is off by a few times 0.1/√20 at most; a radius of 0.6 is six standard deviations.
    assert distance.max() < 0.7
    for c in range(10):
        p = (c + 1) / 55
        share = float((cluster == c).double().mean())
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / 5000)


def test_a_component_is_chosen_by_the_cumulative_weights() -> None:
    weights = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64)
    means = torch.tensor([[0.0], [100.0], [200.0]], dtype=torch.float64)
    sampler = GaussianMixture(weights, means, torch.full((3, 1, 1), 0.1, dtype=torch.float64))
    u = uniform(NOISE, 1, 1000, 1, sample_offset=1).flatten()
    drawn = sampler.draw(NOISE, 1000).flatten()
    assert torch.equal((drawn / 100).round(), torch.where(u < 0.25, 0.0, 2.0))


def test_the_component_says_nothing_of_the_noise_within_it() -> None:
    # With the same sample number, u would be the radius of the first normal number.
    halves = torch.full((2,), 0.5, dtype=torch.float64)
    means = torch.tensor([[-100.0, 0.0], [100.0, 0.0]], dtype=torch.float64)
    sampler = GaussianMixture(halves, means, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    drawn = sampler.draw(NOISE, 4000)
    eps = drawn - 100 * drawn[:, :1].sign() * torch.tensor([1.0, 0.0])
    for side in (drawn[:, 0] < 0, drawn[:, 0] > 0):
        squares = eps[side].square().double()  # chi-squared: mean 1, variance 2
        assert bool(((squares.mean(0) - 1).abs() <= 5 * math.sqrt(2 / len(squares))).all())


def test_the_posterior_draws_every_image_before_any_comes_again(z: Tensor) -> None:
    drawn = fit("posterior", z).draw(NOISE, 1300)

    def rows(part: Tensor) -> list[list[float]]:
        return sorted(part.tolist())

    assert rows(drawn[:600]) == rows(drawn[600:1200]) == rows(z)
    assert not torch.equal(drawn[:600], z)
    assert torch.equal(drawn[1200:], drawn[:100])


def test_the_posterior_draws_in_the_order_of_the_second_samples_uniforms(z: Tensor) -> None:
    u = reference.uniform(NOISE, 1, 600, 1, sample_offset=1).flatten()
    assert torch.equal(fit("posterior", z).draw(NOISE, 600), z[u.argsort(stable=True)])


def test_a_mixture_is_fitted_to_the_first_rows(z: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit("mixture", z[:300]).draw(NOISE, 20)
    monkeypatch.setattr(samplers, "MIXTURE_FITTED_ON", 300)
    assert torch.equal(fit("mixture", z).draw(NOISE, 20), first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_row_i_does_not_depend_on_how_many_are_drawn(name: str, z: Tensor) -> None:
    sampler = fit(name, z)
    few, many = sampler.draw(NOISE, 7), sampler.draw(NOISE, 100)
    assert few.shape == (7, 3)
    assert few.dtype == torch.float32
    # Products of other shapes may round differently in float64.
    torch.testing.assert_close(few, many[:7], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_key_decides_every_draw(name: str, z: Tensor) -> None:
    torch.manual_seed(0)
    first = fit(name, z).draw(NOISE, 50)
    torch.manual_seed(1)
    assert torch.equal(fit(name, z).draw(NOISE, 50), first)
    assert not torch.equal(fit(name, z).draw(noise_key(1, "generate"), 50), first)


def test_a_mixture_of_one_cloud_still_draws_its_moments(z: Tensor) -> None:
    drawn = fit("mixture", z).draw(NOISE, 4000).double()
    spread = z.double().std(0)
    # Expectation-maximisation keeps the mean of the points: within five standard errors of 4,000
    # draws.
    assert bool(((drawn.mean(0) - z.double().mean(0)).abs() <= 5 * spread / 4000**0.5).all())
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.08, atol=0)  # 5/√(2·4000) and kurtosis


def test_the_posterior_keeps_no_fit(z: Tensor) -> None:
    assert isinstance(fit("posterior", z), Posterior)


def test_an_unknown_name_lists_the_possible_ones(z: Tensor) -> None:
    with pytest.raises(ValueError, match="posterior, diagonal, full-covariance, mixture, got 'q'"):
        fit("q", z)


@pytest.mark.parametrize(
    ("name", "rows"), [("diagonal", 1), ("full-covariance", 3), ("mixture", 9), ("posterior", 0)]
)
def test_too_few_draws_to_fit_are_refused(name: str, rows: int, z: Tensor) -> None:
    with pytest.raises(ValueError, match=r"draws|N ≥ 1|n_samples"):
        fit(name, z[:rows])
