"""The figures of a run's rows, beside the speed of the memory and beside their rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.records.bootstrap import Estimate, log_median
from bench.records.records import Record, Row, family, reference_of
from bench.records.summary import time_text
from vaez_fast.drawing import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Textbook code is black or grey, compiled code warm or olive, ours blue, green or wine.
COLOURS = {
    "eager": style.BLACK,
    "textbook": style.BLACK,
    "torch.randn": style.BLACK,
    "eager graph": style.GREY,
    "compiled": style.ORANGE,
    "compiled graph": style.OLIVE,
    "compiled max-autotune": style.VERMILLION,
    "careful": style.PURPLE,
    "fallback": style.SKY,
    "normal": style.BLUE,
    "triton": style.BLUE,
    "triton graph": style.GREEN,
    "engine float32": style.SKY,
    "engine bfloat16": style.BLUE,
    "products float32": style.GREY,
    "products bfloat16": style.OLIVE,
    "float32": style.SKY,
    "bfloat16": style.BLUE,
    "layers float32": style.SKY,
    "layers bfloat16": style.BLUE,
    "kernel tf32": style.WINE,
    "kernel bfloat16": style.GREEN,
    "elbo/analytic/joint": style.colour("elbo/analytic/joint"),
    "elbo/total-derivative/joint": style.colour("elbo/total-derivative/joint"),
    "elbo/sticking-the-landing/joint": style.colour("elbo/sticking-the-landing/joint"),
}
NARROW_TICKS = (0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
STRIP = 1.15  # height of a group's history, inches
MARKERS = "osD^vPX*"
INK = "#555555"
# Narrow, so that the text can be read on a phone, which shrinks figures.
WIDTH = 5.6


def colour(provider: str) -> str:
    """A provider's colour; grey if it has none of its own."""
    return COLOURS.get(provider, style.GREY)


def speed_up(row: Row, group: dict[str, Row]) -> Estimate:
    """How many times as fast as the group's first row, with the interval from the rounds."""
    first = reference_of(group)
    return (log_median(first.seconds) - log_median(row.seconds)).estimate()


def roofline(rows: Sequence[Row], copy: float, title: str) -> bytes:
    """Useful bytes a second over the bytes of a call, as a PNG.

    Args:
        rows: of groups with a floor in bytes.
        copy: GB/s of a plain copy, the roof.
    """
    with style.figure(width=WIDTH, height=5.6) as (drawn, (ax,)):
        sizes = [float(row.info["floor_bytes"]) for row in rows]
        speeds = [size / row.own_time / 1e9 for size, row in zip(sizes, rows, strict=True)]
        _points(ax, rows, sizes, speeds)
        ax.axhline(copy, color=style.BLACK)
        left, right = min(sizes) / 3, max(sizes) * 3
        bottom, top = min(speeds) / 2, copy * 2
        ax.set(xlim=(left, right), ylim=(bottom, top))
        ax.annotate(
            f"a plain copy: {copy:,.1f} GB/s", (left * 1.2, copy * 1.06), va="bottom", fontsize=9.5
        )
        _times(ax, (left, right), (bottom, top))
        ax.set_xlabel("bytes that a call must move, the floor")
        ax.set_ylabel("GB/s, counting the floor")
        ax.xaxis.set_major_formatter(_bytes)
        drawn.suptitle(title)
        _legend(drawn, rows)
        return style.png(drawn)


def traffic(rows: Sequence[Row], copy: float, title: str) -> bytes:
    """Useful bytes a second against useful bytes over moved bytes, with a sloping roof; a PNG.

    Args:
        rows: with known moved bytes.
        copy: GB/s of a plain copy.
    """
    with style.figure(width=WIDTH, height=5.6) as (drawn, (ax,)):
        parts = [row.info["floor_bytes"] / row.info["moved_bytes"] for row in rows]
        speeds = [row.info["floor_bytes"] / row.own_time / 1e9 for row in rows]
        _points(ax, rows, parts, speeds)
        left, right = min(parts) / 1.5, 1.5
        ax.plot([left, 1.0], [copy * left, copy], color=style.BLACK)
        ax.plot([1.0, right], [copy, copy], color=style.BLACK)
        ax.set(xlim=(left, right), ylim=(min(speeds) / 2, copy * 2))
        ax.set_xlabel("useful part of the bytes moved (1: the floor)")
        ax.set_ylabel("GB/s, counting the floor")
        ax.xaxis.set_major_formatter(plain)
        drawn.suptitle(title)
        _legend(drawn, rows)
        return style.png(drawn)


def _points(ax: Axes, rows: Sequence[Row], x: Sequence[float], y: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(plain)
    markers = _markers(rows)
    for row, across, up in zip(rows, x, y, strict=True):
        shade = colour(row.provider)
        ax.plot(
            *(across, up, markers[family(row.group)]),
            markersize=6.5,
            markeredgecolor=shade,
            markerfacecolor=shade if _backward(row) else "white",
            alpha=0.85,
            zorder=3,
        )


def _backward(row: Row) -> bool:
    return "backward" in row.group


def _markers(rows: Sequence[Row]) -> dict[str, str]:
    families = dict.fromkeys(family(row.group) for row in rows)
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(families)}


def _times(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    # Lines of equal time, whatever the bytes of a call.
    for power in range(-7, 2):
        seconds = 10.0**power
        ax.plot(x, [side / seconds / 1e9 for side in x], ":", color=style.GREY, linewidth=0.8)
        foot, side = y[0] * seconds * 1e9, x[0] / seconds / 1e9
        place = (foot * 1.35, y[0] * 1.12) if foot > x[0] else (x[0] * 1.1, side * 0.75)
        if place[0] < x[1] / 2 and y[0] < place[1] < y[1] / 4:
            ax.annotate(time_text(seconds, 0), place, color=INK, fontsize=9)


def _legend(drawn: Figure, rows: Sequence[Row]) -> None:
    names = dict.fromkeys(row.provider for row in rows)
    handles = [_entry("o", colour(name), colour(name), name) for name in names]
    handles += [_entry(marker, INK, INK, name) for name, marker in _markers(rows).items()]
    if len({_backward(row) for row in rows}) == 2:
        handles.append(_entry("o", INK, "white", "open: forward alone"))
    drawn.legend(handles=handles, ncol=2, loc="outside lower center", frameon=False)


def _entry(marker: str, edge: str, face: str, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=edge, mfc=face, label=label)


def providers(groups: Sequence[dict[str, Row]], title: str) -> bytes:
    """Speed-ups over the first row of each group on one logarithmic axis, with intervals; a PNG."""
    names = list(dict.fromkeys(name for group in groups for name in group))
    height = 1.5 + 0.62 * len(groups) + 0.22 * math.ceil(len(names) / 3)
    with style.figure(width=WIDTH, height=height) as (drawn, (ax,)):
        for i, group in enumerate(groups):
            label = reference_of(group).group.partition(", ")[2] or reference_of(group).group
            ax.annotate(
                *(label, (0.01, i - 0.34)),
                xycoords=("axes fraction", "data"),
                fontsize=9.5,
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
            for name, row in group.items():
                offset = 0.12 + 0.3 * (names.index(name) / max(1, len(names) - 1) - 0.5)
                _dot(ax, speed_up(row, group), i + offset, name)
        ax.axvline(1.0, color=style.BLACK, linewidth=0.8)
        ax.set_xscale("log", base=2)
        low, high = ax.get_xlim()
        if high / low < 3:
            ax.set_xticks([tick for tick in NARROW_TICKS if low <= tick <= high])
        ax.xaxis.set_major_formatter(plain)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(groups) - 0.4, -0.6)
        ax.set_yticks([i + 0.5 for i in range(len(groups) - 1)], [])
        ax.set_xlabel("times as fast as the first row (2 is half the time)")
        drawn.suptitle(title)
        handles = [_entry("o", colour(name), colour(name), name) for name in names]
        columns = 3 if max(map(len, names)) <= 17 else 2
        drawn.legend(handles=handles, ncol=columns, loc="outside lower center", frameon=False)
        return style.png(drawn)


def _dot(ax: Axes, value: Estimate, y: float, provider: str) -> None:
    ax.plot(value.value, y, "o", markersize=5.5, color=colour(provider), zorder=3)
    if not math.isnan(value.low):
        ax.plot([value.low, value.high], [y, y], color=colour(provider), linewidth=1.6)


def strips(records: Sequence[Record], titles: Sequence[str], heading: str) -> bytes:
    """A strip for each group: speed-ups of our rows, run after run; a PNG.

    Lines join points of one machine, since those of two machines cannot be compared.
    """
    runs = [i for i, record in enumerate(records) if any(t in record.groups for t in titles)]
    machines = dict.fromkeys(records[i].machine["device"] for i in runs)
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(machines)}
    names = dict.fromkeys(
        row.provider
        for title in titles
        for i in runs
        for row in records[i].groups.get(title, {}).values()
        if row.ours
    )
    height = 1.6 + STRIP * len(titles)
    with style.figure(len(titles), columns=1, width=WIDTH, height=height) as (drawn, panels):
        for ax, title in zip(panels, titles, strict=True):
            ax.set_title(title.partition(", ")[2] or title, loc="left", fontsize=9.5)
            ax.axhline(1.0, color=style.BLACK, linewidth=0.8)
            for machine, marker in markers.items():
                of_machine = {
                    place: records[i].groups[title]
                    for place, i in enumerate(runs)
                    if records[i].machine["device"] == machine and title in records[i].groups
                }
                for j, name in enumerate(names):
                    _line(ax, of_machine, name, marker, 0.12 * (j - (len(names) - 1) / 2))
            _speed_up_axis(ax)
            ax.set_xlim(-0.5, len(runs) - 0.5)
            labels = [f"run {i + 1}\n{records[i].date[:10]}" for i in runs]
            ax.set_xticks(range(len(runs)), labels if ax is panels[-1] else [""] * len(runs))
        drawn.suptitle(heading)
        drawn.supylabel("times as fast as the first row", fontsize=10)
        handles = [_entry("o", colour(name), colour(name), name) for name in names]
        handles += [_entry(marker, INK, INK, name) for name, marker in markers.items()]
        drawn.legend(handles=handles, ncol=2, loc="outside lower center", frameon=False)
        return style.png(drawn)


def _line(
    ax: Axes, groups: dict[int, dict[str, Row]], name: str, marker: str, offset: float
) -> None:
    # The keys of groups are the places of their runs on the axis.
    values = {
        place + offset: speed_up(group[name], group)
        for place, group in groups.items()
        if name in group
    }
    shade = colour(name)
    middles = [value.value for value in values.values()]
    ax.plot(list(values), middles, marker=marker, markersize=6, linewidth=0.8, color=shade)
    for x, value in values.items():
        if not math.isnan(value.low):
            ax.plot([x, x], [value.low, value.high], color=shade, linewidth=1.6)


def _speed_up_axis(ax: Axes) -> None:
    ax.set_yscale("log", base=2)
    low, high = ax.get_ylim()
    low, high = min(low, 0.5) / 1.2, max(high, 2.0) * 1.2
    ax.set_ylim(low, high)
    step = 1 if high < 10 else 2
    ax.set_yticks([2.0**power for power in range(-8, 17, step) if low < 2.0**power < high])
    ax.yaxis.set_major_formatter(plain)


def plain(value: float, _: float) -> str:
    """A tick of a logarithmic axis: 0.5, 20, 3,000."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _bytes(value: float, _: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:g} {unit}"
        value /= 1000
    return f"{value:g} GB"
