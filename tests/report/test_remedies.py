"""The page of remedies shows their means, and their differences paired by seed."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.study.test_remedies import BASE, record_of
from vaez_fast.cli.main import main
from vaez_fast.drawing import style
from vaez_fast.report import remedies as report
from vaez_fast.study.config import REMEDIES, RemedyConfig, ordinary_remedy
from vaez_fast.study.remedies import KIND, SCHEMA
from vaez_fast.system.files import OutputError

Results = dict[str, Any]
CONFIG = RemedyConfig(BASE, 3, ("analytic", "monte-carlo", "iaf", "flow", "kl-warmup"))


@pytest.fixture
def results() -> Results:
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "config": CONFIG.as_dict(),
        "environment": {"device": "a processor", "torch": "2"},
        "runs": [record_of(run) for run in CONFIG.runs()],
    }


def test_every_remedy_has_words() -> None:
    assert set(report.WHAT) == set(REMEDIES)


def test_a_row_holds_means_and_the_paired_difference(results: Results) -> None:
    rows = {row[0]: row[1:] for row in report.table(results).rows}
    assert list(rows) == [report.WHAT[name] for name in CONFIG.remedies]
    # Three seeds in equal steps: a half width of 4.303 / √3 steps (Student, two degrees).
    half = 4.302653 / math.sqrt(3)
    flow = rows[report.WHAT["flow"]]
    assert flow[0] == f"-99.0 ± {half:.1f}"
    assert flow[1] == f"20.10 ± {0.1 * half:.2f}"
    assert flow[2] == f"-92.5 ± {2.01 * half:.1f}"
    assert flow[3] == f"1.510 ± {0.01 * half:.3f}"  # paired: the seeds' own spread cancels
    assert flow[4] == f"1.40 ± {0.1 * half:.2f}"
    assert flow[5] == f"2.10 ± {0.1 * half:.2f}"
    assert rows[report.WHAT["analytic"]][3] == rows[report.WHAT["monte-carlo"]][3] == "–"
    assert rows[report.WHAT["iaf"]][4] == "–"


def test_a_remedy_is_compared_with_the_ordinary_vae_of_its_own_kl(results: Results) -> None:
    changed = copy.deepcopy(results)
    for run in changed["runs"]:
        if run["arm"] == "elbo/total-derivative/joint":
            run["test"]["log_px"] -= 5.0
    flow, warmup = (
        report.difference(changed, name, report.log_px) for name in ("flow", "kl-warmup")
    )
    assert flow is not None
    assert warmup is not None
    assert flow.mean == pytest.approx(6.51)
    assert warmup.mean == pytest.approx(0.0)
    changed["runs"] = [r for r in changed["runs"] if r["arm"] != "elbo/total-derivative/joint"]
    changed["config"]["remedies"].remove("monte-carlo")
    assert report.difference(changed, "flow", report.log_px) is None
    assert report.difference(changed, "analytic", report.log_px) is None


def test_a_remedy_with_warm_up_is_compared_with_the_ordinary_vae_with_warm_up() -> None:
    assert {name: ordinary_remedy(name) for name in REMEDIES if "kl_warmup" in REMEDIES[name]} == {
        "kl-warmup": "analytic",
        "monte-carlo-warmup": "monte-carlo",
        "iaf-warmup": "monte-carlo-warmup",
        "flow-warmup": "monte-carlo-warmup",
        "full-covariance-warmup": "kl-warmup",
    }


def test_sentences_follow_the_intervals(results: Results) -> None:
    first, second = report.sentences(results)
    assert first.startswith("log p(x) rises over that of the ordinary VAE")
    assert first.endswith(f"{report.WHAT['flow']} 1.510 ± 0.025.")
    assert second.startswith("The interval holds zero: ")
    assert all(report.WHAT[name] in second for name in ("iaf", "kl-warmup"))
    for run in results["runs"]:
        if "flow" in run["arm"]:
            run["test"]["log_px"] -= 4.0
    assert report.sentences(results)[0] == f"It falls: {report.WHAT['flow']} -2.490 ± 0.025."


def test_nothing_is_compared_without_the_ordinary_vae(results: Results) -> None:
    results["runs"] = [run for run in results["runs"] if "flow" in run["arm"]]
    results["config"]["remedies"] = ["flow"]
    (said,) = report.sentences(results)
    assert said == "The ordinary VAE is not among these runs, so nothing is compared."


def test_priors_that_replace_the_old_one_have_their_own_table(results: Results) -> None:
    heading, words, table = report.replaced(results)
    assert "first 500 test images, with 64 importance samples" in words.text  # type: ignore[union-attr]
    assert (heading.text, table.rows[0][0]) == (  # type: ignore[union-attr]
        "Without retraining", "a Gaussian with a full covariance",
    )  # fmt: skip
    half = 4.302653 / math.sqrt(3)
    rows = {row[0]: row[1:] for row in table.rows}  # type: ignore[union-attr]
    assert rows["a second VAE (Dai & Wipf 2019)"] == (
        f"3.10 ± {0.1 * half:.2f}", f"2.70 ± {0.2 * half:.2f}", f"2.410 ± {0.01 * half:.3f}",
    )  # fmt: skip
    # The legend of the first table stands before this section.
    page = list(report.blocks(results))
    legend = next(i for i, b in enumerate(page) if getattr(b, "text", "").startswith("Left is"))
    assert page.index(report.table(results)) + 1 == legend < page.index(heading)
    results["config"]["remedies"] = list(CONFIG.remedies[1:])
    results["runs"] = [run for run in results["runs"] if run["arm"] != "elbo/analytic/joint"]
    assert list(report.replaced(results)) == []


def test_a_point_is_the_mean_of_a_remedy(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []

    def png(figure: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(style, "png", png)
    report.figure(results)
    (axes,) = figures[0].axes
    points = [float(container.lines[0].get_xdata()[0]) for container in axes.containers]
    named = report.arms(results)
    for point, arm in zip(points, named.values(), strict=True):
        wanted = [run["test"]["log_px"] for run in results["runs"] if run["arm"] == arm]
        assert point == pytest.approx(np.mean(wanted))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CONFIG.remedies)


def test_report_draws_remedies_again(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path)]) == 0
    assert report.sentences(results)[0] in capsys.readouterr().out
    assert report.sentences(results)[0] in (tmp_path / "remedies.md").read_text()
    assert (tmp_path / "remedies.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "results.json").write_text(json.dumps(results | {"schema": 9}))
    with pytest.raises(OutputError, match="holds no remedies, schema 1"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results | {"runs": []}))
    with pytest.raises(OutputError, match="expected what `vaez-fast remedies` writes"):
        report.write(tmp_path)
