"""The importance-weighted bound and its two gradients: float64 values, and the papers' claims.

The textbook here is written from torch.distributions and the estimators' formulas, sum by sum. It
shares only the definition of the noise stream with the objective, and no code.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.training.baselines import TextbookVAE
from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast import objective
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.drawing import style
from vaez_fast.measures.evaluate import Evaluator
from vaez_fast.model import VAE, Architecture
from vaez_fast.objective import ImportanceWeightedBound, NegativeElbo
from vaez_fast.streams import EVALUATION
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, constant
from vaez_fast.training.train import Result, train
from vaez_kernels import noise_key, reference

KLS = ("total-derivative", "doubly-reparameterised")
ARCHITECTURE = Architecture((30,), 6, torch.nn.Tanh, "logvar")
NOISE = noise_key(5, "train", 2)
each_gradient = pytest.mark.parametrize("kl", KLS)
Gradients = dict[str, Tensor]


def images(count: int) -> Tensor:
    return (torch.rand(count, 784, generator=torch.Generator().manual_seed(0)) < 0.2).float()


@cache
def model(scale: float = 2.0, sigma: float = 1.0) -> VAE:
    """A VAE with its initial weights times `scale`, and posteriors of about this sigma."""
    vae = VAE(ARCHITECTURE, 4)
    for p in vae.parameters():
        p.data.mul_(scale)
    vae.encoder[-1].bias.data[6:] += 2 * math.log(sigma)  # type: ignore[index,operator]
    return vae


def ours(vae: VAE, kl: str, k: int, x: Tensor, noise: Tensor) -> tuple[Tensor, Gradients]:
    """−L_K of each image, and the gradient of its mean."""
    rate, distortion = ImportanceWeightedBound(vae, kl, k)(x, noise)
    loss = rate + distortion
    names, parameters = zip(*vae.named_parameters(), strict=True)
    return loss.detach(), dict(
        zip(names, torch.autograd.grad(loss.mean(), parameters), strict=True)
    )


def in_float64(vae: VAE) -> TextbookVAE:
    plain = TextbookVAE(ARCHITECTURE)
    plain.load_state_dict(vae.state_dict())
    return plain.double()


def textbook(
    plain: TextbookVAE, kl: str, k: int, x: Tensor, noise: Tensor
) -> tuple[Tensor, Gradients]:
    """The same in float64, one z at a time; each gradient is the sum of its estimator's terms."""
    x = x.double()
    eps = reference.normal(noise, k, len(x), ARCHITECTURE.latent)
    encoder, decoder = list(plain.encoder.parameters()), list(plain.decoder.parameters())
    q = plain.posterior(x)
    samples = [q.loc + q.scale * e for e in eps]
    with torch.no_grad():
        log_w = torch.stack([log_weight(plain, q, z, x) for z in samples])
    share = torch.softmax(log_w, 0)
    bound = torch.logsumexp(log_w, 0) - math.log(k)
    total = [torch.zeros_like(p) for p in (*encoder, *decoder)]
    fixed = torch.distributions.Normal(q.loc.detach(), q.scale.detach())
    for z, w in zip(samples, share, strict=True):
        if kl == "total-derivative":  # Burda et al. 2016, equation 13
            each = w * log_weight(plain, q, z, x)
            parts = torch.autograd.grad(each.sum(), (*encoder, *decoder), retain_graph=True)
        else:  # Tucker et al. 2018, equation 8; the decoder's gradient does not change
            end = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_weight(plain, fixed, end, x).sum(), end)
            path = (w.square()[:, None] * slope * z).sum()
            of_decoder = (w * log_weight(plain, fixed, z.detach(), x)).sum()
            parts = (
                *torch.autograd.grad(path, encoder, retain_graph=True),
                *torch.autograd.grad(of_decoder, decoder),
            )
        total = [a - b / len(x) for a, b in zip(total, parts, strict=True)]
    names = [name for name, _ in plain.named_parameters()]
    return -bound, dict(zip(names, total, strict=True))


def log_weight(plain: TextbookVAE, q: torch.distributions.Normal, z: Tensor, x: Tensor) -> Tensor:
    prior = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
    log_px_z = torch.distributions.Bernoulli(logits=plain.decoder(z)).log_prob(x).sum(1)
    return log_px_z + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1)


def assert_close(actual: Gradients, wanted: Gradients, relative: float) -> None:
    for name, want in wanted.items():
        error = float((actual[name].double() - want).norm() / want.norm())
        assert error < relative, (name, error)


class TestAgainstFloat64:
    # A log-weight near 600 nats is a float32 sum of 784 terms, wrong by up to 1e-4 nats. A share w̃
    # and the gradients are then wrong by at most 1e-4 of themselves.
    @each_gradient
    @pytest.mark.parametrize("k", [1, 7])
    @pytest.mark.parametrize("sigma", [1.0, 1e-2])
    @pytest.mark.parametrize("large", [objective.LARGE, 0])  # 0: never logits in memory
    def test_the_bound_and_all_gradients(
        self, kl: str, k: int, sigma: float, large: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objective, "LARGE", large)
        vae, x = model(sigma=sigma), images(9)
        loss, gradients = ours(vae, kl, k, x, NOISE)
        wanted, wanted_gradients = textbook(in_float64(vae), kl, k, x, NOISE)
        torch.testing.assert_close(loss.double(), wanted, rtol=0, atol=5e-4)
        assert_close(gradients, wanted_gradients, 5e-4)

    def test_the_two_gradients_differ_in_the_encoder_alone(self) -> None:
        (a, plain), (b, doubly) = (ours(model(), kl, 7, images(9), NOISE) for kl in KLS)
        assert torch.equal(a, b)
        for name, gradient in plain.items():
            same = torch.allclose(gradient, doubly[name], rtol=1e-5, atol=1e-7)
            assert same == name.startswith("decoder"), name

    def test_the_distortion_is_the_samples_mean_and_has_no_gradient(self) -> None:
        vae, x = model(), images(9)
        _, distortion = ImportanceWeightedBound(vae, KLS[0], 7)(x, NOISE)
        _, wanted = NegativeElbo(vae, "analytic", num_samples=7)(x, NOISE)
        torch.testing.assert_close(distortion, wanted, rtol=1e-5, atol=0)
        assert not distortion.requires_grad


@pytest.mark.parametrize(
    ("kl", "of_the_elbo"),
    [("total-derivative", "total-derivative"), ("doubly-reparameterised", "sticking-the-landing")],
)
def test_one_sample_is_the_monte_carlo_elbo_value_and_gradient(kl: str, of_the_elbo: str) -> None:
    vae, x = model(), images(9)
    loss, gradients = ours(vae, kl, 1, x, NOISE)
    rate, distortion = NegativeElbo(vae, of_the_elbo)(x, NOISE)
    elbo = rate + distortion
    torch.testing.assert_close(loss, elbo, rtol=1e-6, atol=0)
    wanted = torch.autograd.grad(elbo.mean(), list(vae.parameters()))
    names = [name for name, _ in vae.named_parameters()]
    assert_close(gradients, dict(zip(names, (g.double() for g in wanted), strict=True)), 1e-4)


def test_the_elbo_of_k_samples_is_the_mean_of_k_elbos() -> None:
    vae, x, k = model(), images(9), 5
    rate, distortion = NegativeElbo(vae, "total-derivative", num_samples=k)(x, NOISE)
    mu, logvar = (t.double() for t in vae.encode(x))
    eps = reference.normal(NOISE, k, *mu.shape)
    z = reference.rsample(mu, logvar, eps)
    logits = torch.stack([vae.decode(one.float()) for one in z])
    torch.testing.assert_close(
        rate.double(), reference.kl_standard_normal_mc(mu, logvar, eps), rtol=1e-4, atol=1e-5
    )
    wanted = -reference.bernoulli_log_prob(logits, x).mean(0)
    torch.testing.assert_close(distortion.double(), wanted, rtol=1e-6, atol=0)


class TestInExpectation:
    """Means over independent noise: a batch repeats one image, and each row draws its own noise.

    Keys are fixed, so a test that passes once always passes; limits are five standard errors.
    """

    rows, draws = 500, 8

    def gradients(self, vae: VAE, kl: str, k: int) -> tuple[Tensor, Tensor]:
        """Draws for one image: L_K (N,), and the gradient of −L_K in mu and logvar (N, 2D)."""
        mu, scale = (t.detach() for t in vae.encode(images(1)))
        bounds, gradients = [], []
        for step in range(self.draws):
            posterior = torch.cat((mu, scale), 1).expand(self.rows, -1).clone().requires_grad_()
            objective = ImportanceWeightedBound(_WithPosterior(vae, posterior), kl, k)
            x = images(1).expand(self.rows, -1)
            rate, distortion = objective(x, noise_key(11, "train", step))
            loss = rate + distortion
            gradients.append(torch.autograd.grad(loss.sum(), posterior)[0])
            bounds.append(-loss.detach())
        return torch.cat(bounds).double(), torch.cat(gradients).double()

    def test_the_bound_grows_with_the_samples(self) -> None:
        bounds = [self.gradients(model(), KLS[0], k)[0] for k in (1, 2, 8, 32)]
        for few, many in pairwise(bounds):
            error = math.sqrt(float((few.var() + many.var()) / len(few)))
            assert many.mean() - few.mean() > 5 * error

    @pytest.mark.parametrize("k", [2, 8])
    def test_both_gradients_have_one_expectation(self, k: int) -> None:
        # The log-weights vary by 3.5 nats here, so few samples dominate a bound.
        (_, plain), (_, doubly) = (self.gradients(model(1.0), kl, k) for kl in KLS)
        difference = plain - doubly  # paired, because both use the same noise
        error = difference.std(0) / math.sqrt(len(difference))
        assert (difference.mean(0).abs() <= 5 * error).all()
        assert (plain.mean(0).abs() > 5 * plain.std(0) / math.sqrt(len(plain))).any()

    def test_the_signal_drowns_in_noise_as_k_grows_but_not_doubly_reparameterised(self) -> None:
        """The ratio of signal to noise falls as 1/√K (Rainforth et al. 2018, theorem 1), and grows
        as √K when doubly reparameterised (Tucker et al. 2018, section 6).

        Both hold where the weights' variance is finite and K is large; the log-weights vary by 0.7
        nats here. From 1 to 64 samples that is a factor of 8 either way; 4 is required.
        """

        def signal_to_noise(kl: str, k: int) -> float:
            _, gradients = self.gradients(model(0.5), kl, k)
            return float((gradients.mean(0).abs() / gradients.std(0)).median())

        plain_1, plain_64, doubly_1, doubly_64 = (
            signal_to_noise(kl, k) for kl in KLS for k in (1, 64)
        )
        assert plain_64 < plain_1 / 4
        assert doubly_64 > 4 * doubly_1


class _WithPosterior(VAE):
    """A VAE with a given q(z|x): mu and logvar side by side, one row for each image."""

    def __init__(self, vae: VAE, posterior: Tensor) -> None:
        super().__init__(vae.architecture)
        self.load_state_dict(vae.state_dict())
        self.posterior = posterior

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.posterior.chunk(2, 1)
        return mu, logvar


def test_compiled_steps_follow_adam_on_the_textbooks_gradients() -> None:
    steps, batch, k, lr, seed = 8, 16, 5, 3e-3, 5
    x = images(steps * batch)
    engine = Engine(
        ImportanceWeightedBound(VAE(ARCHITECTURE, 4), "doubly-reparameterised", k),
        Batches(x.to(torch.uint8), batch),
        Adam(),
        constant(lr, steps),
        seed=seed,
        precision=torch.float32,
        pixel_scale=1.0,
    )
    losses = []
    for _ in range(steps):
        engine.step()
        losses.append(sum(engine.take_totals(1)))

    def textbook_losses(kl: str) -> list[float]:
        plain = in_float64(VAE(ARCHITECTURE, 4))
        optimizer = torch.optim.Adam(plain.parameters(), lr=lr)
        losses = []
        for step, rows in enumerate(x.split(batch)):
            loss, gradients = textbook(plain, kl, k, rows, noise_key(seed, "train", step))
            for name, p in plain.named_parameters():
                p.grad = gradients[name]
            optimizer.step()
            losses.append(float(loss.mean()))
        return losses

    # float32 rounds a loss of 540 nats to 3e-5; Adam turns rounding of tiny gradients into steps.
    # With the other gradient the losses are 0.3 nats apart after one step.
    assert losses == pytest.approx(textbook_losses("doubly-reparameterised"), abs=2e-3)
    assert losses[1:] != pytest.approx(textbook_losses("total-derivative")[1:], abs=0.1)


CONFIG = TrainConfig(
    model="lyeoni",
    objective="iwae",
    num_samples=5,
    test_samples=5,
    epochs=6,
    batch_size=50,
    lr=3e-3,
    seed=7,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """1,000 / 100 / 100 real digits."""
    full = load("mnist-5k")
    splits = ((full.train, 1000), (full.validation, 100), (full.test, 100))
    return Dataset("mnist-1k", *(first(split, count) for split, count in splits))


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> Result:
    with uncompiled():
        return train(CONFIG, dataset)


def test_training_learns_and_repeats_to_the_last_digit(result: Result, dataset: Dataset) -> None:
    bounds = [p["elbo"] for p in result.curve if p["split"] == "train"]
    assert bounds[-1] > bounds[0] + 20
    with uncompiled():
        again = train(CONFIG, dataset)
    assert again.test == result.test
    assert [p["elbo"] for p in again.curve] == [p["elbo"] for p in result.curve]
    for p, q in zip(again.vae.parameters(), result.vae.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_state_kept_has_the_best_bound_of_as_many_samples_as_training(
    result: Result, dataset: Dataset
) -> None:
    noise = EVALUATION["validation"].key(CONFIG.seed)
    held_out = Evaluator(binarized(dataset, "validation", "static"), 1.0, noise)(result.vae, 5)
    curve = [p for p in result.curve if p["split"] == "validation"]
    best = max(curve, key=lambda p: p["elbo"])
    assert best["step"] == result.best_step
    assert best["elbo"] == pytest.approx(held_out.log_px, abs=1e-9)
    assert best["distortion"] == held_out.distortion
    assert held_out.log_px > held_out.elbo


def test_the_test_split_has_as_many_samples_as_were_asked_for(result: Result) -> None:
    assert result.test.log_px_samples == 5


@pytest.mark.parametrize(
    ("settings", "arm"),
    [
        ({"num_samples": 5}, "iwae/total-derivative/joint/k=5"),
        ({"kl": "doubly-reparameterised"}, "iwae/doubly-reparameterised/joint"),
        ({"objective": "elbo", "num_samples": 8, "beta": 4}, "elbo/analytic/joint/beta=4/k=8"),
    ],
)
def test_an_arm_is_named_by_its_choices(settings: dict[str, Any], arm: str) -> None:
    config = TrainConfig(**({"objective": "iwae"} | settings))
    assert config.arm == arm
    style.colour(arm)
    assert style.linestyle(arm) == "-"
