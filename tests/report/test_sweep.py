"""A sweep's page, table and figure show the means of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from tests.study.test_sweep import CONFIG, record_of
from vaez_fast.cli.main import main
from vaez_fast.drawing import style
from vaez_fast.report import sweep as report
from vaez_fast.study.sweep import KIND, SCHEMA
from vaez_fast.system.files import OutputError

Results = dict[str, Any]
SETTINGS = [(2, 0.5), (2, 1.0), (3, 0.5), (3, 1.0)]


@pytest.fixture
def results() -> Results:
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "config": CONFIG.as_dict(),
        "environment": {"device": "a processor", "torch": "2"},
        "runs": [record_of(run) for run in CONFIG.runs()],
    }


def test_a_row_holds_the_means_and_intervals_of_its_setting(results: Results) -> None:
    rows = report.table(results).rows
    assert [(row[0], row[1]) for row in rows] == [(str(d), f"{b:g}") for d, b in SETTINGS]
    for row, (latent, beta) in zip(rows, SETTINGS, strict=True):
        # Two seeds 0.1 apart: a half width of 12.706 · 0.1 / 2 (Student's table, one degree).
        assert row[2] == f"{latent / beta + 0.05:.2f} ± 0.64"
        assert row[3] == f"{100 - latent:.1f} ± 0"
        assert row[4] == f"{0.1 * latent / beta + 0.005:.3f} ± 0.064"
        assert row[5] == f"{2.0 * latent / beta + 0.005:.3f} ± 0.064"
        assert row[6] == ("1.50 ± 0" if latent == 2 else "0.500 ± 0")
        assert row[7:] == (f"{latent}.0", f"{latent}.0")


def test_the_sentences_name_the_ends_and_where_the_shells_are(results: Results) -> None:
    first, second = report.sentences(results)
    rates = [latent / beta for latent, beta in SETTINGS]
    bounds = [0.1 * rate for rate in rates]
    rank = np.corrcoef(rankdata(rates), rankdata(bounds))[0, 1]
    p = spearmanr(rates, bounds).pvalue
    assert "rises with the rate" in first
    assert f"(rank correlation {rank:.2f}, p = {p:.2g}, 4 settings)" in first
    assert "from 0.21 nats at a rate of 2.0 (2 latents, β = 1)" in first
    assert "to 0.61 nats at a rate of 6.0 (3 latents, β = 0.5)" in first
    assert second == (
        "Of 4 settings with informative latents, z lies on a shell (var |z|² below 2d) in 2 "
        "(3 latents: β 0.5, 1), and has heavier tails than N(0, I) in 2 (2 latents: β 0.5, 1)."
    )


def test_a_shape_that_seeds_do_not_tell_is_unclear(results: Results) -> None:
    # Two seeds: the half width is 12.706 times half their distance.
    for run in results["runs"]:
        if (run["latent"], run["beta"]) == (2, 0.5):
            run["squared_norm"]["shell"] = 1.5 if run["seed"] else 1.42
        if (run["latent"], run["beta"]) == (3, 1.0):
            run["squared_norm"]["shell"] = 0.5 if run["seed"] else 0.62
    assert report.sentences(results)[1] == (
        "Of 4 settings with informative latents, z lies on a shell (var |z|² below 2d) in 1 "
        "(3 latents: β 0.5), and has heavier tails than N(0, I) in 1 (2 latents: β 1). "
        "The interval over seeds holds 2d in 2 (2 latents: β 0.5; 3 latents: β 1)."
    )
    for run in results["runs"]:
        if (run["latent"], run["beta"]) == (2, 0.5):
            run["squared_norm"]["shell"] = 1.5 if run["seed"] else 1.44
    assert report.shape_of(results, 2, 0.5) == "tails"


@pytest.mark.parametrize(
    ("bounds", "verb"),
    [
        ((1, 2, 3, 4), "rises with"),
        ((4, 3, 2, 1), "falls with"),
        ((2, 4, 1, 3), "is not explained"),
    ],
)
def test_the_sentence_says_what_the_correlation_says(
    bounds: tuple[float, ...], verb: str, results: Results
) -> None:
    order = sorted(SETTINGS, key=lambda key: key[0] / key[1])
    for run in results["runs"]:
        run["kl_lower"]["value"] = bounds[order.index((run["latent"], run["beta"]))]
    assert verb in report.sentences(results)[0]


def test_settings_without_informative_latents_are_no_shells(results: Results) -> None:
    for run in results["runs"]:
        if run["latent"] == 3:
            run["informative"] = 0
    said = report.sentences(results)[1]
    assert said.startswith("Of 2 settings with informative latents, z lies on a shell")
    assert "in none, and has heavier tails than N(0, I) in 2 (2 latents: β 0.5, 1)." in said


def test_two_settings_have_no_correlation(results: Results) -> None:
    results["config"]["betas"] = [1.0]
    results["runs"] = [run for run in results["runs"] if run["beta"] == 1.0]
    assert report.sentences(results)[0] == (
        "The bound of KL(q(z) ‖ N(0, I)) goes from 0.21 nats at a rate of 2.0 (2 latents, β = 1) "
        "to 0.31 nats at a rate of 3.0 (3 latents, β = 1)."
    )


def test_a_line_is_a_latent_size(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []

    def png(figure: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(style, "png", png)
    report.figure(results)
    left, right = figures[0].axes
    for i, latent in enumerate((2, 3)):
        line = left.get_lines()[i]
        assert line.get_label() == str(latent)
        rates = [latent / beta + 0.05 for beta in (1.0, 0.5)]  # rising
        assert line.get_xdata().tolist() == pytest.approx(rates)
        bounds = [0.1 * latent / beta + 0.005 for beta in (1.0, 0.5)]
        assert line.get_ydata().tolist() == pytest.approx(bounds)
        shell = right.get_lines()[i]
        assert list(shell.get_xdata()) == [0.5, 1.0]
        assert list(shell.get_ydata()) == [1.5 if latent == 2 else 0.5] * 2


def test_report_draws_a_sweep_again(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert report.sentences(results)[0] in said
    assert "wrote" in said
    page = (tmp_path / "sweep.md").read_text()
    assert report.sentences(results)[1].replace("|", "|") in page
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (tmp_path / "sweep.html").read_text()
    before = (tmp_path / "sweep.html").read_bytes()
    assert main(["report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results
    assert (tmp_path / "sweep.html").read_bytes() == before


def test_another_record_is_refused(results: Results, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results | {"schema": 9}))
    with pytest.raises(OutputError, match="holds no sweep, schema 1"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results | {"runs": []}))
    with pytest.raises(OutputError, match="expected what `vaez-fast sweep` writes"):
        report.write(tmp_path)
