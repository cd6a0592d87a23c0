"""The record of the theory: its claims, its file and its figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.process import environment
from tests.theory.gaussians import as_coded, distance
from vaez_fast.system.files import OutputError
from vaez_fast.theory import record as theory

SIGMAS = 5.0  # standard errors: a false alarm in 1.7 million


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("theory") / "made" / "here"
    theory.write(out)
    return out


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "theory.json").read_text())
    return loaded


def test_each_summand_has_one_zero_and_is_never_negative(record: dict[str, Any]) -> None:
    part = record["derivatives"]
    assert (part["zeros_of_F"], part["zeros_of_G"]) == ([0.0], [1.0])
    assert part["zeros_of_slopes"] == {"F": [0.0], "G": [1.0]}
    assert min(part["least_curvature"].values()) >= 1.0  # both are convex: no other zero
    assert min(part["least"].values()) >= 0.0
    assert part["sum_off_kl"] < 1e-14
    assert record["surface"]["hessian_eigenvalues"] == [1.0, 2.0]


def test_the_kl_is_a_lyapunov_function_of_the_flow(record: dict[str, Any]) -> None:
    part = record["flow"]
    assert part["off_closed_form"] < 1e-8
    assert part["logvar_off_closed_form"] < 1e-12
    assert part["kl_always_falls"]
    assert part["dissipation_off"] < 1e-4
    assert all(np.diff(np.array(part["kl"]), axis=1).max(1) < 0)
    assert (part["rates"], part["rates_in_logvar"]) == ([-2.0, -1.0], [-1.0, -0.5])


def test_the_data_decide_whether_the_elbo_has_a_maximum_at_0_1(record: dict[str, Any]) -> None:
    below, above = record["curvature"]["cases"]
    assert below["eigenvalue"] < record["curvature"]["noise"] < above["eigenvalue"]
    assert (below["kind"], above["kind"]) == ("maximum", "saddle")
    assert below["elbo_at_optimum"] == 0.0
    # The log-likelihood of variance 4 under N(0, 4) minus that under the noise alone, N(0, 1)
    assert above["elbo_at_optimum"] == pytest.approx(0.5 * (4.0 - 1.0 - math.log(4.0)), rel=1e-6)
    for case in (below, above):
        assert case["hessian_off_differences"] < 1e-8
        assert np.max(case["elbo"]) <= case["elbo_at_optimum"] + 1e-7  # seven digits


def test_the_linear_vaes_codes_are_normal_and_its_posteriors_are_not(
    record: dict[str, Any],
) -> None:
    part = record["linear"]
    assert part["aggregate_off_identity"] < 1e-14
    assert part["informative"] == 2
    assert max(part["posterior_sd"][:2]) < 0.5
    assert part["rate"] + part["distortion"] == pytest.approx(-part["log_px"], rel=1e-6)
    sample = part["simulated"]
    assert sample["largest_z_of_moments"] < SIGMAS
    assert sample["elbo_off_log_px"] < 1e-12
    error = part["rate_sd"] / math.sqrt(sample["draws"])
    assert abs(sample["rate"] - part["rate"]) < SIGMAS * error


def test_clusters_have_a_kl_that_no_gaussian_fit_finds(record: dict[str, Any]) -> None:
    part = record["clusters"]
    assert part["kl"] > 0.4
    assert part["kl_of_gaussian_fit"] < 1e-12
    assert part["kurtosis_by_quadrature"] == pytest.approx(part["kurtosis"], rel=1e-6)
    assert part["off_hermite"] < 1e-7


def test_the_kl_does_not_change_under_rotation_and_the_elbo_of_a_diagonal_q_does(
    record: dict[str, Any],
) -> None:
    part = record["rotation"]
    assert max(part[f"{name}_off"] for name in ("kl", "trace", "log_det")) < 1e-12
    assert part["kl_off_sum"] < 1e-12
    assert np.ptp(part["rate"]) < 1e-6
    lost = part["elbo_lost"]
    assert max(abs(lost[0]), abs(lost[-1])) < 1e-12
    assert lost[45] == max(lost) == part["largest_loss"]
    # Precisions 16 and 6 at 45°: both diagonal entries are 11.
    assert part["largest_loss"] == pytest.approx(0.5 * math.log(11.0**2 / (16.0 * 6.0)), rel=1e-6)


def test_the_likelihood_is_the_elbo_and_its_gap(record: dict[str, Any]) -> None:
    part = record["identity"]
    assert part["off"] < 1e-13
    assert part["smallest_gap"] > 1.0
    assert part["off_at_posterior"] < 1e-12


def test_only_momentum_turns_back(record: dict[str, Any]) -> None:
    part = record["spiral"]
    assert part["flow_crossings"] == [0, 0]
    assert min(part["heavy_ball_crossings"]) >= 4
    assert all(imaginary == 0 for _, imaginary in part["flow_eigenvalues"])
    assert all(imaginary != 0 for _, imaginary in part["heavy_ball_eigenvalues"])
    numeric = part["heavy_ball_eigenvalues_numeric"]
    assert [pytest.approx(p, abs=1e-6) for p in numeric] == part["heavy_ball_eigenvalues"]


def test_the_articles_optimiser_does_not_wind_around_the_minimum(record: dict[str, Any]) -> None:
    past = {
        (row["optimiser"], row["settings"]["lr"]): row["past"]
        for row in record["spiral"]["optimisers"]
    }
    assert past["SGD", 1e-3] == past["Adam", 1e-3] == [0.0, 0.0]  # friction 3.2 > 2√2
    assert min(past["SGD", 1e-2]) > 0.2  # friction 1
    assert min(past["Adam", 1e-1]) > 0.2
    rms = past["RMSprop", 1e-3]
    assert rms[0] < 10 * 1e-3  # the length of a few steps
    assert rms[1] == 0.0


def test_the_published_code_understates_the_kl_at_its_start(record: dict[str, Any]) -> None:
    part = record["published_code"]
    sigma = torch.nn.functional.softplus(torch.zeros(128, dtype=torch.float64))
    mu = torch.zeros_like(sigma)
    assert part["initial_kl"] == pytest.approx(distance(mu, sigma).sum().item(), rel=1e-6)
    assert part["initial_as_published"] == pytest.approx(as_coded(mu, sigma).item(), rel=1e-6)
    assert (part["rate"], part["rate_as_published"]) == (2.0, 0.5)
    assert part["off_implicit_solution"] < 1e-9
    assert part["off_kl_at_root_sigma"] < 1e-14


def test_the_ops_draws_agree_with_the_formulas(record: dict[str, Any]) -> None:
    assert record["monte_carlo_kl"]["largest_z"] < SIGMAS
    assert record["monte_carlo_kl"]["off_at_minimum"] == 0.0  # q = p, so every draw is exactly 0
    part = record["estimators"]
    assert part["compared"] == len(part["points"]) - 3  # three have a variance of 0
    assert part["largest_z"] < SIGMAS
    assert part["largest_z_of_mean"] < SIGMAS
    assert part["largest_where_zero"] < 1e-12
    assert record["null"]["largest_z"] < SIGMAS


def test_the_monte_carlo_means_are_judged_by_the_variance_of_their_draws(
    record: dict[str, Any],
) -> None:
    part = record["monte_carlo_kl"]
    mu, sigma, off = (np.array(part[name]) for name in ("mu", "sigma", "off"))
    assert part["points"] == len(off) == 16
    # One draw is −ln σ + ½(z² − eps²) with z = mu + σ·eps; eps and eps² have the variances 1 and 2.
    variance = (mu * sigma) ** 2 + (sigma**2 - 1) ** 2 / 2
    varies = variance > 0
    z = off[varies] / np.sqrt(variance[varies] / part["draws"])
    # The record has seven digits.
    assert part["largest_z"] == pytest.approx(np.abs(z).max(), rel=1e-5)
    inside = math.erf(part["largest_z"] / math.sqrt(2))
    assert part["chance_of_larger"] == pytest.approx(1 - inside ** len(z), rel=1e-5)
    half = np.array(part["half_interval"])
    # It uses the sample's standard deviation, which 131,072 draws give to a few thousandths.
    np.testing.assert_allclose(half, 1.96 * np.sqrt(variance / part["draws"]), rtol=0.02, atol=1e-9)
    assert part["intervals_that_hold"] == int((np.abs(off) <= half).sum())


def test_the_largest_scores_are_those_of_the_points(record: dict[str, Any]) -> None:
    part = record["estimators"]
    for name, largest in (("z", "largest_z"), ("z_of_mean", "largest_z_of_mean")):
        assert part[largest] == max(abs(p[name]) for p in part["points"] if name in p)
    for p in part["points"]:
        if "z" in p:  # the variance of light-tailed draws has an error of at least √(1/draws)
            assert abs(p["measured"] / p["variance"] - 1) < 0.05
            assert p["z"] * (p["measured"] - p["variance"]) > 0


def test_the_null_of_a_fit_is_judged_by_its_fits(record: dict[str, Any]) -> None:
    part = record["null"]
    for row in part["simulated"]:
        error = row["expected_sd"] / math.sqrt(row["fits"])
        z = (row["mean"] - row["expected"]) / error
        assert row["z"] == pytest.approx(z, abs=1e-3)
        # Five standard errors of the standard deviation of so many nearly normal fits.
        assert abs(row["sd"] / row["expected_sd"] - 1) < SIGMAS / math.sqrt(2 * row["fits"])
        assert row["within_band"] > 0.95 - SIGMAS * math.sqrt(0.95 * 0.05 / row["fits"])
        low, high = row["central_95"]
        assert low < row["mean"] < high
        assert row["latents_over_n"] == pytest.approx(128 / row["n"], rel=1e-6)
    assert part["largest_z"] == max(abs(row["z"]) for row in part["simulated"])


# Files and the table.


def test_the_figures_are_drawn_from_the_record_alone(folder: Path, record: dict[str, Any]) -> None:
    from vaez_fast.theory.figures import FIGURES

    assert {path.name for path in folder.iterdir()} == {"theory.json", *FIGURES}
    for name, draw in FIGURES.items():
        drawn = (folder / name).read_bytes()
        assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(drawn[16:20]) == 1120  # pixels wide
        assert draw(record) == drawn, name


def test_a_second_run_writes_the_same_numbers(folder: Path) -> None:
    before = (folder / "theory.json").read_bytes()
    again = theory.write(folder)
    assert (folder / "theory.json").read_bytes() == before
    assert again == json.loads(before)


def test_a_record_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    for content in ('{"kind": "a thesis"}', "[]", "not JSON"):
        (tmp_path / "theory.json").write_text(content)
        with pytest.raises(OutputError, match="is not a record of the theory"):
            theory.write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["theory.json"]
        assert (tmp_path / "theory.json").read_text() == content


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        theory.write(tmp_path / "file" / "out")


def test_the_table_tells_the_findings(record: dict[str, Any]) -> None:
    text = "\n".join(theory.table(record))
    for finding in (
        "-0.2 ± 0.9798i, -0.2 ± 1.4i",
        "3.82 nats, truly 13.66",
        "0.5, truly 2",
        "sigma > 0.7071, for any mu",
        "saddle, curvatures -6.772, -2, 1.772",
        "2.2822 + 6.4342 = 8.7164",
    ):
        assert finding in text
    assert "NO" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_importing_the_theory_needs_no_matplotlib() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import vaez_fast.cli.main, vaez_fast.theory.record, vaez_fast.theory.figures\n"
        "import vaez_fast.drawing.style as s\n"
        "print(s.colour('randn'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.stdout.strip() == "#000000", done.stderr
