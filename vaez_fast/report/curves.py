"""The figures over training steps: how z comes close to N(0, I), and how a decoder learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import style
from ..measures.intervals import interval
from ..study.readings import CURRENT, RANDN, SEPARATE, SIMULTANEOUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = dict[str, Any]

# The decay is of encoders: "separate" also stands for "simultaneous", which has the same encoder.
DECAY_ARMS = (
    "elbo/total-derivative/joint",
    "elbo/analytic/joint",
    "elbo/sticking-the-landing/joint",
    "kl/total-derivative/separate",
    "kl/analytic/separate",
    "kl/sticking-the-landing/separate",
    "kl/as-published/separate",
    "randn",
)


def encoder_of(arm: str) -> str:
    """An arm's name without its decoder, as a label for encoders' curves."""
    return arm.removesuffix("/separate").removesuffix("/joint")


def _draw(ax: Axes, arm: str, steps: Sequence[float], of_seeds: Sequence[Sequence[float]]) -> float:
    """An arm's mean over the seeds, in a band; returns its last point."""
    columns = list(zip(*of_seeds, strict=True))
    means = [interval(column).mean for column in columns]
    # The band spans the seeds: an interval's negative end would not fit on a log axis.
    low, high = [min(c) for c in columns], [max(c) for c in columns]
    colour = style.colour(arm)
    ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(steps, means, color=colour, linestyle=style.linestyle(arm))
    return means[-1]


def _curves(results: Results, arms: Sequence[str], quantity: str, ax: Axes) -> None:
    ends = []
    for arm in arms:
        decays = [run["decay"] for run in results["runs"] if run["arm"] == arm]
        # Step 0 is drawn at ½ on the logarithmic axis.
        x = [max(point["step"], 0.5) for point in decays[0]]
        last = _draw(ax, arm, x, [[point[quantity] for point in decay] for decay in decays])
        ends.append((last, arm, encoder_of(arm), x[-1]))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("training steps of the encoder (0 drawn at ½)")
    _label_ends(ax, ends)


def _label_ends(ax: Axes, ends: list[tuple[float, str, str, float]]) -> None:
    # ends: value, arm, label and x of each curve's last point. The labels stand in a column beside
    # the logarithmic axis, pushed apart if curves end close together.
    ends.sort()
    bottom, top = ax.get_ylim()
    span = np.log(top / bottom)
    places = [np.log(max(value, bottom) / bottom) / span for value, *_ in ends]
    gap = 0.058
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > 1.0:
        places[-1] = 1.0
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    for (value, arm, label, x), place in zip(ends, places, strict=True):
        colour = style.colour(arm)
        ax.annotate(
            label,
            xy=(x, max(value, bottom)),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=9.5,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkB": 1,
            },
        )


def decay(results: Results) -> bytes:
    """The article's figure: the distance of z from N(0, I) during training of the encoder."""
    beside = results["beside"]
    with style.figure() as (fig, (ax,)):
        _curves(results, DECAY_ARMS, "sample_kl", ax)
        ax.axhline(beside["null_sample_kl"], color=style.BLACK, linewidth=0.8, linestyle=":")
        ax.set_ylabel(f"sample KL of {beside['n']:,} held-out z, nats")
        ax.set_title("Diagonal Gaussian fitted to z against N(0, I); dotted: exact normals")
        return style.png(fig)


def rates(results: Results) -> bytes:
    with style.figure() as (fig, (ax,)):
        _curves(results, [arm for arm in DECAY_ARMS if arm != "randn"], "rate", ax)
        ax.set_ylabel("rate, nats per image")
        ax.set_title("Mean KL(q(z|x) ‖ N(0, I)) on held-out images")
        return style.png(fig)


def decoder_curve(results: Results) -> bytes:
    """The article's figure of the decoder: each epoch's mean distortion in training."""
    ends = []
    with style.figure() as (fig, (ax,)):
        for arm in (CURRENT, SIMULTANEOUS, SEPARATE, RANDN):
            runs = [_of_decoder(run) for run in results["runs"] if run["arm"] == arm]
            steps = runs[0][0]
            last = _draw(ax, arm, steps, [distortions for _, distortions in runs])
            ends.append((last, arm, arm, steps[-1]))
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.set_xlabel("training steps of the decoder")
        ax.set_ylabel("distortion −E log p(x|z), nats")
        ax.set_title("The decoder's distortion during training, mean of each epoch")
        _label_ends(ax, ends)
        return style.png(fig)


def _of_decoder(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    # The steps of the phase that trains the decoder, and the distortion at each.
    points = [point for point in run["curve"] if point["split"] == "train"]
    before = [point["step"] for point in points if point["phase"] == "encoder"]
    of_decoder = [point for point in points if point["phase"] != "encoder"]
    first = max(before, default=0)
    return [p["step"] - first for p in of_decoder], [p["distortion"] for p in of_decoder]


CURVES: dict[str, Callable[[Results], bytes]] = {
    "decay.png": decay,
    "rate.png": rates,
    "decoder-curve.png": decoder_curve,
}
