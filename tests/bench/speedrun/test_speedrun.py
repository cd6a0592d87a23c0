"""The speedrun: its recipe, its clock and its verdict."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.speedrun import ablation
from bench.speedrun import run as speedrun
from bench.speedrun.recipe import CenteredVAE, Recipe, start
from bench.speedrun.record import Run, record, table
from bench.speedrun.run import Referee, main
from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures.intervals import one_sided_p
from vaez_fast.model import VAE, Linear

RECIPE = Recipe(steps=40, batch_size=50)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """1,000 / 100 / 100 real digits."""
    full = load("mnist-5k")
    splits = ((full.train, 1000), (full.validation, 100), (full.test, 100))
    return Dataset("mnist-1k", *(first(split, count) for split, count in splits))


@pytest.fixture(scope="module")
def images(dataset: Dataset) -> Tensor:
    return binarized(dataset, "train", "static")


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = Recipe(steps=1000, lr=2.0, warmup=0.1).learning_rates()
    assert rates[0] == pytest.approx(2.0 / 100)
    assert rates.argmax() in (98, 99, 100)
    assert rates[500] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.01


def test_the_weight_of_the_kl_rises_from_zero_to_one() -> None:
    weights = Recipe(steps=1000, kl_warmup=0.5).kl_weights()
    assert weights[0] == 0
    assert weights[250] == pytest.approx(0.5)
    assert torch.equal(weights[500:], torch.ones(500, dtype=torch.float64))


def test_weights_start_with_hes_variance_and_the_last_ones_smaller() -> None:
    vae = VAE("altosaar")
    start(vae, RECIPE, seed=3)
    for half, scale in ((vae.encoder, RECIPE.posterior_scale), (vae.decoder, RECIPE.logits_scale)):
        layers = [module for module in half if isinstance(module, Linear)]
        for layer in layers:
            factor = scale if layer is layers[-1] else 1.0
            wanted = factor * math.sqrt(2 / layer.in_features)
            # A standard deviation from n draws has a relative error of 1/√(2n): 0.4 % for the
            # smallest layer.
            assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.02)
    sigma = torch.nn.functional.softplus(vae.encoder[-1].bias[128:])  # type: ignore[index]
    torch.testing.assert_close(sigma, torch.full((128,), RECIPE.posterior_deviation))
    again = VAE("altosaar", seed=8)
    start(again, RECIPE, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), again.parameters(), strict=True))


def test_a_folded_vae_computes_what_the_centred_one_does() -> None:
    x = (torch.rand(9, 784) < 0.2).float()
    centred = CenteredVAE("burda", 1, torch.rand(784))
    folded = centred.folded("burda")
    assert type(folded) is VAE
    for ours, theirs in zip(centred.encode(x), folded.encode(x), strict=True):
        # Sums of 784 float32 terms of size 0.03, in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    z = torch.randn(3, 50)
    assert torch.equal(centred.decode(z), folded.decode(z))


@pytest.fixture(scope="module")
def run(dataset: Dataset, images: Tensor) -> Run:
    return speedrun.speedrun(RECIPE, images, Referee(dataset), 0, torch.float32)


def test_a_run_learns_and_repeats_to_the_last_digit(
    run: Run, dataset: Dataset, images: Tensor
) -> None:
    with uncompiled():
        untrained = speedrun.speedrun(
            replace(RECIPE, steps=1), images, Referee(dataset), 0, torch.float32
        )
    assert run.test["log_px"] > untrained.test["log_px"] + 100
    again = speedrun.speedrun(RECIPE, images, Referee(dataset), 0, torch.float32)
    assert again.test == run.test
    assert again.validation_log_px == run.validation_log_px
    assert run.train_seconds > 0 < run.eval_seconds


def test_a_textbook_that_does_not_get_there_says_so(
    dataset: Dataset, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedrun, "LOOK_EVERY", 2)
    said: list[str] = []
    run, reached = speedrun.textbook(images, Referee(dataset), 4, said.append)
    assert not reached
    assert run.steps == 4
    assert len(said) == 2
    text = table(record(RECIPE, [run], (run, False), MACHINE))
    assert "textbook (target not reached)" in text
    assert "more than 1 times as long" in text


def test_a_textbook_that_gets_there_stops(
    dataset: Dataset, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedrun, "LOOK_EVERY", 1)
    monkeypatch.setattr(speedrun, "TARGET", -1e6)
    run, reached = speedrun.textbook(images, Referee(dataset), 100, lambda _: None)
    assert reached
    assert run.steps == 1


MACHINE = {"device": "a CPU", "threads": 2, "torch": "2"}


def runs_of(log_px: list[float], seconds: float = 5.0) -> list[Run]:
    return [
        Run(seed, 10, seconds, 1.0, 2.0, value - 0.5, {"log_px": value})
        for seed, value in enumerate(log_px)
    ]


def test_the_record_tests_the_mean_against_the_target() -> None:
    values = [-96.9, -97.0, -96.8, -97.05, -96.95]
    content = record(RECIPE, runs_of(values), (runs_of([-97.0], 100.0)[0], True), MACHINE)
    assert content["mean_log_px"] == pytest.approx(-96.94)
    # t = (−96.94 + 97.10) / (0.0962 / √5) = 3.72 with 4 degrees of freedom
    assert content["p_below_target"] == pytest.approx(0.0102, abs=2e-4)
    assert content["textbook_over_ours"] == pytest.approx(20.0)
    assert "one-sided p = 0.01" in table(content)
    assert one_sided_p([-98.0, -98.1], -97.1) > 0.95


def test_an_ablation_takes_one_ingredient_away_at_a_time() -> None:
    whole, *others = ablation.variants(RECIPE).values()
    assert whole == RECIPE
    assert all(recipe != whole for recipe in others)
    assert len(set(map(repr, others))) == len(ablation.WITHOUT)
    vae, untouched = VAE("altosaar", 4), VAE("altosaar", 4)
    start(vae, replace(RECIPE, he=False), seed=1)
    assert all(
        torch.equal(p, q) for p, q in zip(vae.parameters(), untouched.parameters(), strict=True)
    )


def test_the_ablations_worth_is_paired_by_seed() -> None:
    log_px = {"the recipe": [-97.0, -99.0], "one thing": [-98.0, -100.0]}
    *_, whole, less = ablation.table(log_px).splitlines()
    assert whole.endswith("|  |")
    assert less.endswith("| +1.00 ± 0 |")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--textbook-steps", "-1"], "--textbook-steps must be at least 0"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert says in capsys.readouterr().err


def test_missing_data_and_an_unwritable_file_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", no_network)
    assert main(["--data-root", str(tmp_path)]) == 1
    assert "not found" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "record.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
