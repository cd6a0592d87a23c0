"""A sweep's report: sweep.md with its figure, and sweep.html, one file that opens offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing import style
from ..drawing.page import Block, Figure, Heading, Table, Text
from ..measures.intervals import interval
from ..study.readings import number
from ..study.sweep import SCHEMA
from . import table_page

Results = dict[str, Any]
FILES = table_page.files("sweep")
FIGURE = FILES[0]

QUANTITIES = {
    "rate": number("test.rate"),
    "distortion": number("test.distortion"),
    "bound": number("kl_lower.value"),
    "upper": number("kl_upper.value"),
    "shell": number("squared_norm.shell"),
    "informative": number("informative"),
    "active": number("active_units"),
}
COUNTS = ("informative", "active")
RATES = (0.1, 1, 2, 5, 10, 20, 50, 100, 200)  # shown on the axis


def write(out: Path) -> Results:
    """Write sweep.md, sweep.html and sweep.png into `out`; returns the content of results.json.

    Raises:
        OutputError: `out` holds no results of a sweep, or cannot be written.
    """
    return table_page.write(out, "sweep", SCHEMA, figure, blocks)


def runs_of(results: Results, latent: int, beta: float) -> list[dict[str, Any]]:
    """The records of one setting, one per seed."""
    return [r for r in results["runs"] if (r["latent"], r["beta"]) == (latent, beta)]


def means(results: Results, latent: int, beta: float) -> dict[str, float]:
    """The quantities of one setting, means over its seeds."""
    runs = runs_of(results, latent, beta)
    return {name: sum(map(read, runs)) / len(runs) for name, read in QUANTITIES.items()}


def settings(results: Results) -> list[tuple[int, float]]:
    """(latent size, β) of every setting."""
    config = results["config"]
    return [(latent, beta) for latent in config["latents"] for beta in config["betas"]]


def sentences(results: Results) -> list[str]:
    """What drives the bound, and where z lies on a shell."""
    from scipy.stats import spearmanr

    found = {key: means(results, *key) for key in settings(results)}
    rates, bounds = ([one[name] for one in found.values()] for name in ("rate", "bound"))
    least, most = (
        min(found, key=lambda k: found[k]["bound"]),
        max(found, key=lambda k: found[k]["bound"]),
    )
    ends = " ".join(
        f"{word} {found[key]['bound']:.2f} nats at a rate of {found[key]['rate']:.1f} "
        f"({_named(key)})"
        for word, key in (("from", least), ("to", most))
    )
    first = f"The bound of KL(q(z) ‖ N(0, I)) goes {ends}."
    if len(found) > 2:
        test = spearmanr(rates, bounds)
        verb = "rises with" if test.statistic > 0 else "falls with"
        verb = verb if test.pvalue < 0.05 else "is not explained by"
        first = (
            f"The bound of KL(q(z) ‖ N(0, I)) {verb} the rate (rank correlation "
            f"{test.statistic:.2f}, p = {test.pvalue:.2g}, {len(found)} settings): {ends}."
        )
    informed = {key: one for key, one in found.items() if one["informative"] >= 0.5}
    shapes: dict[str, list[tuple[int, float]]] = {"shell": [], "tails": [], "unclear": []}
    for key in informed:
        shapes[shape_of(results, *key)].append(key)
    second = (
        f"Of {len(informed)} settings with informative latents, z lies on a shell (var |z|² below "
        f"2d) in {_where(shapes['shell'])}, and has heavier tails than N(0, I) in "
        f"{_where(shapes['tails'])}."
    )
    if shapes["unclear"]:
        second += f" The interval over seeds holds 2d in {_where(shapes['unclear'])}."
    return [first, second]


def shape_of(results: Results, latent: int, beta: float) -> str:
    """Whether var |z|² / 2d is below 1 (shell), above (tails) or, for these seeds, unclear."""
    found = [QUANTITIES["shell"](run) for run in runs_of(results, latent, beta)]
    half = interval(found).half if len(found) > 1 else 0.0
    mean = sum(found) / len(found)
    if abs(mean - 1.0) <= half:
        return "unclear"
    return "shell" if mean < 1.0 else "tails"


def _named(key: tuple[int, float]) -> str:
    return f"{key[0]} latents, β = {key[1]:g}"


def _where(keys: Sequence[tuple[int, float]]) -> str:
    # "3 (2 latents: β 0.5, 1; 5 latents: β 1)"
    sizes: dict[int, list[str]] = {}
    for latent, beta in keys:
        sizes.setdefault(latent, []).append(f"{beta:g}")
    named = "; ".join(f"{size} latents: β {', '.join(betas)}" for size, betas in sizes.items())
    return f"{len(keys)} ({named})" if keys else "none"


def blocks(results: Results) -> Iterator[Block]:
    """The page of the report."""
    config, environment = results["config"], results["environment"]
    length = f"{config['epochs']} epochs" if config["epochs"] else f"{config['steps']:,} steps"
    yield Heading(1, "What drives the law of z: latent size and β")
    yield Text(
        f"{config['model']} on {config['data']} ({config['binarize']} binarisation), "
        f"{config['seeds']} seeds, {length}, {config['precision']} products on "
        f"{environment['device']}, torch {environment['torch']}. The bound is the lower bound of "
        "KL(q(z) ‖ N(0, I)) in nats by the Gaussian or mixture that fits validation codes best, on "
        "test codes. “At most” is the plug-in estimate with the posteriors of all training images, "
        "which is loose where the rate is far above the logarithm of their number."
    )
    for sentence in sentences(results):
        yield Text(sentence)
    yield Figure(
        FIGURE,
        "Left: the bound against the rate; right: the variance of |z|² over 2d against β (1 is "
        "N(0, I), below a shell, above heavy tails). One line a latent size, means over seeds.",
    )
    yield table(results)


def table(results: Results) -> Table:
    """Every setting's numbers, with 95 % t-intervals over the seeds if there are several."""
    rows = []
    for latent, beta in settings(results):
        runs = runs_of(results, latent, beta)
        cells = []
        for name, read in QUANTITIES.items():
            found = [read(run) for run in runs]
            if name in COUNTS:
                cells.append(f"{sum(found) / len(found):.1f}")
            else:
                cells.append(interval(found).text() if len(found) > 1 else f"{found[0]:.3g}")
        rows.append((str(latent), f"{beta:g}", *cells))
    head = (
        *("latents", "β", "rate", "distortion", "at least", "at most", "var |z|² / 2d"),
        *("informative", "active"),
    )
    return Table(head, rows)


def figure(results: Results) -> bytes:
    """The bound against the rate, and the shell against β, by latent size."""
    config = results["config"]
    colours = (style.BLACK, style.BLUE, style.SKY, style.GREEN, style.ORANGE, style.VERMILLION)
    with style.figure(2, height=3.8) as (drawn, (left, right)):
        for i, latent in enumerate(config["latents"]):
            points = [means(results, latent, beta) for beta in config["betas"]]
            colour = colours[i % len(colours)]
            line: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4}
            order = np.argsort([p["rate"] for p in points])
            left.plot(
                [points[j]["rate"] for j in order], [points[j]["bound"] for j in order],
                label=str(latent), **line,
            )  # fmt: skip
            right.plot(config["betas"], [p["shell"] for p in points], **line)
        if all(means(results, *key)["bound"] > 0 for key in settings(results)):
            left.set_xscale("log")
            left.set_yscale("log")
            low, high = left.get_xlim()
            shown = [rate for rate in RATES if low <= rate <= high]
            left.set_xticks(shown, [f"{rate:g}" for rate in shown])
            left.minorticks_off()
        left.set_xlabel("rate, nats per image")
        left.set_ylabel("KL(q(z) ‖ N(0, I)), at least, nats")
        right.axhline(1.0, color=style.GREY, linewidth=0.8, linestyle=":")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel("β")
        right.set_ylabel("var |z|² / 2d")
        drawn.legend(
            *left.get_legend_handles_labels(), title="latents", loc="outside lower center",
            ncols=len(config["latents"]), frameon=False,
        )  # fmt: skip
        return style.png(drawn)
