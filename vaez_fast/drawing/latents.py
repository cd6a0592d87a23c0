"""Pictures of the law of z, each drawn from the arrays of `vaez_fast.measures.law_summary`.

z is blue, N(0, I) is black, and as many exact normal draws are grey: they show what noise can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = Mapping[str, np.ndarray]

BAND = 0.95
COLUMNS = 4  # of a page of small panels
# The parts of N(0, I₂) inside the circles of a scatter.
CIRCLES = (0.5, 0.95)
TAIL = 0.001  # what may lie beyond an axis of |z|²
Z, NORMAL, EXACT = style.SKY, style.BLACK, style.GREY


def panel(summary: Summary, title: str) -> bytes:
    """One picture for a page: the most informative latent twice, |z|², and two latents by class."""
    with style.figure(4, columns=2, height=6.5) as (drawn, (marginal, ordered, shell, plane)):
        latent = f"z{summary['latents'][0]}"
        draw_marginal(marginal, summary, 0)
        marginal.set(title=f"{latent}, rate {summary['kl'][0]:.1f} nats", ylabel="density")
        draw_quantiles(ordered, summary, 0)
        ordered.set(
            title=f"{latent}: quantiles", xlabel="quantile of N(0, 1)", ylabel="quantile of z"
        )
        draw_squared_norm(shell, summary)
        d = _number(summary, "latents_measured")
        shell.set(title=f"|z|² over {d} latents", ylabel="density")
        draw_pair(plane, summary, 0)
        plane.set_title("two latents by class")
        _class_legend(plane, summary, loc="center left", bbox_to_anchor=(1.0, 0.5))
        drawn.suptitle(f"{title}\n{_images(summary)}; black: N(0, I); grey: exact normals")
        return style.png(drawn)


def arms(summaries: Mapping[str, Summary]) -> bytes:
    """A row of the same pictures for each arm: its most informative latent, |z|², two latents.

    Raises:
        ValueError: there is no arm.
    """
    if not summaries:
        raise ValueError("arms: at least one summary is needed")
    with style.figure(4 * len(summaries), columns=4, height=1.75 * len(summaries) + 0.6) as (
        drawn,
        panels,
    ):
        for row, (name, summary) in enumerate(summaries.items()):
            marginal, ordered, shell, plane = panels[4 * row : 4 * row + 4]
            draw_marginal(marginal, summary, 0)
            draw_quantiles(ordered, summary, 0)
            draw_squared_norm(shell, summary)
            draw_pair(plane, summary, 0)
            marginal.set_title(name, fontsize=10, loc="left")
            variance, d = summary["squared_norm_moments"][1], _number(summary, "latents_measured")
            shell.set_title(f"variance {variance:.1f} (χ²: {2 * d})", fontsize=9)
            for ax in (marginal, shell):
                ax.set_yticks([])
            for ax in (marginal, ordered, shell, plane):
                ax.set(xlabel="", ylabel="")
                ax.tick_params(labelsize=9)
        for ax, label in zip(panels[-4:], ("z", "quantiles", "|z|²", "two latents"), strict=True):
            ax.set_xlabel(label)
        return style.png(drawn)


def marginals(summary: Summary, title: str) -> bytes:
    """A histogram for each shown latent, the density of N(0, 1) over it."""
    said = f"{title}\nz of {_images(summary)}; black: N(0, 1); grey: exact normals"
    with _page(summary, said) as (drawn, panels):
        for i, ax in enumerate(panels):
            draw_marginal(ax, summary, i)
            ax.set_xlabel("")
        drawn.supxlabel("z", fontsize=11)
        drawn.supylabel("density", fontsize=11)
        return style.png(drawn)


def quantiles(summary: Summary, title: str) -> bytes:
    """A QQ plot for each shown latent less its diagonal, with the band of as many exact normals.

    Without the diagonal, the band of 10,000 images is wide enough to be seen (van Buuren and
    Fredriks, "Worm plot", 2001).
    """
    said = f"{title}\nQQ plots, {_images(summary)}; grey: exact normals and their 95 % band"
    with _page(summary, said) as (drawn, panels):
        for i, ax in enumerate(panels):
            draw_quantiles(ax, summary, i, less_diagonal=True)
        drawn.supxlabel("quantile of N(0, 1)", fontsize=11)
        drawn.supylabel("quantile of z, less that of N(0, 1)", fontsize=11)
        return style.png(drawn)


def squared_norms(summary: Summary, title: str) -> bytes:
    """|z|² over the measured latents against χ² of as many degrees of freedom."""
    d = _number(summary, "latents_measured")
    with style.figure() as (drawn, (ax,)):
        draw_squared_norm(ax, summary)
        ax.set_title(
            f"{title}\n|z|² over {d} latents, {_images(summary)}; black: χ²; grey: exact normals"
        )
        ax.set_ylabel("density")
        return style.png(drawn)


def pairs(summary: Summary, title: str) -> bytes:
    """Each chosen pair of latents by class, beside as many draws of N(0, I)."""
    count = len(summary["pairs"])
    with style.figure(count + 1, height=3.9 if count > 1 else 4.9) as (drawn, panels):
        for i, ax in enumerate(panels[:count]):
            draw_pair(ax, summary, i)
            kind = "the most dependent" if i else "the most informative"
            ax.set_title(f"{kind}\nI(z; z′) = {summary['pair_information'][i]:.2f} nats")
        _scatter(panels[-1], summary["normal_points"], EXACT, _reach(summary))
        panels[-1].set_title("exact normals\nN(0, I)")
        _class_legend(drawn, summary, loc="outside lower center", ncols=len(style.CLASSES))
        circles = " and ".join(f"{100 * part:.0f} %" for part in CIRCLES)
        drawn.suptitle(f"{title}\ncircles hold {circles} of N(0, I)")
        return style.png(drawn)


def draw_marginal(ax: Axes, summary: Summary, i: int) -> None:
    """The histogram of the i-th shown latent, and the density of N(0, 1)."""
    edges = summary["edges"].astype(np.float64)
    heights = summary["images"] * np.diff(edges)
    ax.stairs(summary["counts"][i] / heights, edges, fill=True, color=Z)
    ax.stairs(summary["normal_counts"][i] / heights, edges, color=EXACT, linewidth=0.8)
    x = np.linspace(edges[0], edges[-1], 401)
    ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color=NORMAL, linewidth=1.4)
    occupied = (summary["counts"].sum(0) + summary["normal_counts"].sum(0)) > 0
    reach = max([4.0, *np.abs(edges[:-1][occupied]), *np.abs(edges[1:][occupied])])
    ax.set(xlim=(-reach, reach), ylim=(0.0, None), xticks=[-4, -2, 0, 2, 4])
    ax.set_xlabel(f"z{summary['latents'][i]}")


def draw_quantiles(ax: Axes, summary: Summary, i: int, *, less_diagonal: bool = False) -> None:
    """The QQ plot of the i-th shown latent, and the 95 % band of as many exact normals."""
    x, low, high = normal_band(summary["ranks"], _number(summary, "images"))
    below = x if less_diagonal else np.zeros_like(x)
    ax.fill_between(x, low - below, high - below, color=EXACT, alpha=0.3, linewidth=0)
    exact, z = (summary[f"{who}order_statistics"][i] for who in ("normal_", ""))
    ax.plot(x, exact - below, color=EXACT, linewidth=0.8)
    ax.plot(x, x - below, color=NORMAL, linewidth=1.0)
    ax.plot(x, z - below, color=style.BLUE)
    ax.set_xticks([-4, -2, 0, 2, 4])


def normal_band(ranks: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the k-th smallest of n draws of N(0, 1) lies: quantile, and the ends of a 95 % band.

    The k-th smallest of n uniform numbers is Beta(k, n + 1 − k) (David and Nagaraja, *Order
    statistics*, 2003, section 2.1), and Φ⁻¹ maps its quantiles. The band is of each rank by itself:
    exact normals are outside it at 5 % of their ranks.

    Args:
        ranks: (r,) integers k from 1 to n.
        n: the number of draws.

    Returns:
        Φ⁻¹((k − ½)/n), and the 2.5 % and 97.5 % quantiles: each (r,) float64.
    """
    from scipy.stats import beta, norm

    k = ranks.astype(np.float64)
    low, high = (norm.ppf(beta.ppf(p, k, n + 1 - k)) for p in ((1 - BAND) / 2, (1 + BAND) / 2))
    return norm.ppf((k - 0.5) / n), low, high


def draw_squared_norm(ax: Axes, summary: Summary) -> None:
    """The histogram of |z|², the density of χ², and their means and variances."""
    from scipy.stats import chi2

    d, n = _number(summary, "latents_measured"), _number(summary, "images")
    edges = summary["squared_norm_edges"].astype(np.float64)
    heights = n * np.diff(edges)
    counts = summary["squared_norm_counts"]
    exact = summary["normal_squared_norm_counts"]
    ax.stairs(counts / heights, edges, fill=True, color=Z)
    ax.stairs(exact / heights, edges, color=EXACT, linewidth=0.8)
    x = np.linspace(edges[0], edges[-1], 801)[1:]
    ax.plot(x, chi2.pdf(x, d), color=NORMAL, linewidth=1.4)
    within = int(np.searchsorted(np.cumsum(counts), (1.0 - TAIL) * n))
    right = max(edges[min(within + 1, len(counts))], chi2.ppf(1.0 - TAIL, d))
    # The density of one degree of freedom has no bound at 0.
    top = max(*(counts / heights), *(exact / heights), chi2.pdf(max(d - 2.0, 0.1), d))
    ax.set(xlim=(0.0, right), ylim=(0.0, 1.08 * top))
    mean, variance = summary["squared_norm_moments"]
    ax.set_xlabel(f"mean {mean:.1f}, variance {variance:.1f}\n(N(0, I): {d} and {2 * d})")


def draw_pair(ax: Axes, summary: Summary, i: int) -> None:
    """The i-th pair of latents by class; circles hold 50 % and 95 % of N(0, I)."""
    colours = [_colour(label) for label in summary["labels"]]
    _scatter(ax, summary["points"][i], colours, _reach(summary))
    a, b = summary["pairs"][i]
    ax.set(xlabel=f"z{a}", ylabel=f"z{b}")


def _scatter(ax: Axes, points: np.ndarray, colour: Any, reach: float) -> None:
    from matplotlib.patches import Circle

    ax.scatter(points[:, 0], points[:, 1], s=5, c=colour, linewidths=0, alpha=0.8)
    for part in CIRCLES:
        radius = float(np.sqrt(-2.0 * np.log(1.0 - part)))
        ax.add_patch(Circle((0.0, 0.0), radius, fill=False, color=NORMAL, linewidth=1.0))
    ticks = np.arange(-2 * (reach // 2), reach + 0.1, 2)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=ticks, yticks=ticks, aspect="equal")


def _reach(summary: Summary) -> float:
    # All scatters of a picture have one scale, which leaves no point out.
    farthest = max(np.abs(summary[name]).max() for name in ("points", "normal_points"))
    return float(np.ceil(2 * max(farthest, 3.5)) / 2)


def _colour(label: int) -> str:
    return style.CLASSES[label % len(style.CLASSES)]


def _class_legend(drawn: Axes | Figure, summary: Summary, **where: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="none", color=_colour(label), label=str(label))
        for label in np.unique(summary["labels"])
    ]
    drawn.legend(
        handles=handles, frameon=False, handletextpad=0.0, columnspacing=1.0, labelspacing=0.3,
        **where,
    )  # fmt: skip


@contextmanager
def _page(summary: Summary, title: str) -> Iterator[tuple[Figure, list[Axes]]]:
    # A small panel for each shown latent, all of one scale.
    count = len(summary["latents"])
    columns = min(count, COLUMNS)
    height = 1.7 * -(-count // columns) + 1.0
    with style.figure(count, columns=columns, height=height, sharex=True, sharey=True) as page:
        drawn, panels = page
        drawn.suptitle(title)
        for i, ax in enumerate(panels):
            ax.set_title(f"z{summary['latents'][i]}, rate {summary['kl'][i]:.2f} nats", fontsize=10)
            # The last row may be shorter than the row above, which then shows the labels itself.
            ax.tick_params(labelbottom=i + columns >= count)
        yield drawn, panels


def _images(summary: Summary) -> str:
    return f"{_number(summary, 'images'):,} test images"


def _number(summary: Summary, name: str) -> int:
    return int(summary[name])
