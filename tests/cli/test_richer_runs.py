"""The commands on runs with a richer posterior or prior, and on runs older than both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.system.fake_run import make_run
from vaez_fast.cli.main import main
from vaez_fast.richer.vae import RicherVAE
from vaez_fast.runs.folder import unfinished
from vaez_fast.runs.trained import open_run
from vaez_kernels import noise_key

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

NEW = ("posterior", "prior", "free_bits", "kl_warmup", "optimizer")


def trained(folder: Path, *flags: str) -> Path:
    words = ["--model", "lyeoni", "--steps", "3", "--batch-size", "50", "--test-samples", "3"]
    assert main(["train", *words, *flags, "--precision", "float32", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def vamp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "vamp", "--prior", "vamp")


@pytest.fixture(scope="module")
def iaf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "iaf"
    return trained(folder, "--posterior", "iaf", "--kl-warmup", "0.5")


def evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["runs"][0]
    return found


@pytest.mark.parametrize("name", ["vamp", "iaf"])
def test_evaluate_gives_the_runs_own_numbers_again(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(name)
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["config"]["prior"] == "vamp") == (name == "vamp")
    assert (
        record["arm"]
        == {
            "vamp": "elbo/total-derivative/joint/prior=vamp",
            "iaf": "elbo/total-derivative/joint/posterior=iaf/kl-warmup=0.5",
        }[name]
    )
    found = evaluated(folder, capsys)
    assert found["metrics"] == record["test"]
    assert found["arm"] == record["arm"]
    latents = found["latents"]
    assert latents["sample_kl"] > 0
    # The mean of an inverse autoregressive flow is not known.
    assert (latents["active_units"] is None) == (name == "iaf")
    assert main(["evaluate", str(folder)]) == 0
    table = capsys.readouterr().out
    prior = "p(z)" if name == "vamp" else "N(0, I)"
    assert f"Monte Carlo KL(q(z|x) ‖ {prior}), 3 samples" in table
    assert ("active" in table) == (name == "vamp")


def test_samples_are_of_the_learned_prior_or_refused(
    vamp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(vamp), "--count", "40", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "sampler must be prior or one fitted to z: this run's prior is vamp" in error
    assert error.count("\n") == 1
    assert main([*words, str(tmp_path / "b"), "--sampler", "prior"]) == 0
    with np.load(tmp_path / "b" / "samples.npz") as file:
        z = torch.from_numpy(file["z"])
    vae = open_run(vamp).vae
    assert isinstance(vae, RicherVAE)
    with torch.no_grad():
        law = vae.law()
        assert torch.equal(z, law.draw(noise_key(0, "generate"), 40))
        assert float(law.log_prob(z).mean()) > float(law.log_prob(torch.randn(40, 2)).mean())


def test_fitted_samplers_need_a_diagonal_posterior(
    iaf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(iaf), "--count", "3", "--out", str(tmp_path / "out")]
    assert main([*words, "--sampler", "mixture"]) == 2
    said = capsys.readouterr().err
    assert "only a diagonal Gaussian q(z|x) has a mu and logvar to measure" in said
    assert said.count("\n") == 1


def test_the_prior_of_an_ordinary_run_is_n_0_i(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for sampler in ("prior", "standard-normal"):
        words = ["sample", str(run), "--count", "5", "--sampler", sampler]
        assert main([*words, "--out", str(tmp_path / sampler)]) == 0
    a, b = ((tmp_path / s / "samples.npz").read_bytes() for s in ("prior", "standard-normal"))
    assert a == b


def test_a_report_says_which_prior_its_images_are_of(vamp: Path, tmp_path: Path) -> None:
    shutil.copytree(vamp, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Means of p(x|z), z drawn from the learned prior (vamp)." in text
    assert "Monte Carlo KL(q(z\\|x) ‖ p(z)), 3 samples" in text


def test_a_run_older_than_these_settings_is_the_usual_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    before = evaluated(run, capsys)
    record = json.loads((run / "metrics.json").read_text())
    for name in NEW:
        del record["config"][name]
    (run / "metrics.json").write_text(json.dumps(record))
    assert evaluated(run, capsys) == before
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text(json.dumps({"config": record["config"]}))
    config, checkpoint = unfinished(begun)
    assert checkpoint is None
    assert config.arm == "elbo/analytic/joint"
