"""The report's tables and figures show every number of the record in the right place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from tests.study import fake_study
from vaez_fast.drawing import latents as law_pictures
from vaez_fast.drawing import style
from vaez_fast.measures.samplers import SAMPLERS
from vaez_fast.report import article as report
from vaez_fast.report import curves as report_curves
from vaez_fast.report import figures as report_figures
from vaez_fast.report import images as report_images
from vaez_fast.report import law as report_law
from vaez_fast.report import tables
from vaez_fast.report.sentences import of_the_published_code
from vaez_fast.theory import figures as theory_figures
from vaez_fast.theory import record as theory

Results = dict[str, Any]
ANALYTIC = "elbo/analytic/joint"


def number(run: Results, name: str) -> float:
    """The value at a dotted path; None becomes NaN."""
    place: Any = run
    for key in name.split("."):
        place = place[key]
    return math.nan if place is None else float(place)


@pytest.fixture(scope="module")
def results() -> Results:
    return fake_study.results()


@pytest.fixture(scope="module")
def arms(results: Results) -> list[str]:
    return list(dict.fromkeys(run["arm"] for run in results["runs"]))


def of(results: Results, arm: str, name: str) -> np.ndarray:
    return np.array([number(run, name) for run in results["runs"] if run["arm"] == arm])


def half(values: np.ndarray) -> float:
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def within(values: np.ndarray) -> str:
    """Two significant digits of the half width, and the mean to the same place."""
    if half(values) == 0.0:
        return f"{Decimal(f'{values.mean():.3g}'):f} ± 0"
    width = Decimal(f"{half(values):.1e}")
    return f"{Decimal(float(values.mean())).quantize(width)} ± {width:f}"


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    """report.md, without drawing its figures and with a few fixed numbers as the theory."""
    out = tmp_path_factory.mktemp("study")
    (out / "results.json").write_text(json.dumps(results))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "compute", lambda: fake_study.THEORY)
        patch.setattr(report, "images_of", lambda *_: fake_study.images())
        patch.setattr(report, "law_of", lambda *_: {})
        patch.setattr(law_pictures, "panel", lambda *_: b"")
        patch.setattr(report_law, "what_each_closes", lambda *_: b"")
        patch.setattr(report_images, "image_distance", lambda _: b"")
        for module, name in (
            (report_figures, "DRAWINGS"), (report_images, "GRIDS"), (theory_figures, "FIGURES")
        ):  # fmt: skip
            patch.setattr(module, name, {file: lambda *_: b"" for file in getattr(module, name)})
        report.write(out)
    return (out / "report.md").read_text()


def samplers(arm: str) -> list[str]:
    """A flow is fitted for the ordinary VAE alone."""
    return [name for name in SAMPLERS if name != "flow" or arm == ANALYTIC]


def table(page: str, first: str, second: str) -> dict[str, list[str]]:
    """The rows, by first cell, of the table whose head begins with these two cells."""
    head = rf"^\| {re.escape(first)} \| {re.escape(second)} "
    (found,) = re.findall(head + r".*\n(?:\|.*\n)+", page, re.M)
    rows = [re.split(r"(?<!\\)\| ?", line)[1:-1] for line in found.splitlines()[2:]]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_arm_has_its_numbers_with_intervals(
    page: str, results: Results, arms: list[str]
) -> None:
    columns = ("latents.sample_kl", "test.rate", "test.distortion", "test.elbo", "log_px.value")
    rows = table(page, "arm", "sample KL")
    assert list(rows) == arms
    for arm, cells in rows.items():
        wanted = [within(of(results, arm, name)) for name in columns]
        assert cells == [*wanted, f"{of(results, arm, 'latents.active_units').mean():.1f}"]


def test_every_sampler_has_its_distance(page: str, results: Results, arms: list[str]) -> None:
    rows = table(page, "Fréchet distance, z from", SAMPLERS[0])
    for arm in arms:
        wanted = [
            within(of(results, arm, f"images.{name}.frechet")) if name in samplers(arm) else "–"
            for name in SAMPLERS
        ]
        assert rows[arm] == wanted
    assert rows["real images (floor)"][0] == "0.30"
    assert rows["mean digit (ceiling)"][0] == "26.00"


METRICS = {
    "frechet": 2, "kernel": 4, "precision": 3, "recall": 3, "density": 3, "coverage": 3,
    "label_distance": 3, "nearest_train": 2,
}  # fmt: skip


def test_all_metrics_are_means_over_seeds(page: str, results: Results, arms: list[str]) -> None:
    rows = table(page, "arm, z from", "Fréchet")
    assert f"{arms[0]}, flow" not in rows
    for arm in arms:
        for name in samplers(arm):
            assert rows[f"{arm}, {name}"] == [
                f"{of(results, arm, f'images.{name}.{metric}').mean():.{digits}f}"
                for metric, digits in METRICS.items()
            ]
    for name, row in (("floor", "real images (floor)"), ("ceiling", "mean digit (ceiling)")):
        bounds = results["beside"]["images"][name]
        wanted = [f"{bounds[metric]:.{digits}f}" for metric, digits in METRICS.items()]
        assert rows[row] == wanted


def test_the_digits_that_the_classifier_sees_are_those_of_the_ordinary_vae(
    page: str, results: Results
) -> None:
    rows = table(page, "z from", "0")
    runs = [run for run in results["runs"] if run["arm"] == ANALYTIC]
    for name in SAMPLERS:
        shares = np.mean([run["images"][name]["label_histogram"] for run in runs], 0)
        assert rows[name] == [f"{share:.3f}" for share in shares]
    floor = results["beside"]["images"]["floor"]["label_histogram"]
    assert rows["real images"] == [f"{share:.3f}" for share in floor]


def test_the_parts_of_the_rate_stand_under_their_names(
    page: str, results: Results, arms: list[str]
) -> None:
    parts = (
        "index_information", "total_correlation", "dimension_wise_kl", "marginal_kl",
        "leave_one_out_marginal_kl",
    )  # fmt: skip
    names = [
        "latents.surgery.rate",
        *(f"latents.surgery.{part}.value" for part in parts),
        "latents.held_out_marginal_kl.value",
    ]
    rows = table(page, "arm", "rate (training)")
    for arm in arms:
        assert rows[arm] == [within(of(results, arm, name)) for name in names]


def test_the_moments_stand_under_their_names(page: str, results: Results, arms: list[str]) -> None:
    names = (
        "largest_abs_mean", "smallest_variance", "largest_variance", "largest_abs_correlation",
        "smallest_excess_kurtosis", "largest_excess_kurtosis",
    )  # fmt: skip
    rows = table(page, "arm", r"largest \|mean\|")
    for arm in arms:
        means = [of(results, arm, f"latents.moments.{name}").mean() for name in names]
        assert rows[arm] == [f"{mean:.3f}" for mean in means]


def test_the_marginals_are_compared_with_the_decoder_that_knows_nothing(
    page: str, results: Results
) -> None:
    scores = -of(results, "kl/analytic/separate", "test.distortion")
    apart = float(scores.mean()) - results["beside"]["marginal_log_prob"]
    left = within(of(results, "kl/analytic/separate", "test.rate"))
    assert "scores -205.70 nats. The decoder trained after kl/analytic/separate" in page
    assert f"scores {within(scores)}, {apart:+.2f} nats from it, with {left} nats" in page


def test_both_sides_of_log_px_stand_under_their_names(page: str) -> None:
    assert "5,000 samples finds -92.50 nats, annealed importance sampling (50 temperatures" in page
    assert "a lower bound of -92.00 and, reversed, an upper bound of -91.50" in page
    assert "-107.00 and -106.50, importance sampling -107.50" in page
    assert "log p(x) − ELBO is 4.25 ± 0.25 nats" in page


def test_the_page_says_what_log_px_is_from(page: str) -> None:
    assert "plus the rise from 128 to 5,000 samples of 1,000 images" in page
    assert "The rise is 0.50 to 0.70 nats" in page
    assert "standard error over images is 0.03 nats at most" in page


def test_the_page_says_where_all_images_have_the_samples(results: Results) -> None:
    for run in results["runs"]:
        run["test"]["log_px_samples"] = run["log_px"]["samples"]
    said = tables.samples_of_log_px(results)
    assert said == "log p(x) is from 5,000 importance samples of each test image."


def test_the_summary_has_means_and_half_widths(results: Results, arms: list[str]) -> None:
    found = report.summary(results, [])["arms"]
    assert list(found) == arms
    places = {
        "sample_kl": "latents.sample_kl",
        "rate": "test.rate",
        "distortion": "test.distortion",
        "elbo": "test.elbo",
        "log_px": "log_px.value",
    }
    for arm in arms:
        assert set(found[arm]) == set(places)
        for name, place in places.items():
            values = of(results, arm, place)
            assert found[arm][name]["mean"] == pytest.approx(float(values.mean()), rel=1e-12)
            assert found[arm][name]["half_width"] == pytest.approx(half(values), rel=1e-9)


# Figures.


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Draws a figure and returns its axes, because a picture does not show its numbers."""
    figures: list[Any] = []

    def png(figure: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(style, "png", png)

    def draw(function: Callable[..., bytes], *arguments: Any) -> Any:
        function(*arguments)
        return figures[-1].axes[0]

    return draw


@pytest.mark.parametrize("quantity", ["sample_kl", "rate"])
def test_the_decay_is_the_mean_over_seeds_in_a_band_of_all(
    quantity: str, drawn: Callable[..., Any], results: Results
) -> None:
    draw = report_curves.decay if quantity == "sample_kl" else report_curves.rates
    axes = drawn(draw, results)
    shown = [arm for arm in report_curves.DECAY_ARMS if quantity == "sample_kl" or arm != "randn"]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    assert len(lines) == len(axes.collections) == len(shown)
    for arm, line, band in zip(shown, lines, axes.collections, strict=True):
        runs = [run for run in results["runs"] if run["arm"] == arm]
        of_seeds = np.array([[point[quantity] for point in run["decay"]] for run in runs])
        assert line.get_color() == style.colour(arm)
        assert line.get_xdata().tolist() == [0.5, 1, 10, 100, 200]
        np.testing.assert_allclose(line.get_ydata(), of_seeds.mean(0), rtol=1e-12)
        edges = band.get_paths()[0].vertices
        assert edges[:, 1].min() == of_seeds.min()
        assert edges[:, 1].max() == of_seeds.max()
    if quantity == "sample_kl":
        (null,) = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
        assert set(null.get_ydata()) == {results["beside"]["null_sample_kl"]}


def test_a_decoders_curve_begins_when_its_own_training_does(
    drawn: Callable[..., Any], results: Results
) -> None:
    axes = drawn(report_curves.decoder_curve, results)
    shown = (
        "elbo/total-derivative/joint",
        "kl/total-derivative/simultaneous",
        "kl/total-derivative/separate",
        "randn",
    )
    for arm, line in zip(shown, axes.get_lines(), strict=True):
        ends = of(results, arm, "test.distortion")
        # fake_study.learning_curve, at 40, 100 and 200 of 200 steps
        expected = [float((ends + (600 - ends) * left).mean()) for left in (0.8, 0.5, 0.0)]
        assert list(line.get_xdata()) == [40, 100, 200]
        assert list(line.get_ydata()) == pytest.approx(expected)
        assert line.get_color() == style.colour(arm)


def test_reconstructions_are_below_the_test_images(drawn: Callable[..., Any]) -> None:
    def grid(level: int) -> np.ndarray:
        return np.full((12, 784), level, dtype=np.uint8)

    images = {
        arm: {
            "test-images": grid(200),
            "reconstructions": grid(10 + i),
            "standard-normal": grid(99),
        }
        for i, arm in enumerate((ANALYTIC, "randn"))
    }
    axes = drawn(report_images.reconstructions, {}, images)
    shown = axes.get_images()[0].get_array()
    assert shown.shape == (3 * 28, 12 * 28)
    assert [int(level) for level in shown[14::28, 0]] == [55, 245, 244]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["test images", ANALYTIC, "randn"]


def test_the_published_checkpoint_explains_what_its_encoder_still_tells(
    results: Results,
) -> None:
    said = of_the_published_code(results)
    last = of(results, "kl/as-published/separate", "test.distortion")
    whole = last - of(results, "elbo/total-derivative/joint", "test.distortion")
    for run in ("encoder", "joint"):
        retrained = of(results, "kl/as-published/separate", f"kept.{run}.decoder_retrained")
        assert within(last - retrained) in said
    assert f"of the {within(whole)} nats" in said
    retrained = of(results, "kl/as-published/separate", "kept.encoder.decoder_retrained")
    assert f"It explains {100 * (last - retrained).mean() / whole.mean():.0f} %" in said
    distortion = of(results, "kl/as-published/separate", "kept.joint.distortion")
    assert "encoder-only training the state after step 1 or 2." in said
    assert f"after step 1 or 2, with a distortion of {within(distortion)} nats" in said


def errorbars(axes: Any) -> list[tuple[float, float, list[np.ndarray]]]:
    """x, y and the ends of the bars of each point."""
    found = []
    for container in axes.containers:
        point, _, bars = container.lines
        ends = [bar.get_segments()[0] for bar in bars]
        found.append((float(point.get_xdata()[0]), float(point.get_ydata()[0]), ends))
    return found


def test_a_decoders_score_is_minus_its_distortion(
    drawn: Callable[..., Any], results: Results, arms: list[str]
) -> None:
    axes = drawn(report_figures.decoder_score, results)
    shown = [arm for arm in arms if "beta" not in arm]
    for arm, (x, _, (bar,)) in zip(shown, errorbars(axes), strict=True):
        scores = -of(results, arm, "test.distortion")
        assert x == pytest.approx(scores.mean())
        width = half(scores)
        assert bar[:, 0].tolist() == pytest.approx([x - width, x + width])


def test_a_regime_is_a_point_of_rate_and_distortion(
    drawn: Callable[..., Any], results: Results, arms: list[str]
) -> None:
    axes = drawn(report_figures.rate_distortion, results)
    for arm, (x, y, (across, along)) in zip(arms, errorbars(axes), strict=True):
        rate, distortion = (of(results, arm, f"test.{n}") for n in ("rate", "distortion"))
        assert (x, y) == pytest.approx((rate.mean(), distortion.mean()))
        assert float(np.ptp(across[:, 0])) == pytest.approx(2 * half(rate), abs=1e-9)
        assert float(np.ptp(along[:, 1])) == pytest.approx(2 * half(distortion), abs=1e-9)


def test_the_bars_of_the_surgery_are_the_parts_one_after_the_other(
    drawn: Callable[..., Any], results: Results, arms: list[str]
) -> None:
    axes = drawn(report_figures.surgery, results)
    bars = iter(axes.patches)
    for arm in (arm for arm in arms if arm.startswith("elbo")):
        left = 0.0
        for part in ("index_information", "total_correlation", "dimension_wise_kl"):
            bar = next(bars)
            width = float(of(results, arm, f"latents.surgery.{part}.value").mean())
            assert (bar.get_x(), bar.get_width()) == pytest.approx((left, width))
            left += width
    assert next(bars, None) is None


def test_images_are_points_by_sampler(drawn: Callable[..., Any], results: Results) -> None:
    axes = drawn(report_images.image_distance, results)
    shown = [
        ANALYTIC, "elbo/total-derivative/joint", "elbo/analytic/joint/beta=0.1",
        "elbo/analytic/joint/beta=4",
        "kl/total-derivative/separate", "randn",
    ]  # fmt: skip
    points = iter(errorbars(axes))
    for arm in shown:
        for name in samplers(arm):
            x, _, (bar,) = next(points)
            distances = of(results, arm, f"images.{name}.frechet")
            assert x == pytest.approx(distances.mean())
            assert float(np.ptp(bar[:, 0])) == pytest.approx(2 * half(distances))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == shown


def test_the_curve_over_k_is_that_of_the_record(
    drawn: Callable[..., Any], results: Results
) -> None:
    (line,) = drawn(report_figures.k_curve, results).get_lines()
    assert list(line.get_xdata()) == [1, 8, 128]
    assert list(line.get_ydata()) == [-100.0, -97.0, -95.0]


def counts(edges: Sequence[float], values: Sequence[float]) -> list[int]:
    return [sum(low <= value < high for value in values) for low, high in pairwise(edges)]


def test_the_histogram_of_latents_is_of_seed_0(drawn: Callable[..., Any], results: Results) -> None:
    axes = drawn(report_figures.kl_per_dimension, results)
    shown = (ANALYTIC, "elbo/total-derivative/joint", "kl/analytic/separate")
    for arm, stairs in zip(shown, axes.patches, strict=True):
        run = next(run for run in results["runs"] if run["arm"] == arm and run["seed"] == 0)
        data = stairs.get_data()
        kls = np.clip(run["latents"]["kl_per_dimension"], data.edges[0], data.edges[-1])
        assert data.values.tolist() == counts(data.edges, kls)
        assert sum(data.values) == 128
