"""Training: it learns, repeats to the last digit, and reports numbers that float64 confirms."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from bench.training.baselines import TextbookVAE
from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast.config import LOG_PX_SAMPLES, ConfigError, TrainConfig
from vaez_fast.data import Dataset, Split, binarized, load
from vaez_fast.training.train import Result, TrainingError, train
from vaez_kernels import noise_key, reference

CONFIG = TrainConfig(model="lyeoni", epochs=10, batch_size=50, lr=3e-3, seed=7)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """1,000 / 100 / 100 real digits."""
    full = load("mnist-5k")

    return Dataset("mnist-1k", *(first(s, n) for s, n in _sizes(full)))


def _sizes(full: Dataset) -> list[tuple[Split, int]]:
    return [(full.train, 1000), (full.validation, 100), (full.test, 100)]


@pytest.fixture(scope="module")
def result(dataset: Dataset) -> Result:
    return train(CONFIG, dataset)


def test_the_cuda_device_needs_no_index(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.cuda.set_device refuses "cuda" without an index, as `--device auto` and `cuda` give it.
    class Reached(Exception):
        pass

    def precision(*_: object) -> None:
        raise Reached

    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(sys.modules["vaez_fast.training.train"], "choose_precision", precision)
    for name in ("cuda", "cuda:1"):
        monkeypatch.setattr(
            sys.modules["vaez_fast.training.train"],
            "choose_device",
            lambda _, n=name: torch.device(n),
        )
        with pytest.raises(Reached):
            train(CONFIG, dataset)
    assert chosen == [torch.device("cuda:1")]


def of_split(result: Result, split: str) -> list[float]:
    return [point["elbo"] for point in result.curve if point["split"] == split]


def test_training_learns(result: Result, dataset: Dataset) -> None:
    # The best model that ignores z and x: each pixel's frequency in the training split.
    train_x = binarized(dataset, "train", "static").double()
    test_x = binarized(dataset, "test", "static").double()
    frequency = ((train_x.sum(0) + 0.5) / (len(train_x) + 1)).expand_as(test_x)
    marginal = torch.distributions.Bernoulli(frequency).log_prob(test_x).sum(1).mean()
    assert of_split(result, "validation")[-1] > of_split(result, "validation")[0] + 5
    assert result.test.elbo > float(marginal) + 5


def test_a_seed_fixes_everything_to_the_last_digit(result: Result, dataset: Dataset) -> None:
    again = train(CONFIG, dataset)
    assert again.test == result.test
    assert [p["elbo"] for p in again.curve] == [p["elbo"] for p in result.curve]
    for p, q in zip(again.vae.parameters(), result.vae.parameters(), strict=True):
        assert torch.equal(p, q)


def test_another_seed_is_another_run_on_the_same_binarised_data(
    result: Result, dataset: Dataset
) -> None:
    with uncompiled():
        other = train(dataclasses.replace(CONFIG, seed=8, epochs=1), dataset)
    assert of_split(other, "train")[0] != of_split(result, "train")[0]


def test_test_metrics_agree_with_an_independent_evaluation(
    result: Result, dataset: Dataset
) -> None:
    vae = TextbookVAE("lyeoni")
    vae.load_state_dict(result.vae.state_dict())
    vae.double()
    x = binarized(dataset, "test", "static").double()
    with torch.no_grad():
        q = vae.posterior(x)
        rate = reference.kl_standard_normal(q.loc, 2 * q.scale.log()).mean()
        eps = reference.normal(noise_key(CONFIG.seed, "evaluate", 1), LOG_PX_SAMPLES, *q.loc.shape)
        logits = vae.decoder(q.loc + q.scale * eps)
        bernoulli = torch.distributions.Bernoulli(logits=logits)
        distortion = -bernoulli.log_prob(x.expand_as(logits)).sum(-1).mean()
    assert result.test.rate == pytest.approx(float(rate), abs=1e-4)
    # A processor with fast bfloat16 products evaluates with them.
    assert result.test.distortion == pytest.approx(float(distortion), abs=0.02)


def test_the_state_kept_is_the_one_with_the_best_validation_elbo(result: Result) -> None:
    validation = [p for p in result.curve if p["split"] == "validation"]
    assert result.best_step == max(validation, key=lambda p: p["elbo"])["step"]


def test_the_curve_has_a_training_and_a_validation_point_for_each_epoch(result: Result) -> None:
    assert [p["step"] for p in result.curve] == [s for s in range(20, 201, 20) for _ in range(2)]
    assert [p["split"] for p in result.curve] == ["train", "validation"] * 10
    for point in result.curve:
        assert point["elbo"] == pytest.approx(-(point["rate"] + point["distortion"]))
    seconds = [p["seconds"] for p in result.curve if p["split"] == "train"]
    assert seconds == sorted(seconds)
    assert seconds[-1] == result.train_seconds


def test_steps_may_end_inside_an_epoch(dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, epochs=None, steps=25)
    with uncompiled():
        result = train(config, dataset)
    assert result.steps == 25
    assert [p["step"] for p in result.curve] == [20, 20, 25, 25]


@pytest.mark.parametrize("binarize", ["dynamic", "none"])
def test_other_binarisations_train_too(dataset: Dataset, binarize: str) -> None:
    config = dataclasses.replace(CONFIG, binarize=binarize, epochs=2)
    with uncompiled():
        elbos = of_split(train(config, dataset), "validation")
    assert elbos[1] > elbos[0]


def test_a_batch_larger_than_the_training_split_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at most 1000"):
        train(dataclasses.replace(CONFIG, batch_size=1001), dataset)


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step 2 .*smaller lr"):
        train(dataclasses.replace(CONFIG, lr=1e20), dataset)
