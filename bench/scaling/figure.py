"""The figure of the scaling page."""

from __future__ import annotations

from typing import Any

from bench.scaling.model import fitted, layout_of, median
from vaez_fast.drawing import style

Record = dict[str, Any]


def figure(results: Record) -> bytes:
    """A step against the processes, and images a second with fixed rows a process: a PNG."""
    model, plan = fitted(results), results["plan"]
    colours = (style.BLUE, style.GREEN, style.VERMILLION, style.PURPLE)
    single = [layout for layout in results["layouts"] if layout["threads"] == 1]
    counts = [layout["processes"] for layout in single]
    with style.figure(2, width=10.5) as (drawn, (left, right)):
        for batch, colour in zip(plan["strong"], colours, strict=False):
            points = [(of["processes"], median(of, batch)) for of in single]
            measured = [(n, 1e3 * t) for n, t in points if t is not None]
            left.plot(*zip(*measured, strict=True), "o-", color=colour, label=f"batch {batch:,}")
            if model is not None:
                known = [n for n in counts if n in model.slowdown]
                modelled = [1e3 * model.seconds(batch, n) for n in known]
                left.plot(known, modelled, "--", color=colour)
            threads = median(layout_of(results, 1, 2), batch)
            if threads is not None:
                left.plot(1, 1e3 * threads, "x", color=colour)
        weak = [
            (n, median(layout, plan["weak"] * n)) for n, layout in zip(counts, single, strict=True)
        ]
        rates = [(n, plan["weak"] * n / t) for n, t in weak if t is not None]
        right.plot(*zip(*rates, strict=True), "o-", color=style.BLUE, label="measured")
        ideal = [n * rates[0][1] / rates[0][0] for n in counts]
        right.plot(counts, ideal, "--", color=style.GREY, label="in proportion")
        for ax in (left, right):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:,g}")
            ax.yaxis.set_minor_formatter("{x:,g}")
        left.set_ylabel("milliseconds a step")
        right.set_ylabel("images a second")
        for ax, title in ((left, "the batch fixed"), (right, f"{plan['weak']} rows a process")):
            ax.set_xscale("log", base=2)
            ax.set_xticks(counts, [str(n) for n in counts])
            ax.set_xlabel("processes")
            ax.set_title(title)
            ax.legend(fontsize=9, frameon=False)
        return style.png(drawn)
