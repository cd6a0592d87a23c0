"""Annealed importance sampling in both directions: unbiased weights, bounds of a known log p(x).

Weights are random, so their means are compared with Z and 1/Z within SIGMAS standard errors, as
measured from the independent weights themselves.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal

from vaez_fast.measures import annealed, chains, hamiltonian
from vaez_fast.measures.annealed import bidirectional, simulate
from vaez_fast.measures.chains import Draws, Ladder
from vaez_fast.model import VAE, Architecture

SIGMAS = 5.0
LOG_Z = -3.7
MEAN = torch.tensor((1.0, -0.5, 0.3))
FACTOR = torch.tensor(((0.5, 0.0, 0.0), (0.4, 0.7, 0.0), (0.0, 0.2, 1.3)))
GAUSSIAN = MultivariateNormal(MEAN, scale_tril=FACTOR, validate_args=False)


def log_gaussian(u: Tensor) -> Tensor:
    return GAUSSIAN.log_prob(u) + LOG_Z


def draws(C: int, B: int, D: int, seed: int) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        lambda i: torch.randn(C, B, D, generator=generator),
        lambda i: torch.rand(C, B, generator=generator),
    )


def standard_normal(C: int, B: int, D: int, seed: int) -> Tensor:
    return torch.randn(C, B, D, generator=torch.Generator().manual_seed(seed))


def off(values: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent values is from what it should be."""
    values = values.double().flatten()
    return float((values.mean() - expected).abs() / (values.std() / math.sqrt(len(values))))


# Hamiltonian Monte Carlo.


def test_a_transition_leaves_its_target_unchanged() -> None:
    # Steps so long that many moves are rejected: without the rejections it would fail.
    for t, size in ((0.0, 0.9), (0.4, 0.75), (1.0, 0.5)):
        # f_t of two Gaussians is a Gaussian: precisions and precision·means add up.
        precision = (1.0 - t) * torch.eye(3) + t * GAUSSIAN.precision_matrix
        mean = torch.linalg.solve(precision, t * GAUSSIAN.precision_matrix @ MEAN)
        law = MultivariateNormal(mean, precision_matrix=precision)
        torch.manual_seed(0)
        u = law.sample((20_000, 1))
        point = hamiltonian.at(u, log_gaussian)
        noise, accepted = draws(20_000, 1, 3, 1), torch.zeros(20_000, 1)
        for i in range(3):
            point, accepted = hamiltonian.transition(
                *(point, log_gaussian, t, torch.tensor([size]), 3),
                *(noise.momentum(i), noise.uniform(i)),
            )
        assert 0.3 < accepted.mean() < 0.97
        centred = point.u[:, 0] - mean
        for i in range(3):
            assert off(centred[:, i], 0.0) < SIGMAS
            for j in range(3):
                expected = float(law.covariance_matrix[i, j])
                assert off(centred[:, i] * centred[:, j], expected) < SIGMAS


def test_short_steps_are_accepted_and_the_chains_keep_their_caches() -> None:
    u = standard_normal(50, 4, 3, 2)
    noise, accepts = draws(50, 4, 3, 3), []
    for size in (0.2, 0.1):
        point, accept = hamiltonian.transition(
            *(hamiltonian.at(u, log_gaussian), log_gaussian, 0.7, torch.full((4,), size), 4),
            *(noise.momentum(0), torch.zeros(50, 4)),
        )
        accepts.append(1.0 - accept.mean().item())
        assert not torch.equal(point.u, u)
        torch.testing.assert_close(point.log_target, log_gaussian(point.u))
        expected = GAUSSIAN.precision_matrix @ (MEAN - point.u)[..., None]
        torch.testing.assert_close(point.slope, expected[..., 0], rtol=1e-4, atol=1e-5)
    # The energy's error is of order step², for every chain.
    assert accepts[1] < accepts[0] / 2.5 < 0.02


def test_a_diverged_trajectory_is_rejected() -> None:
    u = standard_normal(5, 2, 3, 4)
    point, accept = hamiltonian.transition(
        *(hamiltonian.at(u, log_gaussian), log_gaussian, 1.0, torch.full((2,), 1e18), 5),
        *(standard_normal(5, 2, 3, 5), torch.zeros(5, 2)),
    )
    assert torch.equal(point.u, u)
    assert torch.equal(accept, torch.zeros(5, 2))


# Chains between N(0, I) and a Gaussian with a known normaliser.


def ladder(B: int, steps: int = 8, size: float = 0.5) -> Ladder:
    return Ladder(tuple(i / steps for i in range(steps + 1)), torch.full((steps + 1, B), size), 3)


def test_forward_weights_have_the_expectation_z() -> None:
    run = chains.forward(
        standard_normal(4_000, 1, 3, 6), log_gaussian, ladder(1), draws(4_000, 1, 3, 7)
    )
    assert off(torch.exp(run.log_weight - LOG_Z), 1.0) < SIGMAS
    assert run.log_weight.std() > 0.1  # else the check above would be about constants
    assert float(chains.log_mean_exp(run.log_weight)) == pytest.approx(LOG_Z, abs=0.2)
    assert run.log_weight.mean() < LOG_Z


def test_backward_weights_have_the_expectation_of_its_inverse() -> None:
    torch.manual_seed(8)
    starts = GAUSSIAN.sample((4_000, 1))
    run = chains.backward(starts, log_gaussian, ladder(1), draws(4_000, 1, 3, 9))
    assert off(torch.exp(LOG_Z - run.log_weight), 1.0) < SIGMAS
    assert run.log_weight.std() > 0.1
    assert run.log_weight.mean() > LOG_Z


def test_forward_chains_end_at_the_target_and_backward_chains_at_the_base() -> None:
    long = ladder(1, steps=60)
    there = chains.forward(
        standard_normal(3_000, 1, 3, 10), log_gaussian, long, draws(3_000, 1, 3, 11)
    )
    weight = torch.softmax(there.log_weight, 0)[..., None]
    assert ((weight * there.point.u).sum(0) - MEAN).abs().max() < 0.1
    torch.manual_seed(12)
    back = chains.backward(GAUSSIAN.sample((3_000, 1)), log_gaussian, long, draws(3_000, 1, 3, 13))
    assert back.point.u.mean(0).abs().max() < 0.15
    assert (back.point.u.std(0) - 1.0).abs().max() < 0.15


def test_steps_are_tuned_for_each_image_until_four_moves_of_five_are_accepted() -> None:
    wide = torch.tensor((0.05, 1.0))[:, None]  # the first image's target is twenty times narrower

    def log_target(u: Tensor) -> Tensor:
        return -0.5 * (u / wide).square().sum(-1)

    path = tuple(min(1.0, i / 20) for i in range(201))
    start = standard_normal(20, 2, 3, 14)
    tuned = chains.tuned(start, log_target, path, 5, draws(20, 2, 3, 15))
    assert tuned.steps.shape == (201, 2)
    narrow, other = tuned.steps[-1].tolist()
    assert 10 < other / narrow < 40
    point, accepted = hamiltonian.at(start * wide, log_target), []
    noise = draws(20, 2, 3, 16)
    for i in range(50):
        point, accept = hamiltonian.transition(
            point, log_target, 1.0, tuned.steps[-1], 5, noise.momentum(i), noise.uniform(i)
        )
        accepted.append(accept.mean(0))
    assert (torch.stack(accepted).mean(0) - 0.8).abs().max() < 0.12


# log p(x) of a VAE with two latents, where quadrature knows it.


@pytest.fixture(scope="module")
def vae() -> VAE:
    made = VAE(Architecture((8,), 2, nn.Tanh, "logvar"), seed=1)
    with torch.no_grad():
        # A posterior that is not Gaussian, a few nats from q(z|x)
        for name, factor in (("decoder.0", 3.0), ("decoder.2", 0.3), ("encoder.2", 0.3)):
            made.get_parameter(f"{name}.weight").mul_(factor)
    return made


def log_px(vae: VAE, x: Tensor) -> Tensor:
    """(B,) float64 by the trapezoidal rule over a grid of z."""
    axis = torch.linspace(-5.0, 5.0, 81, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = vae.decode(z.float()).double()
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_px_z = x.double() @ logits.T - torch.logaddexp(logits, 0.0 * logits).sum(1)
    return (log_px_z + log_prior).logsumexp(1) + 2.0 * math.log(float(axis[1] - axis[0]))


@pytest.fixture(scope="module")
def simulated(vae: VAE) -> tuple[Tensor, Tensor, Tensor]:
    x, z = simulate(vae, 60, 3)
    return x, z, log_px(vae, x)


def test_both_bounds_of_simulated_images_hold_and_are_unbiased_as_weights(
    vae: VAE, simulated: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, z, truth = simulated
    found = bidirectional(vae, x, 0, z=z, chains=4, temperatures=5)
    assert found.rigorous
    assert off(torch.exp(found.lower - truth), 1.0) < SIGMAS
    assert off(torch.exp(truth - found.upper), 1.0) < SIGMAS
    assert found.lower.mean() < truth.mean() < found.upper.mean()
    assert (found.upper - found.lower).std() > 0.05  # else the checks were about constants
    assert 0.6 < found.acceptance.mean() < 0.95
    assert ((found.effective_chains >= 1.0) & (found.effective_chains <= 4.0 + 1e-9)).all()


def test_more_temperatures_bring_the_bounds_to_the_truth(
    vae: VAE, simulated: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, z, truth = (part[:30] for part in simulated)
    coarse = bidirectional(vae, x, 0, z=z, chains=4, temperatures=4)
    fine = bidirectional(vae, x, 0, z=z, chains=4, temperatures=60)
    wide, narrow = (float((run.upper - run.lower).mean()) for run in (coarse, fine))
    assert -0.1 < narrow < wide / 2
    for bound in (fine.lower, fine.upper):
        # Four chains of 30 images, whose log-weights vary by 0.4 nats
        assert abs(float((bound - truth).mean())) < SIGMAS * 0.4 / math.sqrt(4 * 30)


def test_images_of_another_origin_are_bounded_too(vae: VAE) -> None:
    x, _ = simulate(vae, 20, 4)
    truth = log_px(vae, x)
    found = bidirectional(vae, x, 0, chains=8, temperatures=30)
    assert not found.rigorous
    assert (found.lower - truth).abs().max() < 0.5
    assert (found.upper - truth).abs().max() < 0.5
    assert abs(float((found.lower - truth).mean())) < 0.1
    assert abs(float((found.upper - truth).mean())) < 0.1


def test_an_image_has_the_same_bounds_in_every_part_of_a_data_set(vae: VAE) -> None:
    x, _ = simulate(vae, 6, 5)
    whole = bidirectional(vae, x, 0, chains=2, temperatures=4)
    part = bidirectional(vae, x[4:], 0, chains=2, temperatures=4, row_offset=4)
    # Products of another size round differently.
    torch.testing.assert_close(part.lower, whole.lower[4:], rtol=0, atol=1e-2)
    torch.testing.assert_close(part.upper, whole.upper[4:], rtol=0, atol=1e-2)
    other = bidirectional(vae, x, 1, chains=2, temperatures=4)
    assert (other.lower - whole.lower).abs().max() > 0.05


def test_simulated_images_are_draws_of_the_model(vae: VAE) -> None:
    x, z = simulate(vae, 2_000, 6)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert off(z, 0.0) < SIGMAS
    assert off(z.square(), 1.0) < SIGMAS
    with torch.no_grad():
        means = torch.sigmoid(vae.decode(z))
    score = (x - means) / (means * (1.0 - means)).sqrt()
    assert off(score.mean(1), 0.0) < SIGMAS
    # The pixel follows its own image's mean, not another's.
    assert ((x - means).square().mean() < (x - means.roll(1, 0)).square().mean()).item()


def test_the_joint_density_is_that_of_torch_in_the_coordinates_of_q(vae: VAE) -> None:
    x, _ = simulate(vae, 3, 7)
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        u = standard_normal(5, 3, 2, 17)
        z = mu + torch.exp(0.5 * logvar) * u
        expected = (
            Bernoulli(logits=vae.decode(z)).log_prob(x).sum(-1)
            + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            + 0.5 * logvar.sum(-1)
        )
        ours = annealed.log_joint(vae, x, mu, logvar)(u)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-3)


def test_what_cannot_be_run_is_refused(vae: VAE) -> None:
    x, z = simulate(vae, 3, 8)
    with pytest.raises(ValueError, match="chains and temperatures must be at least 1, got 0 and 5"):
        bidirectional(vae, x, 0, chains=0, temperatures=5)
    with pytest.raises(ValueError, match="must be at least 1, got 1 and 0"):
        bidirectional(vae, x, 0, chains=1, temperatures=0)
    with pytest.raises(ValueError, match=r"z must have shape \(3, 2\), got \(2, 2\)"):
        bidirectional(vae, x, 0, z=z[:2])
