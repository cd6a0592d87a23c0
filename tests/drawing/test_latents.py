"""The pictures of the law of z: what is drawn is what the summary says."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, norm

from tests.measures.correlated_codes import codes_of
from vaez_fast.drawing import latents, style
from vaez_fast.measures.law_summary import Summary, summary_of

N = 900
LABELS = torch.arange(N) % 10


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Three latents, two pairs."""
    return summary_of(codes_of(N, [0.5, 0.9, 0.7, 0.01]), LABELS, 0)


@pytest.fixture(scope="module")
def flat() -> Summary:
    """Two latents, one pair."""
    return summary_of(codes_of(300, [0.9, 0.8]), LABELS[:300], 0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures of the pictures that are made in a test."""
    kept = []
    png = style.png

    def keep(figure: Any) -> bytes:
        kept.append(figure)
        return png(figure)

    monkeypatch.setattr(style, "png", keep)
    return kept


PICTURES: dict[str, tuple[Callable[[Summary, str], bytes], int, int]] = {
    "panel": (latents.panel, 4, 4),
    "marginals": (latents.marginals, 3, 2),
    "quantiles": (latents.quantiles, 3, 2),
    "squared norms": (latents.squared_norms, 1, 1),
    "pairs": (latents.pairs, 3, 2),
}


@pytest.mark.parametrize(("draw", "panels", "panels_of_flat"), PICTURES.values(), ids=PICTURES)
def test_a_picture_has_its_panels_and_titles_that_neither_overlap_nor_leave_it(
    draw: Callable[[Summary, str], bytes], panels: int, panels_of_flat: int,
    summary: Summary, flat: Summary, drawn: list[Any],
) -> None:  # fmt: skip
    long = "altosaar, fashion-mnist, iwae/doubly-reparameterised/joint/k=50"
    made = [draw(summary, long), draw(flat, long)]
    assert made[0] != made[1]
    for figure, wanted, png in zip(drawn, (panels, panels_of_flat), made, strict=True):
        assert len(figure.axes) == wanted
        assert size(png)[0] == round(style.WIDTH * style.DPI)
        figure.set_dpi(style.DPI)
        inside = figure.get_tightbbox()  # of all that is drawn, in inches
        width, height = figure.get_size_inches()
        assert -0.01 < inside.x0 < inside.x1 < width + 0.01
        assert -0.01 < inside.y0 < inside.y1 < height + 0.01
        titles = [figure.get_suptitle() or figure.axes[0].get_title()]
        assert titles[0].startswith(long)
        boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
        boxes += [ax.xaxis.label.get_window_extent() for ax in figure.axes if ax.get_xlabel()]
        assert not [1 for i, box in enumerate(boxes) if box.count_overlaps(boxes[:i])]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def lines(ax: Any) -> dict[str, Any]:
    """The lines of a panel, the last of each colour."""
    return {line.get_color(): line for line in ax.lines}


def stairs(ax: Any) -> list[Any]:
    from matplotlib.patches import StepPatch

    return [patch for patch in ax.patches if isinstance(patch, StepPatch)]


def test_marginals_are_densities_under_that_of_the_standard_normal(
    summary: Summary, drawn: list[Any]
) -> None:
    latents.marginals(summary, "a")
    for i, ax in enumerate(drawn[0].axes):
        bars, exact = stairs(ax)
        for patch, counts in ((bars, summary["counts"]), (exact, summary["normal_counts"])):
            values, edges, _ = patch.get_data()
            np.testing.assert_allclose(values * np.diff(edges) * N, counts[i], rtol=1e-6)
        x, y = lines(ax)[style.BLACK].get_data()
        np.testing.assert_allclose(y, norm.pdf(x), rtol=1e-12)
        assert ax.get_title() == f"z{summary['latents'][i]}, rate {summary['kl'][i]:.2f} nats"
        low, high = ax.get_xlim()
        assert low == -high <= -np.abs(summary["order_statistics"]).max() // 0.2 * 0.2


def test_quantiles_are_order_statistics_against_those_of_the_normal_and_its_band(
    summary: Summary, drawn: list[Any]
) -> None:
    latents.panel(summary, "a")
    latents.quantiles(summary, "a")
    x = norm.ppf((summary["ranks"] - 0.5) / N)
    pages = [(drawn[0].axes[1], 0, 0.0 * x), *((ax, i, x) for i, ax in enumerate(drawn[1].axes))]
    for ax, i, diagonal in pages:
        for colour, name in ((style.BLUE, ""), (style.GREY, "normal_")):
            line = lines(ax)[colour]
            np.testing.assert_allclose(line.get_xdata(), x, rtol=1e-12)
            wanted = summary[f"{name}order_statistics"][i] - diagonal
            np.testing.assert_allclose(line.get_ydata(), wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(lines(ax)[style.BLACK].get_ydata(), x - diagonal, atol=1e-12)
        _, low, high = latents.normal_band(summary["ranks"], N)
        (band,) = (one for one in ax.collections)
        corners = band.get_paths()[0].get_extents()
        assert corners.y0 == pytest.approx((low - diagonal).min())
        assert corners.y1 == pytest.approx((high - diagonal).max())


def test_the_band_holds_each_order_statistic_of_exact_normals_with_95_percent() -> None:
    n = 250
    ranks = np.array([1, 2, 10, 125, 200, 249, 250])
    x, low, high = latents.normal_band(ranks, n)
    # The k-th smallest is below q if k draws or more are below q.
    np.testing.assert_allclose(binom.sf(ranks - 1, n, norm.cdf(low)), 0.025, rtol=1e-9)
    np.testing.assert_allclose(binom.sf(ranks - 1, n, norm.cdf(high)), 0.975, rtol=1e-9)
    np.testing.assert_allclose(norm.cdf(x), (ranks - 0.5) / n, rtol=1e-12)


def test_squared_norms_are_a_density_beside_that_of_chi_squared(
    summary: Summary, drawn: list[Any]
) -> None:
    latents.squared_norms(summary, "a")
    (ax,) = drawn[0].axes
    bars, exact = stairs(ax)
    for patch, name in ((bars, ""), (exact, "normal_")):
        values, edges, _ = patch.get_data()
        wanted = summary[f"{name}squared_norm_counts"]
        np.testing.assert_allclose(values * np.diff(edges) * N, wanted, rtol=1e-6)
    x, y = lines(ax)[style.BLACK].get_data()
    np.testing.assert_allclose(y, chi2.pdf(x, 3), rtol=1e-9)
    mean, variance = summary["squared_norm_moments"]
    assert ax.get_xlabel() == f"mean {mean:.1f}, variance {variance:.1f}\n(N(0, I): 3 and 6)"
    seen = edges[1:] <= ax.get_xlim()[1]
    assert summary["squared_norm_counts"][seen].sum() >= 0.999 * N - 1
    assert ax.get_ylim()[1] > max(values.max(), y.max())


@pytest.mark.parametrize("d", [1, 2])
def test_a_density_without_a_peak_is_drawn_within_the_picture(d: int, drawn: list[Any]) -> None:
    summary = summary_of(codes_of(300, [0.9, 0.8][:d] + [0.001] * (3 - d)), LABELS[:300], 0)
    latents.squared_norms(summary, "a")
    top = drawn[0].axes[0].get_ylim()[1]
    assert 0.3 < top < 10


def test_a_scatter_shows_every_point_in_the_colour_of_its_class_and_the_circles(
    summary: Summary, drawn: list[Any]
) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.patches import Circle

    latents.pairs(summary, "a")
    *of_pairs, exact = drawn[0].axes
    for ax, points, pair in zip(of_pairs, summary["points"], summary["pairs"], strict=True):
        (dots,) = ax.collections
        assert dots.get_offsets().tolist() == points.tolist()
        colours = [to_hex(colour).upper() for colour in dots.get_facecolors()]
        assert colours == [style.CLASSES[label] for label in LABELS]
        assert (ax.get_xlabel(), ax.get_ylabel()) == tuple(f"z{latent}" for latent in pair)
    assert exact.collections[0].get_offsets().tolist() == summary["normal_points"].tolist()
    for ax in drawn[0].axes:
        radii = [patch.radius for patch in ax.patches if isinstance(patch, Circle)]
        np.testing.assert_allclose(chi2.cdf(np.square(radii), 2), [0.5, 0.95], rtol=1e-12)
        assert ax.get_xlim() == ax.get_ylim() == of_pairs[0].get_xlim()
        assert np.abs(ax.collections[0].get_offsets()).max() <= ax.get_xlim()[1]
    (legend,) = drawn[0].legends
    entries = zip(legend.get_texts(), legend.legend_handles, strict=True)
    shown = {text.get_text(): to_hex(dot.get_color()).upper() for text, dot in entries}
    assert shown == {str(label): colour for label, colour in enumerate(style.CLASSES)}


def test_a_panel_with_nothing_below_it_shows_the_values_of_its_axis(drawn: list[Any]) -> None:
    five = summary_of(codes_of(300, [0.9, 0.8, 0.7, 0.6, 0.5]), LABELS[:300], 0)
    latents.marginals(five, "a")
    shown = [ax.xaxis.get_tick_params()["labelbottom"] for ax in drawn[0].axes]
    assert shown == [False, True, True, True, True]


def test_arms_are_rows_of_the_same_pictures(
    summary: Summary, flat: Summary, drawn: list[Any]
) -> None:
    arms: Mapping[str, Summary] = {"elbo/analytic/joint": summary, "randn": flat}
    latents.arms(arms)
    axes = drawn[0].axes
    assert len(axes) == 8
    for row, (name, of_arm) in enumerate(arms.items()):
        marginal, ordered, shell, plane = axes[4 * row : 4 * row + 4]
        assert marginal.get_title("left") == name
        counts = stairs(marginal)[0].get_data().values * 0.2 * int(of_arm["images"])
        np.testing.assert_allclose(counts, of_arm["counts"][0], rtol=1e-5)
        last = lines(ordered)[style.BLUE].get_ydata()[-1]
        assert last == of_arm["order_statistics"][0][-1]
        assert f"{of_arm['squared_norm_moments'][1]:.1f}" in shell.get_title()
        assert plane.collections[0].get_offsets().tolist() == of_arm["points"][0].tolist()
    with pytest.raises(ValueError, match="arms: at least one summary is needed"):
        latents.arms({})


def test_a_picture_is_drawn_from_a_file_of_the_summary(summary: Summary) -> None:
    buffer = io.BytesIO()
    contents: dict[str, Any] = {**summary}
    np.savez(buffer, **contents)
    buffer.seek(0)
    with np.load(buffer) as file:
        assert latents.panel(file, "a") == latents.panel(summary, "a")


def test_the_classes_can_be_told_apart_by_the_colour_blind() -> None:
    """Distances in CIELAB under simulated dichromacy (Machado, Oliveira and Fernandes 2009)."""
    linear = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in style.CLASSES])
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    for seen in DICHROMATS:
        colours = lab((linear @ np.array(seen).T).clip(0, 1))
        apart = np.linalg.norm(colours[:, None] - colours, axis=2)
        np.fill_diagonal(apart, np.inf)
        # 2.3 is a just noticeable difference (Mahy et al. 1994).
        assert apart.min() > 3 * 2.3


# Table 1 of the paper at severity 1: protanopia, deuteranopia; and ordinary sight.
DICHROMATS = (
    (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)
# Of linear sRGB, IEC 61966-2-1.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB (n, 3)."""
    t = linear @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
