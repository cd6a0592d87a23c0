"""Training with richer posteriors and priors, free bits, KL warm-up and the article's optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, load
from vaez_fast.model import VAE, Linear
from vaez_fast.objective import NegativeElbo
from vaez_fast.richer.posteriors import FullCovariance
from vaez_fast.richer.priors import EvenMixture, Mixture, Vamp
from vaez_fast.richer.vae import RicherVAE, build
from vaez_fast.system.errors import ConfigError
from vaez_fast.system.world import World
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import CenteredRMSprop
from vaez_fast.training.phases import phases
from vaez_fast.training.train import train
from vaez_kernels import noise_key, normal

SEED, BATCH, STEPS = 5, 50, 30
KEY = noise_key(SEED, "train")
ARMS: list[dict[str, Any]] = [
    {"posterior": "full-covariance"},
    {"posterior": "iaf"},
    {"prior": "mixture"},
    {"prior": "vamp"},
    {"prior": "flow"},
    {"posterior": "iaf", "prior": "flow", "num_samples": 2},
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    full = load("mnist-5k")
    few = first(full.train, 20 * BATCH), first(full.validation, 20), first(full.test, 20)
    return Dataset("mnist-1k", *few)


def images(dataset: Dataset) -> Tensor:
    return (dataset.train.images.flatten(1) > 127).to(torch.uint8)


def engine_of(dataset: Dataset, precision: torch.dtype = torch.float32, **arm: Any) -> Engine:
    shared: dict[str, Any] = {"model": "lyeoni", "seed": SEED, "lr": 3e-3, "batch_size": BATCH}
    config = TrainConfig(**shared, epochs=None, steps=STEPS, **arm)
    vae = build(config.model, config.posterior, config.prior, SEED)
    batches = Batches(images(dataset), BATCH)
    (phase,) = phases(config, vae, batches, steps=STEPS, precision=precision, pixel_scale=1.0)
    return phase.engines[0]


def losses(engine: Engine) -> list[float]:
    found = []
    for _ in range(STEPS):
        engine.step()
        found.append(sum(engine.take_totals(1)))
    return found


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_every_part_of_a_richer_model_learns(
    arm: dict[str, Any], precision: torch.dtype, dataset: Dataset
) -> None:
    with uncompiled():
        engine = engine_of(dataset, precision, **arm)
    before = [w.clone() for w in engine.state.weights]
    found = losses(engine)
    assert found[-1] < 0.6 * found[0]  # from 540 nats
    for name, a, b in zip(engine.names, before, engine.state.weights, strict=True):
        assert not torch.equal(a, b), name
    parts = {name.split(".")[1] for name in engine.names}
    assert parts - {"encoder", "decoder"} == arm.keys() - {"num_samples"}


def test_a_compiled_step_is_the_models_own(dataset: Dataset) -> None:
    arm: dict[str, Any] = {"posterior": "full-covariance", "prior": "mixture"}
    compiled = losses(engine_of(dataset, **arm))
    with uncompiled():
        own = losses(engine_of(dataset, **arm))
    # Rounding of float32 grows over 30 steps; a wrong term would be nats.
    assert compiled == pytest.approx(own, rel=1e-4)


# The objective.


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(6, 784, generator=generator) < 0.2).float()


def normal_of(mu: Tensor, logvar: Tensor) -> torch.distributions.Distribution:
    parts = torch.distributions.Normal(mu.double(), torch.exp(0.5 * logvar.double()))
    return torch.distributions.Independent(parts, 1)


def test_the_rate_is_log_q_minus_log_p_of_the_drawn_z() -> None:
    vae = RicherVAE("burda", "diagonal", "mixture", SEED)
    rate, distortion = NegativeElbo(vae, "total-derivative", num_samples=3)(pixels(), KEY)
    mu, logvar = vae.encode(pixels())
    z = mu + torch.exp(0.5 * logvar) * normal(KEY, 3, 6, 50)
    law = vae.law()
    assert isinstance(law, EvenMixture)
    choice = torch.distributions.Categorical(torch.ones(100).double())
    p = torch.distributions.MixtureSameFamily(choice, normal_of(law.mu, law.logvar))
    wanted = (normal_of(mu, logvar).log_prob(z.double()) - p.log_prob(z.double())).mean(0)
    torch.testing.assert_close(rate.double(), wanted, rtol=1e-5, atol=1e-4)
    log_px = torch.distributions.Bernoulli(logits=vae.decode(z)).log_prob(pixels()).sum(-1)
    torch.testing.assert_close(distortion, -log_px.mean(0), rtol=1e-5, atol=1e-3)


def test_the_monte_carlo_rate_under_a_learned_gaussian_is_unbiased() -> None:
    vae = RicherVAE("lyeoni", "diagonal", "mixture", SEED)
    vae.prior = Mixture(2, components=1)
    with torch.no_grad():
        vae.prior.components.copy_(torch.tensor([[[1.0, -0.5]], [[0.7, -0.3]]]))
    mu, logvar = vae.encode(pixels())
    wanted = torch.distributions.kl_divergence(
        normal_of(mu, logvar), normal_of(*vae.prior.components[:, 0])
    )
    with torch.no_grad():
        rate, _ = NegativeElbo(vae, "total-derivative", num_samples=4_000)(pixels(), KEY)
    # log q − log p has a standard deviation near 1: 4 standard errors of 4,000 terms.
    torch.testing.assert_close(rate.double(), wanted, rtol=0, atol=4 / 4_000**0.5)


def test_the_analytic_rate_of_a_full_covariance_is_the_mean_of_the_monte_carlo_one() -> None:
    vae = RicherVAE("lyeoni", "full-covariance", seed=SEED)
    assert isinstance(vae.posterior, FullCovariance)
    torch.nn.init.constant_(vae.posterior.mixing.bias, 0.8 / vae.posterior.scale)
    with torch.no_grad():
        exact, _ = NegativeElbo(vae, "analytic")(pixels(), KEY)
        drawn, _ = NegativeElbo(vae, "total-derivative", num_samples=4_000)(pixels(), KEY)
    assert float(exact.min()) > 0.3  # ½·0.8² from the entry below the diagonal
    torch.testing.assert_close(drawn, exact, rtol=0, atol=4 / 4_000**0.5)


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_rows_that_a_rank_has_are_the_rows_of_the_whole(arm: dict[str, Any]) -> None:
    config = TrainConfig(model="lyeoni", **arm)
    vae = build("lyeoni", config.posterior, config.prior, SEED)
    objective = NegativeElbo(vae, config.kl, num_samples=2)
    whole, part = objective(pixels(), KEY), objective(pixels()[4:], KEY, 4)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[4:], b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("free_bits", [0.02, 0.3])
def test_free_bits_are_a_maximum_for_each_latent_of_the_mean_over_the_batch(
    free_bits: float,
) -> None:
    vae = VAE("burda", SEED)
    mu, logvar = (t.double() for t in vae.encode(pixels()))
    latents = torch.zeros(())
    below = []
    for j in range(50):
        q = torch.distributions.Normal(mu[:, j], torch.exp(0.5 * logvar[:, j]))
        p = torch.distributions.Normal(torch.zeros_like(mu[:, j]), torch.ones_like(mu[:, j]))
        kl = torch.distributions.kl_divergence(q, p).mean()
        latents = latents + max(kl, torch.tensor(free_bits))
        below.append(bool(kl < free_bits))
    assert any(below)
    assert all(below) == (free_bits == 0.3)
    rate, distortion = NegativeElbo(vae, "analytic", free_bits=free_bits)(pixels(), KEY)
    assert rate.tolist() == pytest.approx([latents.item()] * 6, rel=1e-6)
    assert torch.equal(distortion, NegativeElbo(vae, "analytic")(pixels(), KEY)[1])
    # The heads of latents below λ get no gradient from the rate.
    last = vae.encoder[-1]
    assert isinstance(last, Linear)
    (gradient,) = torch.autograd.grad(rate.mean(), last.bias)
    assert (gradient.view(2, 50) == 0).all(0).tolist() == below


# What surrounds the objective.


def test_the_rates_weight_rises_to_beta_and_stays(dataset: Dataset) -> None:
    with uncompiled():
        schedule = engine_of(dataset, beta=2.0, kl_warmup=0.5).schedule[:, 0].tolist()
        plain = engine_of(dataset, beta=2.0).schedule[:, 0].tolist()
    wanted = [2.0 * min(1.0, step / 15) for step in range(STEPS)]
    assert schedule == pytest.approx(wanted, abs=1e-6)
    assert schedule[0] == 0.0
    assert plain == [2.0] * STEPS


def test_the_articles_optimizer_is_centred_rmsprop_at_a_constant_rate(dataset: Dataset) -> None:
    with uncompiled():
        engine = engine_of(dataset, optimizer="rmsprop")
    assert engine.optimizer == CenteredRMSprop()
    assert engine.schedule[:, 1].tolist() == pytest.approx([3e-3] * STEPS)


def test_centred_rmsprop_stands_equal_gradients_whose_variance_rounds_below_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.rand(10_000, generator=generator) + 0.5
    weight = torch.zeros_like(gradient)
    square, mean = torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = CenteredRMSprop()
    seen = 0
    for _ in range(3_000):
        optimizer.update(weight, gradient, [square, mean], [torch.tensor(1e-6)])
        seen += int((square < mean.square()).sum())
    assert seen > 0  # or this test shows nothing
    assert bool(weight.isfinite().all())


def test_pseudo_inputs_start_near_the_first_images(dataset: Dataset) -> None:
    config = TrainConfig(model="lyeoni", prior="vamp", batch_size=BATCH)
    vae = build("lyeoni", "diagonal", "vamp", SEED)
    assert isinstance(vae, RicherVAE)
    assert isinstance(vae.prior, Vamp)
    batches = Batches(images(dataset), BATCH)
    with uncompiled():
        phases(config, vae, batches, steps=1, precision=torch.float32, pixel_scale=1.0)
    wanted = math.log(9) * (2 * images(dataset)[:500].float() - 1)  # logit of 0.1 and 0.9
    torch.testing.assert_close(vae.prior.logits[0], wanted)


def test_a_model_starts_from_the_same_encoder_and_decoder_whatever_is_added() -> None:
    plain = VAE("burda", SEED).state_dict()
    for arm in ARMS:
        names = {name: value for name, value in arm.items() if name != "num_samples"}
        richer = build("burda", **names, seed=SEED).state_dict()
        assert all(torch.equal(p, richer[name]) for name, p in plain.items())
        assert len(richer) > len(plain)
    assert type(build("burda", seed=SEED)) is VAE


def test_only_a_diagonal_posterior_is_a_mean_and_a_variance() -> None:
    for posterior in ("full-covariance", "iaf"):
        with pytest.raises(ConfigError, match=f"only a diagonal .* posterior is {posterior}"):
            RicherVAE("lyeoni", posterior).encode(pixels())
    with pytest.raises(ValueError, match="prior 'vamp' needs posterior diagonal, got 'iaf'"):
        RicherVAE("lyeoni", "iaf", "vamp")
    with pytest.raises(ValueError, match="prior must be one of standard-normal, mixture, vamp"):
        RicherVAE("lyeoni", prior="real-nvp")
    with pytest.raises(ValueError, match="posterior must be one of diagonal, full-covariance, iaf"):
        RicherVAE("lyeoni", "gaussian")


def test_free_bits_are_refused_where_ranks_share_a_batch(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="free_bits needs a single process"):
        train(TrainConfig(free_bits=0.1, batch_size=BATCH), dataset, world=World(0, 2))
