"""Every number of a study's record, compared with code that shares nothing with the study's.

The splits look clearly different, and training is a stub that returns a model of known weights.
Everything that `Measure` writes is computed again in float64: posteriors by plain PyTorch layers,
noise by the reference stream with the key that is documented for the number, and each metric from
its definition.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from bench.training.baselines import TextbookVAE
from tests.system import fake_run
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, Split
from vaez_fast.measures import features
from vaez_fast.measures.annealed import bidirectional, simulate
from vaez_fast.measures.codes import Codes, Encoded
from vaez_fast.measures.features import FeatureNet, Networks, Training, save_features
from vaez_fast.measures.image_metrics import frechet_floor
from vaez_fast.measures.kernel import kernel_distance, kernel_sums
from vaez_fast.measures.law import fit_densities
from vaez_fast.measures.law_summary import summary_of
from vaez_fast.measures.neighbours import neighbours
from vaez_fast.measures.normality import normality_tests
from vaez_fast.measures.samplers import SAMPLERS, fit
from vaez_fast.model import VAE
from vaez_fast.study import likelihood
from vaez_fast.study import measure as measuring
from vaez_fast.study.arrays import LAW, RECONSTRUCTIONS, TEST_IMAGES
from vaez_fast.study.measure import Measure, Record
from vaez_fast.training.train import Observe, Result
from vaez_kernels import noise_key, reference

SIZES = {"train": 260, "validation": 130, "test": 230}
# Smaller than the splits, as in the study, so that a wrong choice of images shows.
AGGREGATE_IMAGES, DRAWS, GENERATED, SHOWN, NEAREST = 200, 40, 60, 5, 150
COUNTS, CURVE_IMAGES = (1, 3, 10), 50
GAIN_IMAGES, GAIN_SAMPLES = 70, 6
BOTH_SIDES, MANY = 11, 7
SEED = 3
BASE = TrainConfig(
    model="lyeoni", epochs=None, steps=12, batch_size=20, precision="float32", device="cpu", seed=9
)
STATIC = 2**32 - 1  # the seed of static binarisation
OBSERVED = frozenset({0, 5, 12})


def split(name: str) -> Split:
    """Grey images of a bright bar: its place is the class, its slant is the split."""
    index = list(SIZES).index(name)
    generator = torch.Generator().manual_seed(index)
    labels = torch.arange(SIZES[name]) % 10
    rows, columns = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    place = (2.5 * labels)[:, None, None] + (index - 1) * rows / 3
    bar = torch.exp(-0.5 * ((columns - place) / (1.5 + index)).square())
    grey = 25 * index + (200 - 40 * index) * bar
    grey = grey + 30 * torch.rand(grey.shape, generator=generator)
    return Split(grey.clamp(0, 255).to(torch.uint8).flatten(1), labels)


def model(seed: int, step: int) -> VAE:
    """A model for a step of the stub training, whose outputs depend visibly on the inputs."""
    vae = VAE("lyeoni", seed)
    with torch.no_grad():
        means, logvars = vae.encoder[-1].weight.chunk(2)  # type: ignore[operator]
        means.mul_(12.0 + step)
        logvars.mul_(8.0)
        vae.decoder[-1].weight.mul_(8.0)  # type: ignore[operator]
    return vae


class FakeTraining:
    """A stand-in for `train`: shows the observer its models and returns the one of step 99."""

    def __init__(self) -> None:
        self.phases = ["vae"]
        self.asked: dict[str, Any] = {}

    def __call__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        *,
        look_every: int,
        observe: Observe,
        observe_at: Collection[int],
    ) -> Result:
        self.asked = {"config": config, "look_every": look_every, "images": dataset.fingerprint()}
        for phase in self.phases:
            for step in sorted(observe_at):
                observe(phase, step, model(config.seed, step))
        return Result(
            vae=model(config.seed, 99), best_step=10, test=fake_run.METRICS, steps=12,
            batch_size=20, precision="float32", device="cpu", train_seconds=2.0,
            compile_seconds=10.0, eval_seconds=1.0, curve=fake_run.CURVE,
        )  # fmt: skip


class Own(NamedTuple):
    """A model in float64, and its posteriors of every split under the run's binarisation."""

    textbook: TextbookVAE
    x: dict[str, Tensor]  # (N, 784)
    mu: dict[str, Tensor]
    sigma: dict[str, Tensor]

    def z(self, split: str, step: int, seed: int = SEED) -> Tensor:
        """One draw an image."""
        eps = reference.normal(noise_key(seed, "evaluate", step), 1, *self.mu[split].shape)[0]
        return self.mu[split] + self.sigma[split] * eps


def pixels(dataset: Dataset, how: str) -> dict[str, Tensor]:
    """x (N, 784) float64 by split."""
    found = {}
    for index, name in enumerate(SIZES):
        grey = getattr(dataset, name).images.double() / 255
        u = reference.uniform(noise_key(STATIC, "binarize", index), 1, *grey.shape)[0]
        found[name] = grey if how == "none" else (u < grey).double()
    return found


def own(vae: VAE, x: dict[str, Tensor]) -> Own:
    textbook = TextbookVAE("lyeoni")
    textbook.load_state_dict(vae.state_dict())
    textbook.double()
    with torch.no_grad():
        q = {name: textbook.posterior(images) for name, images in x.items()}
    mu, sigma = ({n: getattr(p, part) for n, p in q.items()} for part in ("loc", "scale"))
    return Own(textbook, x, mu, sigma)


def every(images: Tensor) -> Tensor:
    """As many images as are generated, spread over the split."""
    return images[:: len(images) // GENERATED][:GENERATED]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("bars", *(split(name) for name in SIZES))


@pytest.fixture(scope="module")
def training() -> FakeTraining:
    return FakeTraining()


@pytest.fixture(scope="module", autouse=True)
def small(training: FakeTraining) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "train", training)
        for name, value in {
            "AGGREGATE_IMAGES": AGGREGATE_IMAGES, "AGGREGATE_DRAWS": DRAWS, "GENERATED": GENERATED,
            "SHOWN": SHOWN, "NEAREST_AMONG": NEAREST, "GAIN_IMAGES": GAIN_IMAGES,
            "GAIN_SAMPLES": GAIN_SAMPLES,
        }.items():  # fmt: skip
            patch.setattr(measuring, name, value)
        of_likelihood: dict[str, object] = {
            "K_CURVE": COUNTS, "K_CURVE_IMAGES": CURVE_IMAGES, "IMAGES": BOTH_SIDES,
            "TEMPERATURES": 3, "SAMPLES": MANY, "SHARE_OF_IMAGES": 3, "FEWEST_IMAGES": 40,
        }  # fmt: skip
        for name, constant in of_likelihood.items():
            patch.setattr(likelihood, name, constant)
        yield


@pytest.fixture(scope="module")
def networks() -> Networks:
    """Untrained networks with different accuracies on paper."""
    nets = [network(seed) for seed in range(3)]
    return [
        (net, Training("bars", seed, 260, 1, accuracy, 0.5, 1.5, net.sha256()))
        for net, seed, accuracy in zip(nets, range(3), (0.7, 0.75, 0.8), strict=True)
    ]


@pytest.fixture(scope="module")
def nets(networks: Networks) -> list[FeatureNet]:
    return [net for net, _ in networks]


def network(seed: int) -> FeatureNet:
    """An untrained network; it only has to give different images different features."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FeatureNet().requires_grad_(False)
    net.normalize(split("train").images / 255)
    # The head looks at differences between the images' features, so that many classes occur.
    net.head.weight.data *= 30
    net.head.bias.data = -net.head.weight @ net.features(split("test").images / 255).mean(0)
    return net


@pytest.fixture(scope="module")
def measures(
    networks: Networks, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Measure]:
    file = tmp_path_factory.mktemp("measure") / "features.pt"
    save_features(networks, file)
    bases = {how: dataclasses.replace(BASE, binarize=how) for how in ("static", "none")}
    return {how: Measure(b, dataset, torch.device("cpu"), file) for how, b in bases.items()}


class Measured(NamedTuple):
    own: Own
    record: Record
    images: dict[str, np.ndarray]
    beside: Record


@pytest.fixture(scope="module", params=["static", "none"])
def measured(
    request: pytest.FixtureRequest, measures: dict[str, Measure], dataset: Dataset
) -> Measured:
    how = request.param
    config = dataclasses.replace(BASE, binarize=how, seed=SEED)
    record, images = measures[how].run(config, OBSERVED)
    x = pixels(dataset, how)
    return Measured(own(model(SEED, 99), x), record, images, measures[how].beside())


def fitted_kl(z: Tensor) -> float:
    """KL(N(m, diag v) ‖ N(0, I)) of the maximum-likelihood fit."""
    fit = Normal(z.mean(0), z.std(0, correction=0))
    standard = Normal(torch.zeros_like(fit.loc), torch.ones_like(fit.loc))
    return float(torch.distributions.kl_divergence(fit, standard).sum())


def rates(mu: Tensor, sigma: Tensor) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) by image and dimension."""
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return torch.distributions.kl_divergence(Normal(mu, sigma), standard)


# z is float32: a rounding error of 1e-6 of mu and sigma·eps, plus that of the float32 encoder.
CLOSE: dict[str, Any] = {"rel": 2e-5, "abs": 2e-5}


def test_the_arm_is_trained_as_it_was_asked_for(
    measured: Measured, training: FakeTraining, dataset: Dataset
) -> None:
    record = measured.record
    asked = training.asked["config"]
    assert (asked.arm, asked.seed) == (record["arm"], record["seed"])
    assert (record["arm"], record["seed"]) == ("elbo/analytic/joint", SEED)
    assert training.asked["look_every"] == 5
    assert training.asked["images"] == dataset.fingerprint()
    assert (record["steps"], record["best_step"], record["train_seconds"]) == (12, 10, 2.0)
    assert record["curve"] == fake_run.CURVE
    assert record["test"] == dataclasses.asdict(fake_run.METRICS)


def test_the_decay_is_of_validation_images_with_new_noise_at_each_look(measured: Measured) -> None:
    decay = measured.record["decay"]
    assert [point["step"] for point in decay] == sorted(OBSERVED)
    for index, point in enumerate(decay):
        then = own(model(SEED, point["step"]), measured.own.x)
        z = then.z("validation", 100 + index)
        assert point["sample_kl"] == pytest.approx(fitted_kl(z), **CLOSE)
        rate = float(rates(then.mu["validation"], then.sigma["validation"]).sum(1).mean())
        assert point["rate"] == pytest.approx(rate, **CLOSE)


def test_the_latents_are_of_test_images(measured: Measured) -> None:
    latents, ours = measured.record["latents"], measured.own
    mu, z = ours.mu["test"], ours.z("test", 10)
    assert latents["n"] == SIZES["test"]
    assert latents["sample_kl"] == pytest.approx(fitted_kl(z), **CLOSE)
    by_dimension = rates(mu, ours.sigma["test"]).mean(0).tolist()
    assert latents["kl_per_dimension"] == pytest.approx(by_dimension, **CLOSE)
    assert latents["active_units"] == int((mu.var(0, correction=0) > 0.01).sum())
    unit = (z - z.mean(0)) / z.std(0, correction=0)
    kurtosis = unit.pow(4).mean(0) - 3
    assert latents["moments"] == pytest.approx(
        {
            "largest_abs_mean": float(z.mean(0).abs().max()),
            "smallest_variance": float(z.var(0, correction=0).min()),
            "largest_variance": float(z.var(0, correction=0).max()),
            "largest_abs_correlation": float(z.T.corrcoef()[0, 1].abs()),
            "smallest_excess_kurtosis": float(kurtosis.min()),
            "largest_excess_kurtosis": float(kurtosis.max()),
        },
        **CLOSE,
    )


def log_weights(ours: Own, images: slice, step: int, count: int, seed: int) -> Tensor:
    """log p(x, z)/q(z|x) of `count` samples of some test images, (count, images)."""
    mu, sigma, x = (part["test"][images] for part in (ours.mu, ours.sigma, ours.x))
    z = mu + sigma * reference.normal(noise_key(seed, "evaluate", step), count, *mu.shape)
    with torch.no_grad():
        logits = ours.textbook.decoder(z)
    # Not torch's Bernoulli, which refuses a grey level as an outcome.
    log_px_z = (x * logits + torch.nn.functional.logsigmoid(-logits)).sum(2)
    return log_px_z + (Normal(0.0, 1.0).log_prob(z) - Normal(mu, sigma).log_prob(z)).sum(2)


def test_log_px_of_many_samples_adds_their_rise_on_every_third_image(measured: Measured) -> None:
    few = fake_run.METRICS.log_px_samples
    assert few < MANY
    weights = log_weights(measured.own, slice(None, None, 3), 54, MANY, SEED)
    rise = (weights.logsumexp(0) - math.log(MANY)) - (weights[:few].logsumexp(0) - math.log(few))
    error = math.hypot(
        fake_run.METRICS.log_px_standard_error, float(rise.std()) / math.sqrt(len(rise))
    )
    assert measured.record["log_px"] == {
        "value": pytest.approx(fake_run.METRICS.log_px + float(rise.mean()), abs=1e-4),
        "standard_error": pytest.approx(error, rel=1e-3),
        "samples": MANY,
        "rise": {**estimate(rise), "images": len(rise)},
    }


def test_log_px_of_many_samples_is_the_tests_own_where_it_has_them(
    measures: dict[str, Measure],
) -> None:
    measure = measures["static"]
    test = dataclasses.replace(fake_run.METRICS, log_px_samples=MANY)
    found = likelihood.log_px_of_many(
        model(SEED, 99), test, measure.pixels.test, measure.pixels.scale, SEED, "float32"
    )
    assert found == {
        "value": test.log_px,
        "standard_error": test.log_px_standard_error,
        "samples": MANY,
        "rise": {"value": 0.0, "standard_error": 0.0, "images": SIZES["test"]},
    }


def drawn(ours: Own, split: str, count: int, step: int) -> tuple[Tensor, Tensor]:
    """DRAWS of the split's first `count` images, in the noise's order, and a z for each."""
    noise = noise_key(SEED, "evaluate", step)
    index = reference.uniform(noise, 1, count, 1).flatten().argsort(stable=True)[:DRAWS]
    mu, sigma = ours.mu[split], ours.sigma[split]
    eps = reference.normal(noise, 1, DRAWS, mu.shape[1], sample_offset=1)[0]
    return index, mu[index] + sigma[index] * eps


def mixture(mu: Tensor, sigma: Tensor) -> MixtureSameFamily:
    components = Independent(Normal(mu, sigma), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mu)).double()), components)


def estimate(draws: Tensor) -> dict[str, Any]:
    """Mean and standard error. The study sums densities in float32."""
    error = float(draws.std()) / math.sqrt(len(draws))
    return {
        "value": pytest.approx(float(draws.mean()), rel=1e-4, abs=1e-4),
        "standard_error": pytest.approx(error, rel=1e-3, abs=1e-4),
    }


def test_the_aggregate_is_of_training_images_and_the_draws_held_out_are_not(
    measured: Measured,
) -> None:
    latents, ours = measured.record["latents"], measured.own
    mu, sigma = (part["train"][:AGGREGATE_IMAGES] for part in (ours.mu, ours.sigma))
    aggregate = mixture(mu, sigma)
    index, z = drawn(ours, "train", AGGREGATE_IMAGES, 11)
    log_p, log_q = Normal(0.0, 1.0).log_prob(z).sum(1), aggregate.log_prob(z)
    others = torch.arange(AGGREGATE_IMAGES)
    left_out = [
        mixture(mu[others != n], sigma[others != n]).log_prob(point)
        for n, point in zip(index, z, strict=True)
    ]
    each = MixtureSameFamily(Categorical(torch.ones(mu.T.shape).double()), Normal(mu.T, sigma.T))
    marginals = each.log_prob(z).sum(1)
    own_log_q = Normal(mu[index], sigma[index]).log_prob(z).sum(1)
    assert latents["surgery"] == {
        "rate": pytest.approx(float(rates(mu, sigma).sum(1).mean()), **CLOSE),
        "index_information": estimate(own_log_q - log_q),
        "marginal_kl": estimate(log_q - log_p),
        "total_correlation": estimate(log_q - marginals),
        "dimension_wise_kl": estimate(marginals - log_p),
        "leave_one_out_marginal_kl": estimate(torch.stack(left_out) - log_p),
        "num_images": AGGREGATE_IMAGES,
        "num_samples": DRAWS,
    }
    _, z = drawn(ours, "test", SIZES["test"], 12)
    held_out = aggregate.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(1)
    assert latents["held_out_marginal_kl"] == estimate(held_out)


def codes_of(ours: Own) -> Codes:
    """The codes of a model, from the reference stream."""
    parts = (("train", 13), ("validation", 16), ("test", 10))
    encoded = (
        Encoded(ours.mu[s].float(), 2 * ours.sigma[s].log().float(), ours.z(s, step).float())
        for s, step in parts
    )
    return Codes(*encoded)


def test_the_law_of_z_is_bounded_by_test_codes_and_by_all_training_posteriors(
    measured: Measured,
) -> None:
    law, ours = measured.record["latents"]["law"], measured.own
    mu, sigma = ours.mu["train"], ours.sigma["train"]
    assert law["informative"] == (rates(mu, sigma).mean(0) > 0.1).nonzero().flatten().tolist()
    standard = Normal(0.0, 1.0)
    z, fitted_to = ours.z("test", 10), ours.z("train", 13)
    diagonal = Normal(fitted_to.mean(0), fitted_to.std(0, correction=0))
    bound = estimate((diagonal.log_prob(z) - standard.log_prob(z)).sum(1))
    assert {name: law["lower"]["diagonal"][name] for name in bound} == bound
    squares = z.square().sum(1)
    assert law["squared_norm"]["mean"] == pytest.approx(float(squares.mean()), **CLOSE)
    assert law["squared_norm"]["variance"] == pytest.approx(float(squares.var()), **CLOSE)

    # Every posterior once, in the noise's order.
    noise = noise_key(SEED, "evaluate", 17)
    order = reference.uniform(noise, 1, len(mu), 1).flatten().argsort(stable=True)
    eps = reference.normal(noise, 1, len(mu), 2, sample_offset=1)[0]
    drawn = mu[order] + sigma[order] * eps
    plug_in = mixture(mu, sigma).log_prob(drawn) - standard.log_prob(drawn).sum(1)
    bound = estimate(plug_in)
    assert {name: law["kl_upper"][name] for name in bound} == bound


def test_the_tests_of_normality_are_of_test_codes(measured: Measured) -> None:
    z = codes_of(measured.own).test.z
    found = measured.record["latents"]["tests"]
    wanted = normality_tests(z, SEED, [0, 1])
    assert list(found) == list(wanted)
    for name in ("kolmogorov-smirnov/0", "kolmogorov-smirnov/1", "mardia-kurtosis"):
        assert found[name]["statistic"] == pytest.approx(wanted[name].statistic, abs=1e-3)
        exact = wanted[name].p_of_exact_normals
        assert found[name]["p_of_exact_normals"] == pytest.approx(exact, rel=1e-6)


def test_the_gain_of_the_best_density_is_over_test_images(measured: Measured) -> None:
    gain, ours = measured.record["latents"]["gain"], measured.own
    assert (gain["num_images"], gain["num_samples"]) == (GAIN_IMAGES, GAIN_SAMPLES)
    density = fit_densities(codes_of(ours), SEED)[gain["density"]]
    mu, sigma = ours.mu["test"][:GAIN_IMAGES], ours.sigma["test"][:GAIN_IMAGES]
    eps = reference.normal(noise_key(SEED, "evaluate", 18), GAIN_SAMPLES, *mu.shape)
    z = mu + sigma * eps
    log_p = Normal(0.0, 1.0).log_prob(z).sum(2)
    log_r = density.log_prob(z.flatten(0, 1)).view(z.shape[:2])
    x = ours.x["test"][:GAIN_IMAGES]
    with torch.no_grad():
        logits = ours.textbook.decoder(z)
    log_px_z = (x * logits - torch.nn.functional.softplus(logits)).sum(2)
    weights = log_px_z - Normal(mu, sigma).log_prob(z).sum(2)
    gains = (weights + log_r).logsumexp(0) - (weights + log_p).logsumexp(0)
    # The densities are fitted to float32 codes, which here differ in the last digits.
    for name, values in (("log_px", gains), ("elbo", (log_r - log_p).mean(0))):
        assert gain[name]["value"] == pytest.approx(float(values.mean()), rel=1e-2, abs=1e-2)


def test_the_figures_arrays_are_of_test_codes(measured: Measured, dataset: Dataset) -> None:
    found = {name: of for name, of in measured.images.items() if name.startswith(LAW)}
    wanted = summary_of(codes_of(measured.own), dataset.test.labels, SEED)
    assert set(found) == {LAW + name for name in wanted}
    for name in ("order_statistics", "normal_order_statistics", "points"):
        np.testing.assert_allclose(found[LAW + name], wanted[name], rtol=1e-3, atol=1e-3)


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a − m_b|² + tr C_a + tr C_b − 2 tr (C_a C_b)^½, from the eigenvalues of C_a C_b."""
    a, b = a.double(), b.double()
    C_a, C_b = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(C_a @ C_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + C_a.trace() + C_b.trace() - 2 * root)


def shares(classes: list[Tensor]) -> list[float]:
    """Of each class, mean over networks."""
    return [fmean(float((of == k).double().mean()) for of in classes) for k in range(10)]


def expected_scores(nets: list[FeatureNet], ours: Own, generated: Tensor) -> dict[str, Any]:
    """The scores of images against test images; neighbours come from the training images.

    Where a uniform number lies between a float32 and a float64 probability, a pixel flips. In one
    of a hundred times that happens to one of 47,040 pixels, which moves no score by a thousandth.
    """
    real, train = every(ours.x["test"]), ours.x["train"][:NEAREST]
    made, of_real = ([net(images.float()) for net in nets] for images in (generated, real))
    seen, of_test = (
        shares([net.head(f).argmax(1) for net, f in zip(nets, of, strict=True)])
        for of in (made, of_real)
    )
    sums = ([kernel_sums(f) for f in of] for of in (made, of_real))
    kernel, spread = kernel_distance(*sums)
    near = [neighbours(x, y) for x, y in zip(of_real, made, strict=True)]
    distances = [frechet(x, y) for x, y in zip(of_real, made, strict=True)]
    nearest = (generated[:, None] - train).square().sum(2).sqrt().min(1).values
    assert len({round(share, 2) for share in of_test}) > 3  # the network distinguishes images
    close: dict[str, Any] = {"rel": 1e-3, "abs": 1e-4}
    return {
        "count": GENERATED,
        "reference_count": GENERATED,
        "frechet": pytest.approx(fmean(distances), **close),
        "frechet_by_network": pytest.approx(distances, **close),
        "kernel": pytest.approx(kernel, **close),
        "kernel_standard_error": pytest.approx(spread, **close),
        # One image more or less in a ball, where a feature lies on its surface but for rounding.
        **{
            name: pytest.approx(fmean(getattr(of, name) for of in near), abs=1.1 / 3 / GENERATED)
            for name in ("precision", "recall", "density", "coverage")
        },
        "label_histogram": pytest.approx(seen, abs=1e-12),
        "label_distance": pytest.approx(
            sum(abs(p - q) for p, q in zip(seen, of_test, strict=True)) / 2, abs=1e-12
        ),
        "nearest_train": pytest.approx(float(nearest.median()), **close),
    }


def is_grey(ours: Own) -> bool:
    return bool(((ours.x["test"] > 0) & (ours.x["test"] < 1)).any())


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_drawn_from_codes_of_training_images(
    name: str, measured: Measured, nets: list[FeatureNet]
) -> None:
    ours = measured.own
    z = ours.z("train", 13)
    noise = noise_key(SEED, "generate", 0)
    eps = reference.normal(noise, 1, GENERATED, 2)[0]
    if name == "standard-normal":
        codes = eps
    elif name == "diagonal":
        codes = z.mean(0) + z.std(0, correction=0) * eps
    elif name == "full-covariance":
        codes = z.mean(0) + eps @ torch.linalg.cholesky(z.T.cov(correction=0)).T
    elif name in ("posterior", "held-out-posterior"):
        own_z = z if name == "posterior" else ours.z("validation", 16)
        u = reference.uniform(noise, 1, len(own_z), 1, sample_offset=1)
        codes = own_z[u.flatten().argsort(stable=True)[:GENERATED]]
    else:  # tests/measures/test_densities.py and test_mixtures.py test these fits
        fitted = codes_of(ours)
        densities = fit_densities(fitted, SEED, (name,))
        codes = fit(name, fitted, densities).draw(noise, GENERATED).double()
    with torch.no_grad():
        means = torch.sigmoid(ours.textbook.decoder(codes))
    grey = torch.from_numpy(measured.images[name]).double()
    assert grey.shape == (SHOWN, 784)
    assert measured.images[name].dtype == np.uint8
    off = (grey - 255 * means[:SHOWN]).abs()
    assert off.max() < 0.51  # rounded
    u = reference.uniform(noise_key(SEED, "generate", 1), 1, GENERATED, 784)[0]
    # For grey data the means are scored, for binary data binary samples.
    generated = means if is_grey(ours) else (u < means).double()
    assert measured.record["images"][name] == expected_scores(nets, ours, generated)


def test_reconstructions_are_of_the_test_images_that_are_shown(measured: Measured) -> None:
    ours = measured.own
    with torch.no_grad():
        means = torch.sigmoid(ours.textbook.decoder(ours.z("test", 10)))
    for name, expected in ((TEST_IMAGES, ours.x["test"]), (RECONSTRUCTIONS, means)):
        grey = torch.from_numpy(measured.images[name])
        assert (grey.shape, grey.dtype) == ((SHOWN, 784), torch.uint8)
        assert (grey - 255 * expected[:SHOWN]).abs().max() < 0.51  # rounded


def test_the_arm_of_the_published_code_has_what_that_code_keeps(
    measures: dict[str, Measure], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(config: TrainConfig, images: Dataset, steps: int) -> Record:
        return {"asked": (config.arm, config.seed, images.fingerprint(), steps)}

    monkeypatch.setattr(measuring, "kept_and_decoded", kept)
    config = dataclasses.replace(BASE, seed=SEED)
    published = dataclasses.replace(config, objective="kl", kl="as-published", decoder="separate")
    record, _ = measures["static"].run(published, OBSERVED)
    assert record["kept"]["asked"] == (published.arm, SEED, dataset.fingerprint(), 12)
    other = dataclasses.replace(published, kl="analytic")
    assert "kept" not in measures["static"].run(other, OBSERVED)[0]


def test_the_curve_over_k_is_of_the_ordinary_vaes_first_seed(
    measures: dict[str, Measure], dataset: Dataset, measured: Measured
) -> None:
    how = "none" if is_grey(measured.own) else "static"
    assert not {"k_curve", "both_sides"} & measured.record.keys()
    config = dataclasses.replace(BASE, binarize=how, seed=0)
    record, _ = measures[how].run(config, frozenset())
    ours = own(model(0, 99), pixels(dataset, how))
    weights = log_weights(ours, slice(CURVE_IMAGES), 15, COUNTS[-1], 0)
    log_px = [float((weights[:k].logsumexp(0) - math.log(k)).mean()) for k in COUNTS]
    assert record["k_curve"] == {
        "images": CURVE_IMAGES,
        "k": list(COUNTS),
        # The study sums 784 terms in float32.
        "log_px": pytest.approx(log_px, rel=1e-5),
    }
    # The same images and noise, from both sides.
    both = record["both_sides"]
    assert (both["images"], both["samples"], both["temperatures"]) == (BOTH_SIDES, MANY, 3)
    mu, sigma, x = (part["test"][:BOTH_SIDES] for part in (ours.mu, ours.sigma, ours.x))
    eps = reference.normal(noise_key(0, "evaluate", 15), MANY, BOTH_SIDES, 2)
    with torch.no_grad():
        z = mu + sigma * eps
        logits = ours.textbook.decoder(z)
    log_px_z = (x * logits + torch.nn.functional.logsigmoid(-logits)).sum(2)
    ratio = (Normal(0.0, 1.0).log_prob(z) - Normal(mu, sigma).log_prob(z)).sum(2)
    elbo = log_px_z.mean(0) - rates(mu, sigma).sum(1)
    assert both["test"]["elbo"] == estimate(elbo)
    importance = (log_px_z + ratio).logsumexp(0) - math.log(MANY)
    assert both["test"]["importance"] == estimate(importance)
    vae = model(0, 99)
    annealed = bidirectional(vae, x.float(), 0, temperatures=3)
    for name in ("lower", "upper"):
        assert both["test"][name] == estimate(getattr(annealed, name))
    assert both["test"]["gap"] == estimate(annealed.lower - elbo)
    simulated, of = simulate(vae, BOTH_SIDES, 0)
    assert both["simulated"]["upper"] == estimate(
        bidirectional(vae, simulated, 0, z=of, temperatures=3).upper
    )
    beta = dataclasses.replace(config, beta=4.0)
    other = measures[how].run(beta, frozenset())[0]
    assert not {"k_curve", "both_sides"} & other.keys()


def test_beside_the_arms_are_other_real_images_and_the_mean_digit(
    measured: Measured, nets: list[FeatureNet], networks: Networks
) -> None:
    ours, beside = measured.own, measured.beside
    x = ours.x
    mean = x["train"][:NEAREST].mean(0).expand(GENERATED, -1)
    if not is_grey(ours):
        u = reference.uniform(noise_key(0, "generate", 2), 1, GENERATED, 784)[0]
        mean = (u < mean).double()
    real = every(x["validation"])
    floor = dict(beside["images"]["floor"])
    validation, test = ([net(x.float()) for net in nets] for x in (real, every(x["test"])))
    by_chance = frechet_floor(validation, test, noise_key(0, "generate", 3))._asdict()
    for name, value in floor.pop("frechet_splits").items():
        assert value == pytest.approx(by_chance[name], rel=1e-3)
    assert floor == expected_scores(nets, ours, real)
    assert beside["images"]["ceiling"] == expected_scores(nets, ours, mean)
    assert beside["features"] == {
        "accuracy_binary": pytest.approx(0.75),
        "networks": [dataclasses.asdict(training) for _, training in networks],
    }
    frequency = (x["train"].sum(0) + 0.5) / (SIZES["train"] + 1)
    cross = -(x["test"] * frequency.log() + (1 - x["test"]) * (1 - frequency).log())
    # Grey levels are scaled in float32.
    assert beside["marginal_log_prob"] == pytest.approx(-float(cross.sum(1).mean()), rel=1e-7)
    n, latents = SIZES["test"], 2
    psi = float(torch.digamma(torch.tensor((n - 1) / 2, dtype=torch.float64)))
    assert beside["null_sample_kl"] == pytest.approx(latents * (math.log(n / 2) - psi) / 2)
    assert (beside["n"], beside["latent"]) == (n, latents)
    assert beside["log_aggregate_images"] == pytest.approx(math.log(AGGREGATE_IMAGES))


def test_the_decay_is_of_the_phases_that_train_what_z_is_from(
    measures: dict[str, Measure], training: FakeTraining
) -> None:
    arms = {
        "separate": (["encoder", "decoder"], [0, 5]),
        "simultaneous": (["encoder and decoder"], [0, 5]),
        "randn": (["decoder"], [0, 5]),
    }
    for decoder, (phases, steps) in arms.items():
        training.phases = phases
        objective = "elbo" if decoder == "randn" else "kl"
        config = dataclasses.replace(BASE, objective=objective, decoder=decoder, seed=SEED)
        decay = measures["static"].run(config, frozenset({0, 5}))[0]["decay"]
        assert [point["step"] for point in decay] == steps, decoder
    training.phases = ["vae"]


def test_networks_that_are_not_there_are_trained_and_kept(
    dataset: Dataset, tmp_path: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Dataset] = []

    def train_networks(images: Dataset) -> Networks:
        trained.append(images)
        return networks

    monkeypatch.setattr(features, "train_networks", train_networks)
    for _ in range(2):
        measure = Measure(BASE, dataset, torch.device("cpu"), tmp_path / "features.pt")
        found = [net.sha256() for net, _ in measure.networks]
        assert found == [training.sha256 for _, training in networks]
    assert [images.fingerprint() for images in trained] == [dataset.fingerprint()]
