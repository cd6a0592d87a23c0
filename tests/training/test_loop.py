"""A run's loop: what each step sees, what each look measures, and which state is kept.

Everything is computed again in float64 from the definitions: batches from the reference stream's
permutations, binarisations from its uniform numbers, bounds from plain PyTorch layers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from bench.training.baselines import TextbookVAE
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, Split
from vaez_fast.model import VAE
from vaez_fast.system.cores import SharedCores
from vaez_fast.system.stopping import Stopped
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training import loop
from vaez_fast.training.checkpoint import Keeping
from vaez_fast.training.train import Result, steps_of, train
from vaez_kernels import noise_key, reference

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

# Three batches an epoch, with ten images left over; two epochs and two thirds of a third one.
BATCH, PER_EPOCH, STEPS, SEED, SAMPLES = 20, 3, 8, 5, 6
SIZES = {"train": 70, "validation": 40, "test": 30}
ENDS = [3, 6, 8]  # the last step of each epoch
CONFIG = TrainConfig(
    model="lyeoni", epochs=None, steps=STEPS, batch_size=BATCH, precision="float32", seed=SEED,
    device="cpu", test_samples=SAMPLES,
)  # fmt: skip
STANDS_STILL = 1e-30  # a learning rate too small to change any float32 weight
STATIC = 2**32 - 1  # the seed of static binarisation


def grey(name: str) -> Tensor:
    """(N, 784) uint8, dark in another place in each split: training makes other splits worse."""
    index = list(SIZES).index(name)
    generator = torch.Generator().manual_seed(index)
    images = 255 * torch.rand((SIZES[name], 784), generator=generator)
    images[:, index * 140 : index * 140 + 300] *= 0.1
    return images.to(torch.uint8)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    splits = (Split(grey(name), torch.arange(SIZES[name]) % 10) for name in SIZES)
    return Dataset("noise", *splits)


def pixels(name: str, key: Tensor) -> Tensor:
    images = grey(name).double() / 255
    return (reference.uniform(key, 1, *images.shape)[0] < images).double()


def static(name: str) -> Tensor:
    return pixels(name, noise_key(STATIC, "binarize", list(SIZES).index(name)))


class Bounds(NamedTuple):
    """In nats, (N,): one value for each image."""

    rate: Tensor
    distortion: Tensor
    log_px: Tensor


@torch.no_grad()
def bounds(state: dict[str, Tensor], x: Tensor, noise: Tensor, samples: int) -> Bounds:
    textbook = TextbookVAE("lyeoni")
    textbook.load_state_dict(state)
    textbook.double()
    q = textbook.posterior(x)
    p = Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    z = q.loc + q.scale * reference.normal(noise, samples, *q.loc.shape)
    log_px_z = Bernoulli(logits=textbook.decoder(z)).log_prob(x).sum(2)
    log_weights = log_px_z + (p.log_prob(z) - q.log_prob(z)).sum(2)
    log_px = log_weights.logsumexp(0) - math.log(samples)
    return Bounds(kl_divergence(q, p).sum(1), -log_px_z.mean(0), log_px)


# The run sums 784 terms in float32, to about 550 nats.
CLOSE: dict[str, Any] = {"abs": 2e-3}


def points(result: Result, split: str) -> list[dict[str, Any]]:
    return [point for point in result.curve if point["split"] == split]


ARMS = {
    "static": {},
    "dynamic": {"binarize": "dynamic"},
    "separate": {"objective": "kl", "decoder": "separate", "binarize": "dynamic"},
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_step_sees_its_own_images_and_noise(arm: str, dataset: Dataset) -> None:
    """The recorded bound of a model that stands still is the mean over the batches it was shown."""
    config = dataclasses.replace(CONFIG, lr=STANDS_STILL, **ARMS[arm])  # type: ignore[arg-type]
    result = train(config, dataset)
    state = VAE("lyeoni", SEED).state_dict()
    wanted = []
    for first, last in zip([0, *ENDS], ENDS, strict=False):
        epoch = first // PER_EPOCH
        u = reference.uniform(noise_key(SEED, "permute", epoch), 1, SIZES["train"], 1).flatten()
        order = u.argsort(stable=True)
        drawn = noise_key(SEED, "binarize", 3 + epoch)
        x = pixels("train", drawn) if config.binarize == "dynamic" else static("train")
        seen = []
        for step in range(first, last):
            at = (step - first) * BATCH
            batch = x[order[at : at + BATCH]]
            found = bounds(state, batch, noise_key(SEED, "train", step), 1)
            seen.append((float(found.rate.mean()), float(found.distortion.mean())))
        wanted.append([sum(column) / len(seen) for column in zip(*seen, strict=True)])
    assert len({round(distortion, 1) for _, distortion in wanted}) > 1
    trained = points(result, "train")
    if arm == "separate":  # each phase starts over with the same images and noise
        wanted = [[rate, 0.0] for rate, _ in wanted] + [[0.0, d] for _, d in wanted]
    assert [point["step"] for point in trained] == [
        step + STEPS * phase for phase in range(len(wanted) // 3) for step in ENDS
    ]
    for point, (rate, distortion) in zip(trained, wanted, strict=True):
        assert point["rate"] == pytest.approx(rate, abs=1e-5)
        assert point["distortion"] == pytest.approx(distortion, **CLOSE)
        assert point["elbo"] == pytest.approx(-rate - distortion, **CLOSE)


class Seen(NamedTuple):
    result: Result
    states: dict[int, dict[str, Tensor]]  # step → a copy of the weights


def observed(config: TrainConfig, dataset: Dataset, **options: Any) -> Seen:
    states = {}

    def observe(_: str, step: int, vae: VAE) -> None:
        assert step not in states
        states[step] = {name: p.clone() for name, p in vae.state_dict().items()}

    result = train(config, dataset, observe=observe, observe_at=range(STEPS + 1), **options)
    assert list(states) == list(range(STEPS + 1))
    return Seen(result, states)


# With β = 6 the rate still falls when the distortion already grows.
HEAVY = dataclasses.replace(CONFIG, beta=6.0, lr=3e-3)


@pytest.fixture(scope="module")
def heavy(dataset: Dataset) -> Seen:
    return observed(HEAVY, dataset)


def test_each_step_changes_the_weights(heavy: Seen) -> None:
    initial = VAE("lyeoni", SEED).state_dict()
    assert all(torch.equal(p, initial[name]) for name, p in heavy.states[0].items())
    for step in range(STEPS):
        now, then = (heavy.states[s]["decoder.0.weight"] for s in (step, step + 1))
        assert not torch.equal(now, then)


def test_a_look_is_at_validation_images_with_one_sample_of_their_own_noise(heavy: Seen) -> None:
    looks = points(heavy.result, "validation")
    assert [look["step"] for look in looks] == ENDS
    noise = noise_key(SEED, "evaluate", 0)
    for look in looks:
        found = bounds(heavy.states[look["step"]], static("validation"), noise, 1)
        rate, distortion = float(found.rate.mean()), float(found.distortion.mean())
        assert look["rate"] == pytest.approx(rate, rel=1e-5)
        assert look["distortion"] == pytest.approx(distortion, **CLOSE)
        assert look["elbo"] == pytest.approx(-rate - distortion, **CLOSE)


def test_the_state_kept_has_the_best_bound_as_it_was_trained_and_is_a_copy(heavy: Seen) -> None:
    result = heavy.result
    looks = points(result, "validation")
    by_bound = {look["step"]: -(HEAVY.beta * look["rate"] + look["distortion"]) for look in looks}
    by_elbo = {look["step"]: look["elbo"] for look in looks}
    best = max(by_bound, key=lambda step: by_bound[step])
    assert best != max(by_elbo, key=lambda step: by_elbo[step])
    assert best != min(by_bound, key=lambda step: by_bound[step])
    assert best != ENDS[-1]
    assert result.best_step == best
    for name, p in result.vae.state_dict().items():
        assert torch.equal(p, heavy.states[best][name]), name


def test_the_test_split_is_evaluated_in_the_state_kept_with_noise_of_its_own(heavy: Seen) -> None:
    result = heavy.result
    state = heavy.states[result.best_step]
    found = bounds(state, static("test"), noise_key(SEED, "evaluate", 1), SAMPLES)
    assert result.test.rate == pytest.approx(float(found.rate.mean()), rel=1e-5)
    assert result.test.distortion == pytest.approx(float(found.distortion.mean()), **CLOSE)
    elbo = -float(found.rate.mean() + found.distortion.mean())
    assert result.test.elbo == pytest.approx(elbo, **CLOSE)
    assert result.test.log_px == pytest.approx(float(found.log_px.mean()), **CLOSE)
    error = float(found.log_px.std()) / math.sqrt(SIZES["test"])
    assert result.test.log_px_standard_error == pytest.approx(error, abs=1e-4)
    assert result.test.log_px_samples == SAMPLES
    other = bounds(state, static("test"), noise_key(SEED, "evaluate", 0), SAMPLES)
    assert abs(float(other.distortion.mean() - found.distortion.mean())) > 2 * CLOSE["abs"]


def test_looks_may_be_epochs_apart_and_the_last_epoch_has_one(
    heavy: Seen, dataset: Dataset
) -> None:
    result = train(HEAVY, dataset, look_every=2)
    assert [point["step"] for point in points(result, "validation")] == [6, 8]
    assert [point["step"] for point in points(result, "train")] == ENDS
    assert [p["elbo"] for p in points(result, "validation")] == [
        p["elbo"] for p in points(heavy.result, "validation")[1:]
    ]


def test_what_does_not_train_a_bound_keeps_its_end_though_it_was_better_before(
    dataset: Dataset,
) -> None:
    config = dataclasses.replace(CONFIG, objective="kl", decoder="separate", lr=3e-3)
    result = train(config, dataset)
    elbos = [point["elbo"] for point in points(result, "validation")]
    assert max(elbos) > elbos[-1]
    assert result.best_step == result.steps == 2 * STEPS


def test_a_run_that_goes_on_remembers_the_best_state_before_it_was_stopped(
    heavy: Seen, dataset: Dataset, tmp_path: Path
) -> None:
    keeping = Keeping(tmp_path)

    def stop(*_: object) -> None:
        keeping.signals.received = signal.SIGTERM

    with pytest.raises(Stopped):
        train(HEAVY, dataset, observe=stop, observe_at=[7], keeping=keeping)
    kept = checkpoints.read(keeping.path)
    best = heavy.result.best_step
    assert best < 7  # what comes after it is worse
    assert kept.step == best
    result = train(HEAVY, dataset, keeping=Keeping(tmp_path, resumed=kept))
    assert result.best_step == best
    for state in (kept.model, result.vae.state_dict()):
        assert all(torch.equal(p, heavy.states[best][name]) for name, p in state.items())
    assert [point["elbo"] for point in result.curve] == [p["elbo"] for p in heavy.result.curve]
    assert result.test == heavy.result.test


def test_an_epoch_has_whole_batches_and_speed_counts_all_images(
    heavy: Seen, dataset: Dataset
) -> None:
    epochs = dataclasses.replace(CONFIG, steps=None, epochs=4)
    assert steps_of(epochs, dataset) == 4 * PER_EPOCH
    assert steps_of(CONFIG, dataset) == STEPS
    speed = heavy.result.speed()
    assert speed["steps"] == STEPS
    seconds = speed["train_seconds"]
    assert speed["images_per_second"] == pytest.approx(STEPS * BATCH / seconds)
    assert 0 < seconds == points(heavy.result, "train")[-1]["seconds"]


def test_an_importance_weighted_run_looks_at_its_own_bound(dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, objective="iwae", num_samples=3, kl="total-derivative")
    result, states = observed(config, dataset)
    noise = noise_key(SEED, "evaluate", 0)
    for look in points(result, "validation"):
        found = bounds(states[look["step"]], static("validation"), noise, 3)
        log_px, distortion = float(found.log_px.mean()), float(found.distortion.mean())
        assert look["elbo"] == pytest.approx(log_px, **CLOSE)
        assert look["distortion"] == pytest.approx(distortion, **CLOSE)
        assert look["rate"] == pytest.approx(-log_px - distortion, **CLOSE)


@pytest.mark.parametrize("fails", [False, True])
def test_the_loop_shares_cores_between_steps_and_lets_go_at_its_end(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    told: list[object] = []

    class Cores:
        def done(self, steps: int) -> None:
            told.append(steps)
            if fails:
                raise KeyboardInterrupt

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(loop, "SharedCores", Cores)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, dataset)
        assert told == [PER_EPOCH, "closed"]
    else:
        train(CONFIG, dataset)
        assert told == [3, 3, 2, "closed"]  # ends of epochs


def test_threads_that_sleep_train_the_same_weights(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy:
        """Waits of a machine whose cores others have taken, in every interval."""

        known = True

        def longest(self) -> float:
            return 1e9

        def close(self) -> None:
            """As of `Waits`."""

    slept: list[bool] = []

    class Cores(SharedCores):
        def __init__(self) -> None:
            clock = itertools.count(step=1.0)
            super().__init__(Busy, lambda: next(clock))  # type: ignore[arg-type]

        def done(self, steps: int = 1) -> None:
            super().done(steps)
            slept.append(self.sleeping)

    spinning = train(CONFIG, dataset).vae.state_dict()
    monkeypatch.setattr(loop, "SharedCores", Cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sleeping = train(CONFIG, dataset).vae.state_dict()
    assert any(slept)
    for name, weight in spinning.items():
        assert torch.equal(weight, sleeping[name])
