"""Remedies: their arms, what is measured of each, and their files."""

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
from vaez_fast.data import Dataset, Pixels, Split, load
from vaez_fast.measures.codes import encode
from vaez_fast.measures.densities import Embedded
from vaez_fast.measures.features import FeatureNet
from vaez_fast.measures.image_metrics import Reference, image_scores
from vaez_fast.measures.law import fit_densities, lower_bound
from vaez_fast.measures.replaced_prior import log_px_gain
from vaez_fast.measures.two_stage import fit_second_stage
from vaez_fast.model import Linear
from vaez_fast.richer.vae import RicherVAE, build
from vaez_fast.study import remedies
from vaez_fast.study.config import REMEDIES, RemedyConfig, ordinary_remedy
from vaez_fast.study.remedies import measure, run_remedies
from vaez_fast.system.files import OutputError, read_json
from vaez_kernels import noise_key, reference

BASE = TrainConfig(model="lyeoni", epochs=None, steps=5, device="cpu", precision="float32")
CONFIG = RemedyConfig(BASE, 2, ("analytic", "flow"))


def test_a_remedy_is_one_change_of_its_ordinary_vae() -> None:
    config = RemedyConfig(BASE, 2)
    arms = {name: config.arm(name).arm for name in config.remedies}
    assert len(set(arms.values())) == len(arms) == len(REMEDIES)
    assert arms["analytic"] == "elbo/analytic/joint"
    assert arms["monte-carlo"] == "elbo/total-derivative/joint"
    for name, arm in arms.items():
        changed = set(arm.split("/")) ^ set(arms[ordinary_remedy(name)].split("/"))
        assert len(changed) == (0 if name in ("analytic", "monte-carlo") else 1), name


def test_all_remedies_of_a_seed_come_before_the_next_seed() -> None:
    runs = [(run.seed, run.prior) for run in CONFIG.runs()]
    assert runs == [(seed, prior) for seed in (0, 1) for prior in ("standard-normal", "flow")]


def test_settings_that_are_unknown_missing_or_repeated_are_refused() -> None:
    for change, message in (
        ({"seeds": 1}, "seeds must be from 2 to 1000, got 1"),
        ({"remedies": ("luck",)}, "remedies must be among analytic"),
        ({"remedies": ()}, r"remedies must differ from each other, got \(\)"),
        ({"remedies": ("flow", "flow")}, "remedies must differ from each other"),
    ):
        settings: dict[str, Any] = {"base": BASE, "seeds": 2, **change}
        with pytest.raises(ConfigError, match=message):
            RemedyConfig(**settings)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    full = load("mnist-5k")

    def part(split: Split, every: int) -> Split:
        return Split(split.images[::every], split.labels[::every])

    return Dataset("part", part(full.train, 8), part(full.validation, 4), part(full.test, 2))


@pytest.fixture(scope="module")
def real(dataset: Dataset) -> Reference:
    nets = [FeatureNet().requires_grad_(False) for _ in range(2)]
    images = dataset.test.images.float() / 255
    for net in nets:
        net.normalize(images)
    return Reference(images[:60], images, nets)


@pytest.mark.parametrize("remedy", ["analytic", "mixture", "iaf"])
def test_a_record_is_of_the_runs_own_prior(
    remedy: str, dataset: Dataset, real: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG.base, **REMEDIES[remedy], seed=6)
    vae = build("lyeoni", config.posterior, config.prior, 1)
    with torch.no_grad():
        last = vae.encoder[-1]
        assert isinstance(last, Linear)
        last.weight[:2] *= 40.0  # the means
    asked: list[TrainConfig] = []

    def train(config: TrainConfig, images: Dataset) -> Any:
        asked.append(config)
        return SimpleNamespace(
            vae=vae, test=fake_run.METRICS, steps=5, train_seconds=2.0, best_step=4
        )

    monkeypatch.setattr(remedies, "train", train)
    monkeypatch.setattr(remedies, "GAIN_IMAGES", 40)
    monkeypatch.setattr(remedies, "GAIN_SAMPLES", 8)
    record = json.loads(json.dumps(measure(config, dataset, real), allow_nan=False))
    assert asked == [config]
    assert (record["arm"], record["seed"]) == (config.arm, 6)
    assert record["test"] == fake_run.METRICS.as_dict()

    # Draws of the prior itself, and binary samples of the decoder's means.
    noise = noise_key(6, "generate", 0)
    z = reference.normal(noise, 1, 60, 2)[0].float()
    if isinstance(vae, RicherVAE):
        z = vae.law().draw(noise, 60)
    with torch.no_grad():
        means = torch.sigmoid(vae.decode(z))
    u = reference.uniform(noise_key(6, "generate", 1), 1, *means.shape)[0]
    scores = image_scores((u < means).float(), real)
    assert record["images"]["frechet"] == pytest.approx(scores["frechet"], rel=1e-3)

    if remedy == "iaf":
        assert record["left"] is None
        return
    # The same density's bound of the KL from N(0, I) and from the prior differ by log p / N(0, I).
    codes = encode(vae, Pixels(dataset, "static"), 6)
    density = fit_densities(codes, 6, ("full-covariance", "mixture"))[record["left"]["how"]]
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(codes.test.z.double()).sum(1)
    own = standard
    if isinstance(vae, RicherVAE):
        own = vae.law().log_prob(codes.test.z).double().detach()
    wanted = lower_bound(density, codes.test.z).value + float((standard - own).mean())
    assert record["left"]["value"] == pytest.approx(wanted, rel=1e-6)

    if remedy != "analytic":
        assert "afterwards" not in record
        return
    measured = codes.measured()
    z, validation = codes.train.z[:, measured], codes.validation.z[:, measured]
    second = Embedded(fit_second_stage(z, validation, 6), measured, 2)
    x = Pixels(dataset, "static").x("test")[:40]
    gain = log_px_gain(vae, second, x, noise_key(6, "evaluate", 18), 8)
    found = record["afterwards"]
    assert list(found) == ["full-covariance", "mixture", "two-stage"]
    assert found["two-stage"]["elbo"] == pytest.approx(gain.elbo._asdict(), rel=1e-6)
    assert found["two-stage"]["log_px"] == pytest.approx(gain.log_px._asdict(), rel=1e-6)
    with torch.no_grad():
        means = torch.sigmoid(vae.decode(second.draw(noise, 60)))
    scores = image_scores((u < means).float(), real)
    for metric in ("frechet", "kernel", "nearest_train"):
        assert found["two-stage"]["images"][metric] == pytest.approx(scores[metric], rel=1e-5)
    fitted = fit_densities(codes, 6, ("full-covariance", "mixture"))
    mixtures = [name for name in fitted if name.startswith("mixture")]
    best = max(mixtures, key=lambda name: float(fitted[name].log_prob(codes.validation.z).mean()))
    for name, density in (
        ("full-covariance", fitted["full-covariance"]),
        ("mixture", fitted[best]),
    ):
        gain = log_px_gain(vae, density, x, noise_key(6, "evaluate", 18), 8)
        assert found[name]["elbo"] == pytest.approx(gain.elbo._asdict(), rel=1e-6)
        assert (found[name]["num_images"], found[name]["num_samples"]) == (40, 8)


def record_of(config: TrainConfig) -> dict[str, Any]:
    seed, flow = config.seed, config.prior == "flow"
    return {
        "arm": config.arm,
        "seed": seed,
        "test": {
            "elbo": -100.0 + seed, "rate": 20.0 + 0.1 * seed,
            "log_px": -96.0 + 2 * seed + (1.5 + 0.01 * seed if flow else 0.0),
        },
        "left": None if config.posterior != "diagonal" else {"value": 1.5 - 0.1 * seed},
        "images": {"frechet": 2.0 + 0.1 * seed},
        **({"afterwards": afterwards(seed)} if config.arm == "elbo/analytic/joint" else {}),
    }  # fmt: skip


def afterwards(seed: int) -> dict[str, Any]:
    return {
        name: {
            "elbo": {"value": 1.0 + i + 0.1 * seed},
            "log_px": {"value": 0.5 + i + 0.2 * seed},
            "num_images": 500,
            "num_samples": 64,
            "images": {"frechet": 0.4 + i + 0.01 * seed},
        }
        for i, name in enumerate(("full-covariance", "mixture", "two-stage"))
    }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []

    def of(config: TrainConfig, *_: object) -> dict[str, Any]:
        ran.append(f"{config.arm}-{config.seed}")
        return record_of(config)

    monkeypatch.setattr(remedies, "measure", of)
    monkeypatch.setattr(remedies, "kept_networks", lambda *_: [])
    monkeypatch.setattr(remedies, "Reference", lambda *_: None)
    return ran


def test_more_seeds_and_more_remedies_continue_a_folder(tmp_path: Path, fake: list[str]) -> None:
    run_remedies(CONFIG, tmp_path)
    first = list(fake)
    assert len(first) == 4
    more = RemedyConfig(BASE, 3, ("analytic", "monte-carlo", "flow"))
    run_remedies(more, tmp_path)
    assert set(fake[4:]).isdisjoint(first)
    assert len(fake) == 9
    results = read_json(tmp_path / "results.json")
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [
        (run.arm, run.seed) for run in more.runs()
    ]
    assert results["config"]["remedies"] == ["analytic", "monte-carlo", "flow"]
    with pytest.raises(OutputError, match="also holds remedies monte-carlo; name them, too"):
        run_remedies(RemedyConfig(BASE, 3, ("analytic", "flow")), tmp_path)
    with pytest.raises(OutputError, match=r"holds a study of other settings \(steps 5"):
        run_remedies(RemedyConfig(replace(BASE, steps=6), 3), tmp_path)
