"""The reproduction of Burda et al.: its cells, its curve, and what is left if it is interrupted."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.likelihood import reproduction
from bench.likelihood.reproduction import config_of, k_curve, main, page, reproduce
from bench.likelihood.run import SAMPLES
from tests.training.digits import first
from vaez_fast.config import ConfigError, TrainConfig, choose_device, choose_precision
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.drawing.page import markdown
from vaez_fast.measures.evaluate import Evaluator, Metrics
from vaez_fast.model import VAE
from vaez_fast.streams import EVALUATION
from vaez_fast.system.files import OutputError
from vaez_fast.training.train import Result


class FakeTraining:
    """A stand-in for `train`: records the arms, trains nothing, is interrupted at `stop_at`."""

    def __init__(self) -> None:
        self.arms: list[str] = []
        self.stop_at: str | None = None

    def __call__(self, config: TrainConfig, _: Dataset, **__: object) -> Result:
        if config.arm == self.stop_at:
            raise KeyboardInterrupt
        self.arms.append(config.arm)
        vae = VAE(config.model, config.num_samples)
        metrics = Metrics(-560.0, 10.0, 550.0, -555.0, 0.5, 128)
        return Result(vae, 3, metrics, 4, config.batch_size, PRECISION, "cpu", 2.0, 1.0, 1.0)


PRECISION = str(choose_precision("auto", choose_device("auto"))).removeprefix("torch.")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr(reproduction, "train", fake)
    monkeypatch.setattr(reproduction, "SAMPLES", (1, 3, 20))
    return fake


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """50 real digits to test on, under the data set's name in the cells."""
    full = load("mnist-5k")
    return Dataset(
        "mnist", *(first(split, 50) for split in (full.train, full.validation, full.test))
    )


def test_every_cell_is_an_arm_of_its_own() -> None:
    arms = [(config_of(cell).binarize, config_of(cell).arm) for cell in reproduction.PUBLISHED]
    assert arms[:3] == [
        ("static", "elbo/analytic/joint"),
        ("static", "iwae/total-derivative/joint/k=5"),
        ("static", "iwae/total-derivative/joint/k=50"),
    ]
    assert len(set(arms)) == 6
    with pytest.raises(ConfigError, match="cells must be among static/1"):
        config_of("static/2")


def test_a_curve_has_the_mean_over_images_and_its_standard_error() -> None:
    log_px = torch.randn(len(SAMPLES), 7, generator=torch.Generator().manual_seed(0))
    curve = k_curve(log_px.double())
    assert [point["k"] for point in curve] == list(SAMPLES)
    for point, values in zip(curve, log_px.tolist(), strict=True):
        assert point["log_px"] == pytest.approx(statistics.mean(values))
        error = statistics.stdev(values) / math.sqrt(7)
        assert point["standard_error"] == pytest.approx(error)


def test_what_is_finished_is_kept(training: FakeTraining, dataset: Dataset, tmp_path: Path) -> None:
    training.stop_at = "iwae/total-derivative/joint/k=5"
    with pytest.raises(KeyboardInterrupt):
        reproduce(["static/1", "static/5"], dataset, tmp_path)
    held = json.loads((tmp_path / "results.json").read_text())
    assert list(held["cells"]) == ["static/1"]

    training.arms, training.stop_at = [], None
    results = reproduce(["static/1", "static/5"], dataset, tmp_path)
    assert training.arms == ["iwae/total-derivative/joint/k=5"]
    assert results["cells"]["static/1"] == held["cells"]["static/1"]
    assert results == json.loads((tmp_path / "results.json").read_text())


def test_what_was_trained_and_not_judged_is_not_trained_again(
    training: FakeTraining, dataset: Dataset, tmp_path: Path
) -> None:
    results = reproduce(["static/5"], dataset, tmp_path)
    (tmp_path / "results.json").unlink()
    again = reproduce(["static/5"], dataset, tmp_path)
    assert len(training.arms) == 1
    assert again["cells"]["static/5"]["k_curve"] == results["cells"]["static/5"]["k_curve"]


def test_a_run_of_other_settings_is_refused(
    training: FakeTraining, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce(["static/1"], dataset, tmp_path)
    monkeypatch.setattr(reproduction, "LR", 7.0)
    with pytest.raises(OutputError, match=r"holds a run with lr 0.\d+, 7.0 is wanted"):
        reproduce(["static/1"], dataset, tmp_path)


@pytest.mark.usefixtures("training")
def test_the_page_and_the_figure_show_the_model_that_was_kept(
    dataset: Dataset, tmp_path: Path
) -> None:
    results = reproduce(["static/1", "static/5"], dataset, tmp_path)
    noise = EVALUATION["test"].key(0)
    held_out = Evaluator(binarized(dataset, "test", "static"), 1.0, noise)(VAE("burda", 5), 20)
    curve = results["cells"]["static/5"]["k_curve"]
    assert [point["k"] for point in curve] == [1, 3, 20]
    assert curve[0]["log_px"] < curve[-1]["log_px"]
    # bfloat16 products of other shapes may sum in another order: an error of 2⁻⁸ of a logit's
    # terms.
    assert curve[-1]["log_px"] == pytest.approx(held_out.log_px, abs=0.05)
    text = markdown(page(results))
    value = f"{curve[-1]['log_px']:.2f} ± {curve[-1]['standard_error']:.2f}"
    assert f"| static | IWAE-5 | -87.63 | {value} |" in text
    assert "| static | VAE | -88.71 |" in text
    assert "| dynamic |" not in text  # none of its cells is done
    assert reproduction.k_curves(results).startswith(b"\x89PNG")


def test_bad_settings_and_missing_data_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--cells", "static/1,static/3", "--out", str(tmp_path)])
    assert error.value.code == 2
    assert "cells must be among" in capsys.readouterr().err

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", no_network)
    assert main(["--data-root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "not found" in capsys.readouterr().err


def test_a_cells_row_has_its_difference_from_the_paper_and_its_steps() -> None:
    """The difference is ours minus the paper's: negative where ours is lower."""
    cell = {
        "config": {
            "binarize": "dynamic", "num_samples": 50, "epochs": 25, "batch_size": 50, "lr": 3e-3,
            "precision": "bfloat16",
        },
        "arm": "iwae/total-derivative/joint/k=50",
        "environment": {"device": "a CPU", "threads": 2, "torch": "2"},
        "best_step": 24_000,
        "speed": {"steps": 25_000, "train_seconds": 700.4},
        "images": 10_000,
        "k_curve": [
            {"k": 1, "log_px": -95.0, "standard_error": 0.25},
            {"k": 5000, "log_px": -86.03, "standard_error": 0.5},
        ],
    }  # fmt: skip
    text = markdown(page({"cells": {"dynamic/50": cell}}))
    row = "| dynamic | IWAE-50 | -84.78 | -86.03 ± 0.50 | -1.25 | 25 | 24,000 of 25,000 | 700 s |"
    assert row in text
    assert "from 5,000 importance samples on 10,000 images" in text


def test_models_differ_in_k_alone() -> None:
    configs = [vars(config_of(f"static/{k}")) for k in (5, 50)]
    differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert differing == {"num_samples"}
    assert [config["num_samples"] for config in configs] == [5, 50]
