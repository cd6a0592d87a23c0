"""The regimes of the article: what each half learns from, and which weights stay unchanged."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.training.digits import first
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.model import MODELS, VAE
from vaez_fast.objective import Distortion, NegativeElbo, Rate
from vaez_fast.training.phases import forget_x
from vaez_fast.training.train import Result, train
from vaez_kernels import kl_standard_normal, noise_key, reference

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

BASE = TrainConfig(model="lyeoni", epochs=6, batch_size=50, lr=3e-3, seed=3)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """1,000 / 100 / 100 real digits."""
    full = load("mnist-5k")

    return Dataset("mnist-1k", first(full.train, 1000), first(full.validation, 100), full.test)


@pytest.fixture(scope="module")
def runs(dataset: Dataset) -> dict[str, Result]:
    def run(objective: str, decoder: str) -> Result:
        arm = {"objective": objective, "decoder": decoder}
        return train(dataclasses.replace(BASE, **arm), dataset)  # type: ignore[arg-type]

    return {
        "separate": run("kl", "separate"),
        "simultaneous": run("kl", "simultaneous"),
        "randn": run("elbo", "randn"),
    }


def half(result: Result, name: str) -> dict[str, Tensor]:
    return {n: p for n, p in result.vae.state_dict().items() if n.startswith(name)}


def test_separate_and_simultaneous_encoders_are_the_same_bit_for_bit(
    runs: dict[str, Result],
) -> None:
    separate, simultaneous = (half(runs[name], "encoder") for name in ("separate", "simultaneous"))
    start = VAE("lyeoni", BASE.seed).state_dict()
    for name, p in separate.items():
        assert torch.equal(p, simultaneous[name])
        assert not torch.equal(p, start[name])  # it has learnt


def test_the_decoders_differ_because_they_saw_other_encoders(runs: dict[str, Result]) -> None:
    separate, simultaneous = (half(runs[name], "decoder") for name in ("separate", "simultaneous"))
    assert any(not torch.equal(p, simultaneous[name]) for name, p in separate.items())


def test_the_kl_alone_takes_the_rate_to_nearly_zero(runs: dict[str, Result]) -> None:
    for name in ("separate", "simultaneous"):
        rates = [p["rate"] for p in runs[name].curve if p["split"] == "validation"]
        assert rates[-1] < 0.01
        assert rates[-1] < rates[0]
        assert runs[name].test.rate < 0.01


def test_a_decoder_that_learns_nothing_of_x_ends_near_the_pixel_marginals(
    runs: dict[str, Result], dataset: Dataset
) -> None:
    train_x, test_x = (binarized(dataset, s, "static").double() for s in ("train", "test"))
    frequency = ((train_x.sum(0) + 0.5) / (len(train_x) + 1)).expand_as(test_x)
    marginal = -float(torch.distributions.Bernoulli(frequency).log_prob(test_x).sum(1).mean())
    for result in runs.values():
        # After 120 steps it is within 5 nats; an untrained decoder is at 784·ln 2 = 543 nats.
        assert abs(result.test.distortion - marginal) < 5


def test_without_an_encoder_q_is_the_prior(runs: dict[str, Result]) -> None:
    assert runs["randn"].test.rate < 1e-9
    vae = runs["randn"].vae
    mu, logvar = vae.encode(torch.rand(5, 784))
    assert mu.abs().max() == 0
    assert logvar.abs().max() < 1e-6


@pytest.mark.parametrize("name", list(MODELS))
def test_an_encoder_that_forgets_x_gives_the_standard_normal(name: str) -> None:
    vae = VAE(name)
    forget_x(vae)
    kl = kl_standard_normal(*vae.encode(torch.rand(7, 784)))
    assert kl.max() < 1e-9


def test_phases_are_named_in_the_curve_and_each_runs_its_length(runs: dict[str, Result]) -> None:
    phases = [p["phase"] for p in runs["separate"].curve if p["split"] == "train"]
    assert phases == ["encoder"] * 6 + ["decoder"] * 6
    assert [p["step"] for p in runs["separate"].curve][::2] == list(range(20, 241, 20))
    assert runs["separate"].steps == 240
    assert runs["simultaneous"].steps == 120
    assert {p["phase"] for p in runs["simultaneous"].curve} == {"encoder and decoder"}


def test_what_does_not_train_the_elbo_keeps_its_last_state(runs: dict[str, Result]) -> None:
    assert runs["separate"].best_step == 240
    assert runs["randn"].best_step == 120


def test_an_observer_sees_the_model_at_its_steps_and_changes_nothing(
    runs: dict[str, Result], dataset: Dataset
) -> None:
    seen: list[tuple[str, int, float]] = []
    x = binarized(dataset, "validation", "static").float()

    def observe(phase: str, step: int, vae: VAE) -> None:
        with torch.no_grad():
            seen.append((phase, step, float(kl_standard_normal(*vae.encode(x)).mean())))

    config = dataclasses.replace(BASE, objective="kl", decoder="separate")
    again = train(config, dataset, observe=observe, observe_at=(0, 1, 7, 20, 120))
    assert [(phase, step) for phase, step, _ in seen] == [
        (phase, step) for phase in ("encoder", "decoder") for step in (0, 1, 7, 20, 120)
    ]
    rates = [rate for *_, rate in seen]
    assert rates[0] > rates[2] > rates[4]
    assert rates[4:] == [rates[4]] * 6  # the decoder's phase does not change the encoder
    assert again.test == runs["separate"].test


class TestObjectives:
    """Each objective against float64, at ordinary weights."""

    x = torch.rand(6, 784, generator=torch.Generator().manual_seed(0)).round()
    noise = noise_key(5, "train", 2)
    vae = VAE("burda", 4)

    def posterior(self) -> tuple[Tensor, Tensor]:
        mu, logvar = self.vae.encode(self.x)
        return mu.detach(), logvar.detach()

    def test_the_published_kl_has_sigma_for_sigma_squared(self) -> None:
        mu, logvar = (t.double() for t in self.posterior())
        sigma = torch.exp(0.5 * logvar)
        wanted = 0.5 * (sigma.sum(1) - 50 + mu.square().sum(1) - torch.log(sigma).sum(1))
        rate, distortion = Rate(self.vae, "as-published")(self.x, self.noise)
        torch.testing.assert_close(rate.double(), wanted, rtol=1e-5, atol=1e-6)
        assert not distortion.any()

    @pytest.mark.parametrize("kl", ["analytic", "total-derivative", "sticking-the-landing"])
    def test_the_rate_is_the_kl_that_was_named(self, kl: str) -> None:
        mu, logvar = self.posterior()
        eps = reference.normal(self.noise, 1, *mu.shape)
        if kl == "analytic":
            wanted = reference.kl_standard_normal(mu, logvar)
        else:
            wanted = reference.kl_standard_normal_mc(mu, logvar, eps, kl)
        rate, _ = Rate(self.vae, kl)(self.x, self.noise)
        torch.testing.assert_close(rate.double(), wanted, rtol=1e-4, atol=1e-5)

    def test_the_decoder_alone_sees_the_noise_of_the_whole(self) -> None:
        whole = NegativeElbo(self.vae, "analytic")(self.x, self.noise)[1]
        alone = Distortion(self.vae, "encoder")(self.x, self.noise)[1]
        assert torch.equal(whole, alone)

    def test_no_gradient_of_the_distortion_enters_the_encoder(self) -> None:
        _, distortion = Distortion(self.vae, "encoder")(self.x, self.noise)
        grads = torch.autograd.grad(
            distortion.sum(), list(self.vae.encoder.parameters()), allow_unused=True
        )
        assert all(grad is None for grad in grads)

    def test_z_of_randn_is_the_stream_whatever_x_is(self) -> None:
        eps = reference.normal(self.noise, 1, 6, 50)[0].float()
        logits = self.vae.decode(eps).double()
        wanted = -torch.distributions.Bernoulli(logits=logits).log_prob(self.x.double()).sum(1)
        _, distortion = Distortion(self.vae, "randn")(self.x, self.noise)
        torch.testing.assert_close(distortion.double(), wanted, rtol=1e-5, atol=1e-4)


def test_beta_trades_rate_for_distortion(dataset: Dataset) -> None:
    ends = {}
    for beta in (0.25, 4.0):
        result = train(dataclasses.replace(BASE, model="burda", beta=beta, epochs=4), dataset)
        ends[beta] = result.test
    assert ends[4.0].rate < ends[0.25].rate
    assert ends[4.0].distortion > ends[0.25].distortion
    assert all(math.isfinite(test.log_px) for test in ends.values())
