"""The figures of a study's generated images, from results.json and the runs' image grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import style
from ..measures.intervals import interval
from ..measures.samplers import SAMPLERS
from ..study.arrays import RECONSTRUCTIONS, TEST_IMAGES
from ..study.readings import ANALYTIC, frechet, values
from .tables import has_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = dict[str, Any]
Images = dict[str, dict[str, np.ndarray]]  # arm → sampler → (count, 784) uint8


def image_distance(results: Results) -> bytes:
    """Fréchet distance by arm and sampler, with real images and the mean digit for comparison."""
    arms = [ANALYTIC, "elbo/total-derivative/joint"]
    arms += [run["arm"] for run in results["runs"] if "beta" in run["arm"] and run["seed"] == 0][:2]
    arms += ["kl/total-derivative/separate", "randn"]
    bounds = results["beside"]["images"]
    markers = dict(zip(SAMPLERS, "osD^vPX", strict=True))
    with style.figure(height=5.4) as (fig, (ax,)):
        for i, arm in enumerate(arms):
            for j, name in enumerate(SAMPLERS):
                if not has_images(results, arm, name):
                    continue
                point = interval(values(results, arm, frechet(name)))
                ax.errorbar(
                    point.mean, -i + 0.3 - 0.1 * j, xerr=point.half, marker=markers[name],
                    color=style.colour(arm), markersize=5, linewidth=1.0, linestyle="none",
                    label=name if i == 0 else None,
                )  # fmt: skip
        for name, text in (("floor", "real images"), ("ceiling", "mean digit")):
            value = bounds[name]["frechet"]
            ax.axvline(value, color=style.GREY, linewidth=0.8, linestyle=":")
            ax.text(
                value, 0.62, f" {text}", fontsize=9.5, color=style.GREY,
                ha="left" if name == "floor" else "right",
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_ylim(-len(arms) + 0.4, 0.9)
        ax.set_yticks([-i for i in range(len(arms))], arms, fontsize=9)
        ax.set_xlabel("Fréchet distance in three classifiers' features (log axis)")
        ax.set_title("Images by arm and by where z is drawn")
        legend = ax.legend(title="z drawn from", fontsize=9, frameon=False, loc="lower center")
        legend.get_title().set_fontsize(9)
        return style.png(fig)


def image_grid(results: Results, images: Images) -> bytes:
    """Every arm and sampler: means of p(x|z), with the same base noise down each column."""
    arms, shown = list(images), 4
    with style.figure(len(SAMPLERS), width=9.0, height=0.24 * len(arms) + 0.55) as (fig, axes):
        for ax, name in zip(axes, SAMPLERS, strict=True):
            _draw_rows(ax, [_shown(images[arm], name, shown) for arm in arms])
            # The longest name is wider than its column.
            ax.set_title("-\n".join(name.rsplit("-", 1)), fontsize=8.5)
        _label_rows(axes[0], arms, fontsize=7)
        return style.png(fig)


def _draw_rows(ax: Axes, rows: Sequence[np.ndarray]) -> None:
    # rows: each (count, 784) or (count, 28, 28) grey levels, drawn dark on white
    strips = [np.hstack(list(row.reshape(-1, 28, 28))) for row in rows]
    ax.imshow(255 - np.vstack(strips), cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _label_rows(ax: Axes, labels: Sequence[str], fontsize: float) -> None:
    ax.set_yticks([28 * i + 14 for i in range(len(labels))], labels, fontsize=fontsize)
    ax.tick_params(length=0)


def _shown(grids: dict[str, np.ndarray], sampler: str, count: int) -> np.ndarray:
    # (count, 28, 28); white where an arm has no such sampler
    blank = np.zeros((count, 784), dtype=np.uint8)
    return grids.get(sampler, blank)[:count].reshape(-1, 28, 28)


def image_rows(results: Results, images: Images) -> bytes:
    """The ordinary VAE's images by sampler."""
    with style.figure(height=4.2) as (fig, (ax,)):
        _draw_rows(ax, [images[ANALYTIC][name] for name in SAMPLERS])
        labels = [
            f"{name}\n{interval(values(results, ANALYTIC, frechet(name))).mean:.2f}"
            for name in SAMPLERS
        ]
        _label_rows(ax, labels, fontsize=9)
        floor = results["beside"]["images"]["floor"]["frechet"]
        ax.set_title(
            f"{ANALYTIC}: the same decoder, z from seven laws\n"
            f"(Fréchet distance under each; real images {floor:.2f})"
        )
        return style.png(fig)


def reconstructions(results: Results, images: Images) -> bytes:
    """Test images, and below them what each arm decodes from one z of each."""
    del results
    rows = {"test images": images[ANALYTIC][TEST_IMAGES]}
    rows |= {arm: grids[RECONSTRUCTIONS] for arm, grids in images.items()}
    with style.figure(height=0.35 * len(rows) + 0.4) as (fig, (ax,)):
        _draw_rows(ax, list(rows.values()))
        _label_rows(ax, list(rows), fontsize=7)
        ax.set_anchor("E")  # long labels need the room on the left
        return style.png(fig)


GRIDS: dict[str, Callable[[Results, Images], bytes]] = {
    "images.png": image_rows,
    "images-all.png": image_grid,
    "reconstructions.png": reconstructions,
}
