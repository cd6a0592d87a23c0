"""The study's files: finished runs are kept, other settings are refused; and one measured run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.study import fake_study
from tests.training.uncompiled import uncompiled
from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.data import Dataset, Split, binarized, load
from vaez_fast.measures import features
from vaez_fast.measures.aggregate import null_sample_kl
from vaez_fast.measures.samplers import SAMPLERS
from vaez_fast.study import measure as measuring
from vaez_fast.study import rules, study
from vaez_fast.study.arrays import LAW, RECONSTRUCTIONS, TEST_IMAGES
from vaez_fast.study.measure import Measure
from vaez_fast.study.study import StudyConfig, run_study
from vaez_fast.system.files import OutputError, read_json
from vaez_fast.training.loop import TrainingError

CONFIG = fake_study.CONFIG


class FakeMeasure:
    """A stand-in for `Measure`: lists the runs, and interrupts the study after `stop_after`."""

    steps = 200
    ran: list[str]
    observed: frozenset[int]
    broken: bool
    stop_after: int | None
    networks = None

    def __init__(self, *_: Any) -> None:
        pass

    def run(self, config: TrainConfig, observe_at: frozenset[int]) -> tuple[Any, Any]:
        FakeMeasure.observed = observe_at
        if self.stop_after is not None and len(self.ran) >= self.stop_after:
            raise KeyboardInterrupt
        self.ran.append(f"{config.arm}-{config.seed}")
        record = fake_study.record(config)
        if self.broken:
            record["latents"]["surgery"]["marginal_kl"]["value"] = math.nan
        return record, fake_study.images()

    def beside(self) -> dict[str, Any]:
        return fake_study.beside()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeMeasure]:
    FakeMeasure.ran, FakeMeasure.stop_after, FakeMeasure.broken = [], None, False
    monkeypatch.setattr(study, "Measure", FakeMeasure)
    return FakeMeasure


def test_the_articles_frameworks_are_all_there() -> None:
    arms = [run.arm for run in StudyConfig(TrainConfig(), 2).arms()]
    kls = ("total-derivative", "analytic", "sticking-the-landing")
    wanted = {f"elbo/{kl}/joint" for kl in kls} | {"randn", "kl/as-published/separate"}
    wanted |= {f"kl/{kl}/{decoder}" for kl in kls for decoder in ("separate", "simultaneous")}
    assert wanted <= set(arms)
    assert len(set(arms)) == len(arms)
    assert {arm for arm in arms if "beta" in arm} == {
        f"elbo/analytic/joint/beta={beta}" for beta in (0.1, 4, 16, 64)
    }


@pytest.mark.usefixtures("fake")
def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path, fake: type[FakeMeasure]) -> None:
    run_study(CONFIG, tmp_path / "whole")
    fake.ran, fake.stop_after = [], 5
    with pytest.raises(KeyboardInterrupt):
        run_study(CONFIG, tmp_path / "parts")
    assert not (tmp_path / "parts" / "results.json").exists()
    first, fake.ran, fake.stop_after = fake.ran, [], None
    run_study(CONFIG, tmp_path / "parts")
    assert len(first) == 5
    assert set(first).isdisjoint(fake.ran)
    whole, parts = (read_json(tmp_path / name / "results.json") for name in ("whole", "parts"))
    assert parts["runs"] == whole["runs"]
    fake.ran = []
    run_study(CONFIG, tmp_path / "parts")
    assert fake.ran == []


@pytest.mark.usefixtures("fake")
def test_more_seeds_continue_a_study_and_other_settings_are_refused(
    tmp_path: Path, fake: type[FakeMeasure]
) -> None:
    run_study(dataclasses.replace(CONFIG, seeds=2), tmp_path)
    fake.ran = []
    run_study(CONFIG, tmp_path)
    assert {name.rsplit("-", 1)[1] for name in fake.ran} == {"2"}
    other = dataclasses.replace(CONFIG, base=dataclasses.replace(CONFIG.base, lr=1e-3))
    with pytest.raises(OutputError, match=r"holds a study of other settings \(lr 0\.002\)"):
        run_study(other, tmp_path)


@pytest.mark.usefixtures("fake")
def test_a_study_that_began_under_other_rules_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(CONFIG, tmp_path)
    assert read_json(tmp_path / "results.json")["rules_sha256"] == rules.sha256()
    monkeypatch.setattr(rules, "sha256", lambda: "another")
    with pytest.raises(OutputError, match="a study that began under other rules"):
        run_study(CONFIG, tmp_path)


@pytest.mark.usefixtures("fake")
def test_a_run_says_in_which_environment_it_was_made(tmp_path: Path) -> None:
    run_study(CONFIG, tmp_path)
    for run in read_json(tmp_path / "results.json")["runs"]:
        assert run["environment"]["torch"] == torch.__version__
        assert "revision" in run["environment"]


@pytest.mark.usefixtures("fake")
def test_every_arm_of_a_seed_comes_before_the_next_seed_and_is_read_back_so(tmp_path: Path) -> None:
    run_study(CONFIG, tmp_path)
    arms = [run.arm for run in CONFIG.arms()]
    wanted = [(arm, seed) for seed in range(3) for arm in arms]
    assert FakeMeasure.ran == [f"{arm}-{seed}" for arm, seed in wanted]
    runs = read_json(tmp_path / "results.json")["runs"]
    assert [(run["arm"], run["seed"]) for run in runs] == wanted


@pytest.mark.usefixtures("fake")
def test_the_decay_is_observed_before_the_first_step_and_evenly_in_its_logarithm(
    tmp_path: Path,
) -> None:
    run_study(dataclasses.replace(CONFIG, seeds=2), tmp_path)
    # 24 steps from 1 to 200 in equal ratios; some of the first round to the same step.
    spaced = {round(200 ** (i / 23)) for i in range(24)}
    assert FakeMeasure.observed == {0, *spaced}
    assert {1, 200} <= spaced


@pytest.mark.usefixtures("fake")
def test_a_run_without_its_images_is_run_again(tmp_path: Path, fake: type[FakeMeasure]) -> None:
    run_study(dataclasses.replace(CONFIG, seeds=2), tmp_path)
    fake.ran = []
    (tmp_path / "runs" / "randn-seed1.npz").unlink()
    run_study(dataclasses.replace(CONFIG, seeds=2), tmp_path)
    assert fake.ran == ["randn-1"]


@pytest.mark.usefixtures("fake")
def test_a_number_that_is_not_finite_ends_the_study_and_is_not_kept(
    tmp_path: Path, fake: type[FakeMeasure]
) -> None:
    fake.broken = True
    with pytest.raises(TrainingError, match="a measured number is not finite"):
        run_study(CONFIG, tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("fake")
def test_where_the_data_lay_is_not_part_of_a_study(tmp_path: Path) -> None:
    base = dataclasses.replace(CONFIG.base, data_root="/somewhere/private")
    run_study(dataclasses.replace(CONFIG, base=base), tmp_path)
    assert "private" not in (tmp_path / "results.json").read_text()


def test_settings_without_intervals_or_twice_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="seeds must be at least 2"):
        StudyConfig(TrainConfig(), 1)
    for betas in ((4.0, 4.0), (1.0,)):
        with pytest.raises(ConfigError, match="betas must differ"):
            StudyConfig(TrainConfig(), 2, betas)


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_an_unreadable_file_is_one_clear_error(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OutputError, match=r"cannot read .*results\.json"):
        read_json(file)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measure, Any, Any]:
    """A `Measure` of few images, and the record and images of one arm."""
    full = load("mnist-5k")

    def first(split: Split, count: int) -> Split:
        order = torch.randperm(len(split.images), generator=torch.Generator().manual_seed(0))
        return Split(split.images[order[:count]], split.labels[order[:count]])

    dataset = Dataset(
        "mnist-1k", first(full.train, 1000), first(full.validation, 200), first(full.test, 200)
    )
    base = TrainConfig(model="burda", epochs=None, steps=40, batch_size=50, precision="float32")
    file = tmp_path_factory.mktemp("measure") / "features.pt"
    measure = Measure(base, dataset, torch.device("cpu"), file)
    config = dataclasses.replace(base, objective="kl", decoder="separate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "GENERATED", 100)
        patch.setattr(measuring, "AGGREGATE_DRAWS", 50)
        patch.setattr(features, "IMAGES_SEEN", 10_000)
        with uncompiled():
            record, images = measure.run(config, frozenset({0, 7, 40}))
    return measure, record, images


def test_a_record_holds_what_the_report_reads_and_is_json(small: tuple[Measure, Any, Any]) -> None:
    _, record, images = small
    json.dumps(record, allow_nan=False)
    fake = fake_study.record(TrainConfig(objective="kl", decoder="separate"))
    for name in fake:
        if name not in ("k_curve", "both_sides"):
            assert name in record
    assert set(fake["latents"]) <= set(record["latents"])
    assert set(fake["latents"]["surgery"]) <= set(record["latents"]["surgery"])
    shown = {name: grid for name, grid in images.items() if not name.startswith(LAW)}
    assert set(record["images"]) == set(SAMPLERS) - {"flow"}
    assert set(shown) == {*record["images"], TEST_IMAGES, RECONSTRUCTIONS}
    assert all(grid.shape == (12, 784) and grid.dtype == np.uint8 for grid in shown.values())


def test_the_decay_is_of_the_encoder_and_begins_before_the_first_step(
    small: tuple[Measure, Any, Any],
) -> None:
    _, record, _ = small
    assert [point["step"] for point in record["decay"]] == [0, 7, 40]
    rates = [point["rate"] for point in record["decay"]]
    assert rates[0] > rates[1] > rates[2]
    # At (0, I) the fit of 200 draws in 50 dimensions gives D/n, here within five of its standard
    # deviations.
    null = null_sample_kl(200, 50)
    assert abs(record["decay"][-1]["sample_kl"] - null) < 5 * null / 50**0.5 + rates[2]


def test_beside_holds_the_marginals_score_and_real_images(small: tuple[Measure, Any, Any]) -> None:
    measure, _, _ = small
    beside = measure.beside()
    json.dumps(beside, allow_nan=False)
    train, test = (binarized(measure.dataset, s, "static").double() for s in ("train", "test"))
    frequency = ((train.sum(0) + 0.5) / (len(train) + 1)).expand_as(test)
    score = torch.distributions.Bernoulli(frequency).log_prob(test).sum(1).mean()
    assert beside["marginal_log_prob"] == pytest.approx(float(score))
    assert beside["images"]["floor"]["frechet"] < beside["images"]["ceiling"]["frechet"]
    assert beside["null_sample_kl"] == null_sample_kl(200, 50)
