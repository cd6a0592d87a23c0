"""The likelihood report: of real runs, with what it says computed anew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import likelihood
from bench.likelihood import main
from tests.digits import first
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.evaluate import Evaluator, Metrics
from vaez_fast.files import OutputError
from vaez_fast.model import VAE
from vaez_fast.results import load_run, save
from vaez_fast.run import EVALUATION_STEP
from vaez_fast.train import Result
from vaez_kernels import noise_key, reference

CONFIG = TrainConfig(data="mnist-5k", model="lyeoni", epochs=None, steps=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, of a model that was not trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = Metrics(-560.0, 10.0, 550.0, -555.0, 0.5, 128)
    save(folder, CONFIG, Result(VAE("lyeoni", 3), 1, metrics, 1, 50, "float32", "cpu", 1, 1, 1))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """60 real digits of each split, and few samples of them."""
    full = load("mnist-5k")
    splits = (full.train, full.validation, full.test)
    digits = Dataset("mnist-5k", *(first(split, 60) for split in splits))
    monkeypatch.setattr(likelihood, "load", lambda *_: digits)
    monkeypatch.setattr(likelihood, "SAMPLES", (1, 4, 100))
    monkeypatch.setattr(likelihood, "BIAS_IMAGES", 20)
    monkeypatch.setattr(likelihood, "BIAS_SAMPLES", 10)
    monkeypatch.setattr(likelihood, "TEXTBOOK_DRAWS", 4)
    return digits


def test_the_report_holds_what_the_evaluator_finds(
    run: Path, small: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main([str(run), "--device", "cpu", "--out", str(out)]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    (model,) = results["models"]
    vae, _ = load_run(run)
    pixels = binarized(small, "test", "static")
    noise = noise_key(0, "evaluate", EVALUATION_STEP["test"])
    for point in model["k_curve"]:
        metrics = Evaluator(pixels, 1.0, noise)(vae, point["k"])
        assert point["mean"] == pytest.approx(metrics.log_px, abs=1e-3)
        assert point["standard_error"] == pytest.approx(metrics.log_px_standard_error, rel=1e-3)
    for moved in model["bias"].values():
        assert 0 < abs(moved["mean"]) < 0.1
    mixture = results["mixture"]
    assert (mixture["M"], mixture["N"], mixture["D"]) == (60, 60, 2)
    assert mixture["error_over_bound"] <= 1
    with torch.no_grad():
        mu, logvar = vae.encode(binarized(small, "train", "static").float())
        z_mu, z_logvar = vae.encode(binarized(small, "test", "static").float())
    eps = reference.normal(noise_key(0, "evaluate", likelihood.DRAW), 1, 60, 2)
    z = reference.rsample(z_mu, z_logvar, eps)[0]
    log_q = reference.mixture_log_prob(z, mu, logvar).mean()
    assert math.isclose(mixture["log_q"]["mean"], float(log_q), abs_tol=1e-4)
    text = (out / "README.md").read_text()
    assert f"{model['k_curve'][-1]['mean']:.2f}" in text
    assert (out / "k-curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_whole_run_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutputError, match=r"holds no metrics\.json; `vaez-fast train` writes one"):
        load_run(tmp_path)
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"cannot read .*checkpoint\.pt: not a file of tensors"):
        load_run(run)
    (run / "checkpoint.pt").unlink()
    with pytest.raises(OutputError, match=r"holds no checkpoint\.pt"):
        load_run(run)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("bench.likelihood: error: ")
