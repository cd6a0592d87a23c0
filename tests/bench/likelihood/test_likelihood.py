"""The likelihood report of real runs, against its numbers computed again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bench.likelihood import run as likelihood
from bench.likelihood.run import main
from bench.timing.clock import Times
from tests.training.digits import first
from vaez_fast.config import TrainConfig
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.drawing.page import markdown
from vaez_fast.measures.evaluate import Evaluator, Metrics
from vaez_fast.model import VAE
from vaez_fast.runs.folder import load_run, save
from vaez_fast.streams import AGGREGATE_DENSITY, EVALUATION
from vaez_fast.system.files import OutputError
from vaez_fast.training.train import Result
from vaez_kernels import noise_key, reference

CONFIG = TrainConfig(data="mnist-5k", model="lyeoni", epochs=None, steps=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run whose model was not trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = Metrics(-560.0, 10.0, 550.0, -555.0, 0.5, 128)
    save(folder, CONFIG, Result(VAE("lyeoni", 3), 1, metrics, 1, 50, "float32", "cpu", 1, 1, 1))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """60 real digits of each split; few samples are taken."""
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
    noise = EVALUATION["test"].key(0)
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
    eps = reference.normal(AGGREGATE_DENSITY.key(0), 1, 60, 2)
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


class FakeEvaluator:
    """A clock, and log p(x) = −k − i of image i from k samples, off by 0.01·i in bfloat16."""

    now = 0.0
    asked: ClassVar[list[tuple[int, tuple[int, ...], str]]] = []

    def __init__(self, pixels: Tensor, scale: float, noise: Tensor, precision: str) -> None:
        assert scale == 1.0
        assert torch.equal(noise, noise_key(0, "evaluate", 1))  # the test split's
        self.count, self.precision = len(pixels), precision

    def log_px_curve(self, _: VAE, counts: tuple[int, ...]) -> Tensor:
        FakeEvaluator.asked.append((self.count, tuple(counts), self.precision))
        FakeEvaluator.now += float(self.count)
        image = torch.arange(self.count, dtype=torch.float64)
        exact = torch.stack([-float(k) - image for k in counts])
        # An error of 0.0 for the first image, and of 0.01 more for each further one.
        return exact - 0.01 * image if self.precision == "bfloat16" else exact


def test_bias_is_what_low_precision_adds_to_float32_on_the_same_samples(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeEvaluator.asked.clear()
    monkeypatch.setattr(likelihood, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(likelihood, "has_fast_bfloat16", lambda _: True)
    clock = SimpleNamespace(perf_counter=lambda: FakeEvaluator.now)
    monkeypatch.setattr(likelihood, "time", clock)
    run = {"config": {"binarize": "static", "seed": 0, "model": "m", "data": "d"}, "arm": "an arm"}
    found = likelihood.measure(VAE("lyeoni"), run, small)
    # The errors of 20 images go from 0 to −0.19; their standard deviation is 0.01·√35.
    assert found["bias"]["bfloat16"] == {
        "mean": pytest.approx(-0.095),
        "standard_error": pytest.approx(0.01 * math.sqrt(35) / math.sqrt(20)),
        "largest": pytest.approx(0.19),
    }
    assert FakeEvaluator.asked[:2] == [(20, (10,), "float32"), (20, (10,), "bfloat16")]
    assert FakeEvaluator.asked[-1] == (60, (1, 4, 100), "auto")
    assert found["seconds"] == 60.0  # all images; the call that compiles is not counted
    curve = found["k_curve"]
    assert [point["k"] for point in curve] == [1, 4, 100]
    # Images 0 to 59: a mean of 29.5 and a variance of 60·61/12.
    assert [point["mean"] for point in curve] == pytest.approx([-30.5, -33.5, -129.5])
    assert curve[0]["standard_error"] == pytest.approx(math.sqrt(60 * 61 / 12) / math.sqrt(60))


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_the_mixtures_times_are_of_a_draw_and_its_error_in_units_of_the_bound(
    share: float, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, int] = {}

    def timed(works: dict[str, Any], *_: Any, **__: Any) -> dict[str, Times]:
        sizes.update({name: len(work()) for name, work in works.items()})
        return {"textbook": Times([1.0, 8.0, 90.0]), "ours": Times([1.0, 4.0, 90.0])}

    def off(z: Tensor, *posteriors: Tensor) -> Tensor:
        truth = reference.mixture_log_prob(z, *posteriors)
        truth[1] -= share * (1e-4 + 3e-7 * truth[1].abs())
        return truth

    monkeypatch.setattr(likelihood, "interleave", timed)
    monkeypatch.setattr(likelihood, "mixture_log_prob", off)
    monkeypatch.setattr(likelihood, "peak_memory", lambda *_: 3 << 20)
    config = {"binarize": "static", "seed": 0}
    found = likelihood.measure_mixture(VAE("lyeoni", 3), config, small)
    assert sizes == {"textbook": 4, "ours": 40}
    assert found["seconds_a_draw"] == {"textbook": 2.0, "ours": pytest.approx(0.1)}
    assert found["error_over_bound"] == pytest.approx(share, rel=1e-6)
    assert found["largest_error"] == pytest.approx(share * 1e-4, rel=0.1)
    model = {
        "model": "lyeoni", "arm": "an arm", "data": "mnist-5k (static)", "images": 60,
        "seconds": 7.0, "precision": "float32",
        "bias": {"bfloat16": {"mean": -0.002, "standard_error": 0.001, "largest": 0.25}},
        "k_curve": [
            {"k": k, "mean": mean, "standard_error": 0.75}
            for k, mean in ((1, -120.0), (100, -100.5), (5000, -99.25))
        ],
    }  # fmt: skip
    machine = {"device": "a CPU", "threads": 1, "torch": "2"}
    results = {"environment": machine, "date": "today", "models": [model], "mixture": found}
    text = markdown(likelihood.page(results))
    assert "one thread of a CPU" in text
    assert "| -99.25 ± 0.75 | +1.25 | 60 | 7 s in float32 |" in text
    assert "| lyeoni | bfloat16 | -0.0020 ± 0.0010 | 0.250 |" in text
    assert "3 MiB, 20.0 times as fast as the chunked textbook (a draw in 100.00 ms" in text
