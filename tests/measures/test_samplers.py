"""What each sampler draws: number by number where the noise stream determines it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vaez_fast.measures.codes import Codes, Encoded
from vaez_fast.measures.law import best_density, fit_densities
from vaez_fast.measures.samplers import SAMPLERS, GaussianMixture, Posterior, Sampler, fit
from vaez_kernels import noise_key, normal, reference, uniform

NOISE = noise_key(0, "generate")


def codes_of(*z: Tensor) -> Codes:
    """Codes of training, validation and test images, whose posteriors carry information."""
    return Codes(*(Encoded(part, torch.full_like(part, -2.0), part) for part in z))


@pytest.fixture(scope="module")
def codes() -> Codes:
    """600, 200 and 300 of three latents: correlated, off centre, of unequal widths."""
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.3, 0.5], [0.0, 0.0, 2.0]])
    eps = normal(noise_key(1, "generate"), 1, 1100, 3)[0]
    return codes_of(*(eps @ mixing + torch.tensor([1.0, 0, -2])).split((600, 200, 300)))


@pytest.fixture(scope="module")
def z(codes: Codes) -> Tensor:
    """The training codes, (600, 3)."""
    return codes.train.z


@pytest.fixture(scope="module")
def samplers(codes: Codes) -> dict[str, Sampler]:
    return {name: fit(name, codes) for name in SAMPLERS}


def test_the_standard_normal_is_the_stream_itself(samplers: dict[str, Sampler]) -> None:
    eps = normal(NOISE, 1, 40, 3)[0]
    assert torch.equal(samplers["standard-normal"].draw(NOISE, 40), eps)


def test_a_diagonal_gaussian_shifts_and_scales_the_same_noise(codes: Codes, z: Tensor) -> None:
    eps = normal(NOISE, 1, 40, 3)[0]
    expected = z.mean(0) + z.std(0, correction=0) * eps
    torch.testing.assert_close(fit("diagonal", codes).draw(NOISE, 40), expected, rtol=0, atol=1e-5)


def test_a_full_covariance_has_the_moments_of_z(codes: Codes, z: Tensor) -> None:
    sampler = fit("full-covariance", codes)
    assert isinstance(sampler, GaussianMixture)
    factor = sampler.factors[0]
    assert torch.equal(factor, factor.tril())
    covariance = torch.cov(z.double().T, correction=0)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampler.means[0], z.double().mean(0), rtol=1e-12, atol=1e-12)
    eps = normal(NOISE, 1, 40, 3)[0].double()
    expected = (sampler.means[0] + (factor @ eps.T).T).float()
    torch.testing.assert_close(sampler.draw(NOISE, 40), expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("name", ["posterior", "held-out-posterior"])
def test_the_posterior_draws_every_image_before_any_comes_again(name: str, codes: Codes) -> None:
    own = codes.train.z if name == "posterior" else codes.validation.z
    N = len(own)
    drawn = fit(name, codes).draw(NOISE, 2 * N + 100)

    def rows(part: Tensor) -> list[list[float]]:
        return sorted(part.tolist())

    assert rows(drawn[:N]) == rows(drawn[N : 2 * N]) == rows(own)
    assert not torch.equal(drawn[:N], own)
    assert torch.equal(drawn[2 * N :], drawn[:100])


def test_the_posterior_draws_in_the_order_of_the_second_samples_uniforms(codes: Codes) -> None:
    z = codes.train.z
    u = reference.uniform(NOISE, 1, 600, 1, sample_offset=1).flatten()
    assert torch.equal(fit("posterior", codes).draw(NOISE, 600), z[u.argsort(stable=True)])


@pytest.mark.parametrize("name", SAMPLERS)
def test_row_i_does_not_depend_on_how_many_are_drawn(
    name: str, samplers: dict[str, Sampler]
) -> None:
    few, many = (samplers[name].draw(NOISE, n) for n in (7, 100))
    assert few.shape == (7, 3)
    assert few.dtype == torch.float32
    # Products of other shapes may round differently.
    torch.testing.assert_close(few, many[:7], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_key_decides_every_draw(name: str, codes: Codes, samplers: dict[str, Sampler]) -> None:
    first = samplers[name].draw(NOISE, 50)
    torch.manual_seed(1)
    assert torch.equal(fit(name, codes).draw(NOISE, 50), first)
    assert not torch.equal(samplers[name].draw(noise_key(1, "generate"), 50), first)


@pytest.mark.parametrize("name", ["full-covariance", "mixture", "flow"])
def test_a_fit_of_one_cloud_draws_its_moments(
    name: str, z: Tensor, samplers: dict[str, Sampler]
) -> None:
    drawn = samplers[name].draw(NOISE, 4000).double()
    spread = z.double().std(0)
    # Five standard errors of 4,000 draws, and what the flow's few steps leave.
    slack = 0.3 if name == "flow" else 0.0
    assert bool(((drawn.mean(0) - z.double().mean(0)).abs() <= (0.08 + slack) * spread).all())
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.08 + slack, atol=0)


def test_densities_that_were_fitted_before_are_used(codes: Codes) -> None:
    densities = fit_densities(codes, 5)
    assert fit("flow", codes, densities) is densities["flow"]
    mixtures = {name: r for name, r in densities.items() if "mixture" in name}
    best = best_density(mixtures, codes.validation.z)
    assert fit("mixture", codes, densities) is densities[best]


def test_a_mixture_follows_the_measured_latents_and_leaves_the_others_to_the_noise() -> None:
    """The second latent is not informative: its z are N(0, 1) noise in every sampler."""
    eps = normal(noise_key(3, "generate"), 1, 900, 3)[0]
    mu = torch.stack([3 * eps[:, 0].sign(), 0 * eps[:, 1], eps[:, 2]], 1)
    logvar = torch.tensor([-4.0, 0.0, -4.0]).expand_as(mu)
    z = mu + torch.exp(0.5 * logvar) * normal(noise_key(4, "generate"), 1, 900, 3)[0]
    parts = (part.split((500, 200, 200)) for part in (mu, logvar, z))
    codes = Codes(*(Encoded(*split) for split in zip(*parts, strict=True)))
    drawn = fit("mixture", codes).draw(NOISE, 400)
    assert torch.equal(drawn[:, 1], normal(NOISE, 1, 400, 3)[0, :, 1])
    assert float((drawn[:, 0].abs() - 3).abs().max()) < 1.0  # two clusters of σ = e⁻²


def test_the_posterior_keeps_no_fit(codes: Codes) -> None:
    assert isinstance(fit("posterior", codes), Posterior)


def test_an_unknown_name_lists_the_possible_ones(codes: Codes) -> None:
    with pytest.raises(ValueError, match="mixture, flow, posterior, held-out-posterior, got 'q'"):
        fit("q", codes)


@pytest.mark.parametrize(
    ("name", "rows"), [("diagonal", 1), ("full-covariance", 3), ("mixture", 199), ("posterior", 0)]
)
def test_too_few_draws_to_fit_are_refused(name: str, rows: int, z: Tensor) -> None:
    with pytest.raises(ValueError, match=r"draws|N ≥ 1"):
        fit(name, codes_of(z[:rows], z, z))
