"""`vaez-fast latents`: its files, its record, what it says. The measures have their own tests."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.system.fake_run import CONFIG, make_run
from vaez_fast.cli.main import main
from vaez_fast.data import binarized, load
from vaez_fast.drawing import images
from vaez_fast.measures.codes import Codes
from vaez_fast.measures.law_summary import summary_of
from vaez_fast.measures.normality import NormalityTest
from vaez_fast.model import Linear
from vaez_fast.runs import latents, trained
from vaez_fast.runs.trained import open_run
from vaez_kernels import noise_key, reference

# Parsed once for all tests.
loaded = functools.cache(load)

LOWER = {
    "diagonal": {"value": 0.0284, "standard_error": 0.0021, "how": "over 500 codes"},
    "mixture": {"value": 1.6483, "standard_error": 0.0171, "how": "over 500 codes"},
}
LAW: dict[str, Any] = {
    "informative": [0, 1],
    "lower": LOWER,
    "kl_lower": LOWER["mixture"] | {"how": "mixture, chosen on other codes"},
    "kl_upper": {"value": 2.313, "standard_error": 0.0996, "how": "plug-in, 100 draws"},
    "squared_norm": {"d": 2, "mean": 2.5, "variance": 8.06, "shell": 2.015},
}
TESTS = {
    "kolmogorov-smirnov/0": NormalityTest(0.1, 0.001, 0.5, 500, True, False),
    "energy-distance": NormalityTest(0.2, 0.25, 0.001, 400, False, True),
    "classifier": NormalityTest(0.7, 0.002, 0.75, 500, True, False),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Numbers in place of the fits and tests, which take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", loaded)
        patch.setattr(latents, "measure_law", lambda *_: law(LAW))
        patch.setattr(latents, "normality_tests", lambda *_: TESTS)
        yield


def law(content: dict[str, Any]) -> Any:
    return SimpleNamespace(as_dict=lambda: content)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of the run."""
    out = tmp_path_factory.mktemp("latents") / "out"
    assert main(["latents", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "latents.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "latents.json").read_text())
    return found


def test_it_writes_the_files_that_its_help_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == set(latents.FILES)
    assert main(["latents", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    pictures = [path for path in folder.iterdir() if path.suffix == ".png"]
    assert len(pictures) == 8
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures)


@pytest.mark.parametrize(("split", "step"), [("train", 13), ("test", 10)])
def test_the_arrays_are_the_encoders_in_float64_and_one_z_an_image(
    split: str, step: int, run: Path, arrays: dict[str, np.ndarray]
) -> None:
    vae = copy.deepcopy(open_run(run).vae).double()
    data = loaded("mnist-5k", "data")
    with torch.no_grad():
        mu, logvar = vae.encode(binarized(data, split, "static").double())
    # Sums of up to 784 float32 products through three layers, the last one enlarged 20 times.
    np.testing.assert_allclose(arrays[f"{split}_mu"], mu, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays[f"{split}_logvar"], logvar, rtol=1e-5, atol=1e-5)
    eps = reference.normal(noise_key(CONFIG.seed, "evaluate", step), 1, *mu.shape)[0]
    scale = float((0.5 * logvar).exp().max())
    z = mu + (0.5 * logvar).exp() * eps
    # eps of the stream is within 1e-6 of the real formula.
    np.testing.assert_allclose(arrays[f"{split}_z"], z, rtol=2e-5, atol=2e-5 * (1 + scale))
    assert arrays[f"{split}_labels"].tolist() == getattr(data, split).labels.tolist()
    kinds = {arrays[f"{split}_{part}"].dtype.name for part in ("mu", "logvar", "z")}
    assert kinds == {"float32"}
    assert arrays[f"{split}_labels"].dtype == np.int64
    assert len(arrays) == 8


def test_the_record_holds_the_law_the_tests_and_what_made_them(
    record: dict[str, Any], run: Path
) -> None:
    assert (record["kind"], record["schema"]) == ("vaez-fast latents", 1)
    assert record["config"] == {"data_root": None, "device": "auto"}
    assert (record["run"], record["arm"]) == (str(run), "elbo/analytic/joint")
    names = ("data", "binarize", "model", "seed")
    assert {name: record[name] for name in names} == {
        "data": "mnist-5k", "binarize": "static", "model": "lyeoni", "seed": CONFIG.seed
    }  # fmt: skip
    assert {"torch", "device", "revision"} <= set(record["environment"])
    assert {name: record[name] for name in LAW} == LAW
    assert list(record["tests"]) == list(TESTS)
    assert record["tests"]["classifier"] == {
        "statistic": 0.7, "p": 0.002, "p_of_exact_normals": 0.75, "draws": 500, "rejected": True,
        "false_alarm": False,
    }  # fmt: skip


def test_json_prints_the_record_and_is_a_file_of_its_settings(
    run: Path, record: dict[str, Any], folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = ["--config", str(folder / "latents.json"), "--json"]
    assert main(["latents", str(run), "--out", str(tmp_path / "again"), *settings]) == 0
    assert json.loads(capsys.readouterr().out) == record
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_pictures_are_those_of_the_codes(
    run: Path, folder: Path, arrays: dict[str, np.ndarray]
) -> None:
    found = latents.measure(open_run(run), loaded("mnist-5k", "data"))
    assert found.codes.test.z.tolist() == arrays["test_z"].tolist()
    labels = torch.from_numpy(arrays["test_labels"])
    summary = summary_of(found.codes, labels, CONFIG.seed)
    for name, draw in latents.DRAWINGS.items():
        wanted = draw(summary, "lyeoni, mnist-5k, elbo/analytic/joint")
        assert (folder / name).read_bytes() == wanted, name


def test_the_walks_are_between_images_of_all_classes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: dict[str, np.ndarray]
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def keep(*shown: Any) -> bytes:
        drawn.append(shown)
        return b"picture"

    monkeypatch.setattr(images, "rows", keep)
    assert main(["latents", str(run), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "traversals.png").read_bytes() == b"picture"
    (both, _, names), (between, _, ways, parts), (paths, _, of, values) = drawn

    vae, labels = open_run(run).vae, arrays["test_labels"]
    x = binarized(loaded("mnist-5k", "data"), "test", "static").float().numpy()
    of_class = [np.flatnonzero(labels == label)[:2] for label in range(10)]
    assert both.shape == (4, 10, 784)
    assert names == ["x", "p(x|mu)", "x", "p(x|mu)"]

    def at(code: np.ndarray) -> np.ndarray:
        mean: np.ndarray = torch.sigmoid(vae.decode(torch.from_numpy(code))).detach().numpy()
        return mean

    # Products of other shapes sum in another order.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for label, (first, second) in enumerate(of_class):
        for row, index in ((0, first), (2, second)):
            assert (both[row, label] == x[index]).all()
            wanted = at(arrays["test_mu"][index])
            close(both[row + 1, label], wanted)

    assert between.shape == (5, 11, 784)
    assert ways == ["0 → 1", "2 → 3", "4 → 5", "6 → 7", "8 → 9"]
    assert (parts[0], parts[5], parts[-1]) == ("0.0", "0.5", "1.0")
    for row in range(5):
        start, end = of_class[2 * row][0], of_class[2 * row + 1][1]
        for place, index in ((0, start), (-1, end)):
            wanted = at(arrays["test_mu"][index])
            close(between[row, place], wanted)

    kl = latents.measure(open_run(run), loaded("mnist-5k", "data")).codes.kl
    order = kl.argsort(descending=True).tolist()
    assert of == [f"z{latent}, {float(kl[latent]):.1f} nats" for latent in order]
    assert (values[0], values[5], values[-1]) == ("−3.0", "0.0", "3.0")
    changed = arrays["test_mu"][0].copy()
    changed[order[1]] = 3.0
    close(paths[1, -1], at(changed))


def test_the_answer_is_its_first_line_and_the_numbers_follow(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latents", str(run), "--out", str(tmp_path / "out")]) == 0
    title, _, answer, *rest = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{run}: lyeoni on mnist-5k (static), elbo/analytic/joint, seed 4")
    assert answer == "z is not N(0, I): 1.648 ± 0.017 ≤ KL(q(z) ‖ N(0, I)) ≤ 2.31 ± 0.10 nats"
    printed = "\n".join(rest)
    assert "2 of 2 latents: mean KL(q(z_j|x) ‖ N(0, 1)) > 0.1 nat" in printed
    assert "2 of 3 reject N(0, I) at 5 % after Holm's correction; of exact normals 1" in printed
    assert "mean 2.5, variance 8.1; N(0, I) has 2 and 4" in printed
    for name, value in (("diagonal", "0.0284 ± 0.0021"), ("mixture", "1.648 ± 0.017")):
        assert f"≥ {value:<19} {name}" in printed
    assert "≤ 2.31 ± 0.10" in printed
    assert f"wrote {tmp_path / 'out' / 'latents.json'}, latents.npz and 8 pictures" in printed
    assert all(len(line) <= 100 for line in rest[:-1])


@pytest.mark.parametrize(
    ("lower", "tests", "answer"),
    [
        (0.001, {}, "z cannot be told from N(0, I): 0.0010 ± 0.0010 ≤ KL"),
        (-0.02, {}, "z cannot be told from N(0, I): -0.0200 ± 0.0010 ≤ KL"),
        (0.003, {}, "z is not N(0, I): 0.0030 ± 0.0010 ≤ KL"),
        (0.001, TESTS, "z is not N(0, I): 0.0010 ± 0.0010 ≤ KL"),
    ],
)
def test_normal_z_are_not_said_to_differ(
    lower: float, tests: dict[str, NormalityTest], answer: str, run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bound = {"value": lower, "standard_error": 0.001, "how": "a bound"}
    monkeypatch.setattr(latents, "measure_law", lambda *_: law(LAW | {"kl_lower": bound}))
    monkeypatch.setattr(latents, "normality_tests", lambda *_: tests)
    monkeypatch.setattr(latents, "write", lambda *_: None)
    assert main(["latents", str(run), "--out", str(tmp_path)]) == 0
    assert f"\n{answer}" in capsys.readouterr().out


def test_all_measured_latents_are_tested_unless_images_are_too_few(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def test_them(z: Tensor, seed: int, dimensions: Sequence[int]) -> dict[str, NormalityTest]:
        assert (z.shape[0], seed) == (500, CONFIG.seed)
        asked.append(list(dimensions))
        return TESTS

    monkeypatch.setattr(latents, "normality_tests", test_them)
    data = loaded("mnist-5k", "data")
    latents.measure(open_run(run), data)
    wide = make_run(tmp_path / "wide", replace(CONFIG, model="altosaar"))
    found = latents.measure(open_run(wide), data)
    assert len(found.codes.informative()) > 50
    largest = found.codes.kl.topk(50).indices.tolist()
    assert asked == [[0, 1], sorted(largest)]


def test_the_law_is_of_the_runs_codes_and_seed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Codes, int]] = []

    def keep(codes: Codes, seed: int) -> Any:
        asked.append((codes, seed))
        return law(LAW)

    monkeypatch.setattr(latents, "measure_law", keep)
    found = latents.measure(open_run(run), loaded("mnist-5k", "data"))
    ((codes, seed),) = asked
    assert codes is found.codes
    assert seed == CONFIG.seed


class TestRefused:
    @pytest.mark.parametrize("name", latents.FILES)
    def test_a_file_that_is_there_is_not_overwritten(
        self, name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(trained, "load", lambda *_: pytest.fail("it began to work"))
        (tmp_path / name).write_text("mine")
        assert main(["latents", str(run), "--out", str(tmp_path)]) == 1
        said = f"vaez-fast latents: error: out: {tmp_path / name} exists already; name another"
        assert capsys.readouterr().err.startswith(said)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}

    def test_a_folder_that_holds_a_run(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(run.iterdir())
        assert main(["latents", str(run), "--out", str(run)]) == 1
        assert "holds a run; name another folder, it may lie in that one" in capsys.readouterr().err
        assert sorted(run.iterdir()) == before

    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (ImportError("no sklearn"), 2, "latents needs scipy and scikit-learn (no sklearn)"),
            (ValueError("z\nare so"), 1, "one: the law of its z cannot be measured (z)"),
            (torch.linalg.LinAlgError("singular"), 1, "cannot be measured (singular)"),  # type: ignore[attr-defined]
        ],
    )
    def test_z_that_cannot_be_measured_are_one_line(
        self, error: Exception, status: int, message: str, run: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(latents, "measure_law", fail)
        assert main(["latents", str(run), "--out", str(tmp_path)]) == status
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not [*tmp_path.iterdir()]

    def test_weights_that_overflow(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        opened = open_run(run)
        with torch.no_grad():
            last = opened.vae.encoder[-1]
            assert isinstance(last, Linear)
            last.bias.fill_(3e38)
        monkeypatch.setattr(trained, "open_run", lambda *_, **__: opened)
        assert main(["latents", str(run), "--out", str(tmp_path)]) == 1
        assert "one: some z are not finite: its weights are damaged" in capsys.readouterr().err

    def test_a_disk_that_is_full_leaves_no_record(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        real = os.fsync
        left = iter(range(4))

        def full(handle: int) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        assert main(["latents", str(run), "--out", str(tmp_path)]) == 1
        assert "No space left on device" in capsys.readouterr().err
        assert not (tmp_path / "latents.json").exists()
        assert not [path for path in tmp_path.iterdir() if path.suffix == ".unfinished"]


def test_what_is_written_of_a_summary_can_be_read_again(run: Path) -> None:
    found = latents.measure(open_run(run), loaded("mnist-5k", "data"))
    buffer = io.BytesIO()
    contents: dict[str, Any] = {**found.summary}
    np.savez(buffer, **contents)
    buffer.seek(0)
    with np.load(buffer) as file:
        assert set(file) == set(found.summary)
