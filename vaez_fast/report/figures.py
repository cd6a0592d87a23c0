"""The figures of a study's numbers, each drawn from results.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import style
from ..measures.intervals import Interval, interval
from ..study.readings import distortion, rate, values
from ..study.readings import surgery as part_of_rate
from .curves import CURVES, encoder_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = dict[str, Any]


def kl_per_dimension(results: Results) -> bytes:
    """Histogram of the latents' KLs, seed 0."""
    arms = ("elbo/analytic/joint", "elbo/total-derivative/joint", "kl/analytic/separate")
    bins = np.logspace(-7, 1, 33)
    with style.figure() as (fig, (ax,)):
        for arm in arms:
            run = next(run for run in results["runs"] if run["arm"] == arm)
            kls = np.clip(run["latents"]["kl_per_dimension"], bins[0], bins[-1])
            counts, _ = np.histogram(kls, bins)
            ax.stairs(counts, bins, color=style.colour(arm), linewidth=1.8)
            # The label is at the first bar, outside the histogram if there is room.
            first = int(counts.nonzero()[0][0])
            room = first > len(bins) // 4
            ax.text(
                float(bins[first]),
                float(counts[first]) + 1.5,
                encoder_of(arm),
                color=style.colour(arm),
                ha="right" if room else "left",
                va="bottom",
                fontsize=9.5,
            )
        ax.set_xscale("log")
        ax.margins(y=0.12)
        ax.set_xlabel("mean KL of one latent dimension, nats (log axis)")
        ax.set_ylabel("dimensions")
        ax.set_title("Where the rate sits: KL by dimension, test split, seed 0")
        return style.png(fig)


LABEL_AT = {
    "elbo/total-derivative/joint": (-8, 2, "right"),
    "elbo/analytic/joint": (-8, -12, "right"),
}


def rate_distortion(results: Results) -> bytes:
    """Every arm as a point of rate and distortion."""
    with style.figure() as (fig, (ax,)):
        arms = list(dict.fromkeys(run["arm"] for run in results["runs"]))
        for arm in arms:
            x, y = (interval(values(results, arm, read)) for read in (rate, distortion))
            marker = "s" if "simultaneous" in arm else "D" if arm == "randn" else "o"
            ax.errorbar(
                x.mean,
                y.mean,
                xerr=x.half,
                yerr=y.half,
                color=style.colour(arm),
                marker=marker,
                markersize=5,
                linewidth=1.0,
            )
            if arm.startswith("elbo"):  # the others coincide at rate 0
                name = arm.removeprefix("elbo/").replace("analytic/joint/beta", "β")
                # The three estimators end close together, so their labels go to different sides.
                dx, dy, align = LABEL_AT.get(arm, (7, 4, "left"))
                ax.annotate(
                    name.removesuffix("/joint"),
                    (x.mean, y.mean),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha=align,
                    fontsize=9,
                    color=style.colour(arm),
                )
        floor = -results["beside"]["marginal_log_prob"]
        ax.axhline(floor, color=style.GREY, linewidth=0.8, linestyle=":")
        ax.text(
            0.99, floor, "pixel marginals ",
            transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=9.5,
            color=style.GREY,
        )  # fmt: skip
        ax.set_xlabel("rate, nats per image")
        ax.set_ylabel("distortion −E log p(x|z), nats per image")
        ax.set_title("Rate and distortion of every arm, test split")
        return style.png(fig)


def _dots(
    ax: Axes, names: Sequence[str], points: Sequence[Interval], colours: Sequence[str]
) -> None:
    for i, (point, colour) in enumerate(zip(points, colours, strict=True)):
        ax.errorbar(point.mean, -i, xerr=point.half, color=colour, marker="o", markersize=6)
        ax.annotate(
            f"{point.mean:.1f}", (point.mean, -i), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=9, color=colour,
        )  # fmt: skip
    ax.set_yticks([-i for i in range(len(names))], names)
    ax.set_ylim(-len(names) + 0.3, 0.8)
    ax.margins(x=0.1)


def decoder_score(results: Results) -> bytes:
    arms = [
        arm for arm in dict.fromkeys(run["arm"] for run in results["runs"]) if "beta" not in arm
    ]
    scores = [interval([-value for value in values(results, arm, distortion)]) for arm in arms]
    with style.figure(height=5.0) as (fig, (ax,)):
        _dots(ax, arms, scores, [style.colour(arm) for arm in arms])
        ax.axvline(
            results["beside"]["marginal_log_prob"], color=style.GREY, linewidth=0.8, linestyle=":"
        )
        ax.set_xlabel("decoder score E log p(x|z), nats (dotted: pixel marginals)")
        ax.set_title("What the decoder learnt, test split")
        return style.png(fig)


def surgery(results: Results) -> bytes:
    """The parts of the rate, for arms with a positive rate."""
    parts = (
        ("index_information", "index information I(z; n)", style.BLUE),
        ("total_correlation", "total correlation", style.ORANGE),
        ("dimension_wise_kl", "dimension-wise KL", style.GREEN),
    )
    arms = [
        arm
        for arm in dict.fromkeys(run["arm"] for run in results["runs"])
        if arm.startswith("elbo")
    ]
    with style.figure() as (fig, (ax,)):
        for i, arm in enumerate(arms):
            left = 0.0
            for part, label, colour in parts:
                width = interval(values(results, arm, part_of_rate(part))).mean
                ax.barh(-i, width, left=left, color=colour, label=label if i == 0 else None)
                if width > 0.8:
                    ax.text(
                        left + width / 2, -i, f"{width:.1f}", ha="center", va="center",
                        color="white", fontsize=9.5,
                    )  # fmt: skip
                left += width
        ax.set_yticks([-i for i in range(len(arms))], arms, fontsize=9)
        ax.axvline(
            results["beside"]["log_aggregate_images"], color=style.BLACK, linewidth=0.8, ls=":"
        )
        ax.set_xlabel("nats per image (dotted: log N, a limit of I)")
        ax.set_title("ELBO surgery: what the rate is made of")
        ax.legend(loc="lower right", fontsize=9, frameon=False)
        return style.png(fig)


def k_curve(results: Results) -> bytes:
    run = next(r for r in results["runs"] if "k_curve" in r)
    curve = run["k_curve"]
    with style.figure() as (fig, (ax,)):
        ax.plot(curve["k"], curve["log_px"], color=style.colour(run["arm"]), marker="o")
        for k, value in zip(curve["k"], curve["log_px"], strict=True):
            if k in (1, 8, 128, curve["k"][-1]):
                ax.annotate(
                    f"{value:.1f}", (k, value), xytext=(0, -14), textcoords="offset points",
                    ha="center", fontsize=9.5,
                )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.margins(y=0.15)
        ax.set_xlabel("importance samples k")
        ax.set_ylabel("log p(x), nats per image")
        ax.set_title(
            f"{run['arm']}, seed 0, {curve['images']} test images: a bound that k tightens"
        )
        return style.png(fig)


DRAWINGS: dict[str, Callable[[Results], bytes]] = {
    **CURVES,
    "decoder-score.png": decoder_score,
    "kl-per-dimension.png": kl_per_dimension,
    "rate-distortion.png": rate_distortion,
    "surgery.png": surgery,
    "k-curve.png": k_curve,
}
