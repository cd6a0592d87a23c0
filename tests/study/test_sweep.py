"""A sweep: its runs, what it measures of each, and its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.system import fake_run
from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.data import Dataset, Pixels, Split, binarized, load
from vaez_fast.measures.codes import Codes, encode
from vaez_fast.measures.law import best_density, fit_densities, upper_bound
from vaez_fast.model import VAE, Linear, architecture
from vaez_fast.study import sweep
from vaez_fast.study.config import SweepConfig
from vaez_fast.study.sweep import measure, run_sweep
from vaez_fast.system.files import OutputError, read_json
from vaez_kernels import noise_key, reference

BASE = TrainConfig(model="lyeoni", epochs=None, steps=5, device="cpu", precision="float32")
CONFIG = SweepConfig(BASE, 2, (2, 3), (0.5, 1.0))


def test_every_setting_of_a_seed_comes_before_the_next_seed() -> None:
    runs = [(run.seed, run.latent, run.beta) for run in CONFIG.runs()]
    assert runs == [
        (seed, latent, beta) for seed in (0, 1) for latent in (2, 3) for beta in (0.5, 1.0)
    ]
    assert {run.arm for run in CONFIG.runs()} == {
        f"elbo/analytic/joint/latent={latent}{beta}"
        for latent in (2, 3)
        for beta in ("/beta=0.5", "")
    }


def test_settings_that_are_missing_or_repeated_are_refused() -> None:
    for change in ({"latents": ()}, {"latents": (2, 2)}, {"betas": (1.0, 1.0)}, {"seeds": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} must"):
            replace(CONFIG, **change)
    with pytest.raises(ConfigError, match="latent must be a positive integer, got -1"):
        replace(CONFIG, latents=(-1,))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    full = load("mnist-5k")

    def part(split: Split) -> Split:
        return Split(split.images[::2], split.labels[::2])

    return Dataset("half", part(full.train), part(full.validation), part(full.test))


def codes_of(vae: VAE, dataset: Dataset, seed: int) -> Codes:
    return encode(vae, Pixels(dataset, "static"), seed)


def test_a_record_is_of_the_model_that_was_trained(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BASE, latent=3, beta=0.5, seed=4)
    vae = VAE(architecture("lyeoni", 3), 1)
    with torch.no_grad():
        last = vae.encoder[-1]
        assert isinstance(last, Linear)
        last.weight[1] += last.weight[0]  # so that a covariance fits better than none
        last.weight[:2] *= 40.0  # the means of two latents
    asked: list[TrainConfig] = []

    def train(config: TrainConfig, images: Dataset) -> Any:
        asked.append(config)
        return SimpleNamespace(vae=vae, test=fake_run.METRICS, steps=5, train_seconds=2.0)

    monkeypatch.setattr(sweep, "train", train)
    record = json.loads(json.dumps(measure(config, dataset), allow_nan=False))
    assert asked == [config]
    assert (record["arm"], record["seed"]) == (config.arm, 4)
    assert (record["latent"], record["beta"], record["steps"]) == (3, 0.5, 5)
    assert record["test"] == fake_run.METRICS.as_dict()

    double = VAE(architecture("lyeoni", 3), 1).double()
    double.load_state_dict(vae.state_dict())
    with torch.no_grad():
        train_mu, train_logvar = double.encode(binarized(dataset, "train", "static").double())
        mu, logvar = double.encode(binarized(dataset, "test", "static").double())
    kl = 0.5 * (train_mu.square() + train_logvar.exp() - 1 - train_logvar).mean(0)
    informative = kl > 0.1
    assert record["informative"] == int(informative.sum()) == 2
    assert record["active_units"] == int((mu.var(0, correction=0) > 0.01).sum())
    eps = reference.normal(noise_key(4, "evaluate", 10), 1, *mu.shape)[0]
    z = mu + torch.exp(0.5 * logvar) * eps
    squares = z[:, informative].square().sum(1)
    assert record["squared_norm"] == {
        "d": 2,
        "mean": pytest.approx(float(squares.mean()), rel=1e-4),  # z is float32
        "variance": pytest.approx(float(squares.var()), rel=1e-4),
        "shell": pytest.approx(float(squares.var()) / 4, rel=1e-4),
    }
    # The diagonal Gaussian of the training codes, in closed form.
    eps = reference.normal(noise_key(4, "evaluate", 13), 1, *train_mu.shape)[0]
    codes = (train_mu + torch.exp(0.5 * train_logvar) * eps)[:, informative]
    fitted = torch.distributions.Normal(codes.mean(0), codes.std(0, correction=0))
    standard = torch.distributions.Normal(0.0, 1.0)
    shown = z[:, informative]
    gain = (fitted.log_prob(shown) - standard.log_prob(shown)).sum(1)
    assert record["lower"]["diagonal"]["value"] == pytest.approx(float(gain.mean()), rel=1e-4)
    # The plug-in estimate is above the leave-one-out estimate of the same draws.
    assert record["kl_upper"]["value"] > record["leave_one_out"]["value"]
    wanted, _ = upper_bound(codes_of(vae, dataset, 4), noise_key(4, "evaluate", 17), 2_000)
    assert record["kl_upper"]["value"] == pytest.approx(wanted.value, rel=1e-6)
    best = record["kl_lower"].pop("how")
    assert record["kl_lower"] == {
        name: record["lower"][best][name] for name in ("value", "standard_error")
    }
    densities = fit_densities(codes_of(vae, dataset, 4), 4, tuple(sweep.DENSITIES))
    assert best == best_density(densities, codes_of(vae, dataset, 4).validation.z) != "diagonal"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []

    def of(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
        ran.append(f"{config.arm}-{config.seed}")
        return record_of(config)

    monkeypatch.setattr(sweep, "measure", of)
    return ran


def record_of(config: TrainConfig) -> dict[str, Any]:
    latent, beta = config.latent or 0, config.beta
    return {
        "arm": config.arm,
        "seed": config.seed,
        "latent": latent,
        "beta": beta,
        "test": {"rate": latent / beta + 0.1 * config.seed, "distortion": 100.0 - latent},
        "kl_lower": {"value": 0.1 * latent / beta + 0.01 * config.seed},
        "kl_upper": {"value": 2.0 * latent / beta + 0.01 * config.seed},
        "squared_norm": {"shell": 0.5 if latent > 2 else 1.5},
        "informative": latent,
        "active_units": latent,
    }


def test_a_sweep_writes_its_runs_and_goes_on_where_it_was(tmp_path: Path, fake: list[str]) -> None:
    run_sweep(replace(CONFIG, seeds=1), tmp_path)
    assert len(fake) == 4
    run_sweep(CONFIG, tmp_path)
    assert fake == [f"{run.arm}-{run.seed}" for run in CONFIG.runs()]
    results = read_json(tmp_path / "results.json")
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [
        (run.arm, run.seed) for run in CONFIG.runs()
    ]
    assert results["config"]["latents"] == [2, 3]
    assert all("revision" in run["environment"] for run in results["runs"])
    assert "data_root" not in results["config"]


@pytest.mark.usefixtures("fake")
def test_another_sweep_or_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    run_sweep(CONFIG, tmp_path)
    with pytest.raises(OutputError, match=r"other settings \(betas \[0\.5, 1\.0\]\)"):
        run_sweep(replace(CONFIG, betas=(0.5, 2.0)), tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"kind": "vaez-fast article", "schema": 2}))
    with pytest.raises(OutputError, match="holds a study of another kind or version"):
        run_sweep(CONFIG, tmp_path)
