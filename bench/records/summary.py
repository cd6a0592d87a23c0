"""The tables printed after a run: providers side by side, ratios, the article's metrics.

`python -m bench summary FILE` prints the tables of a --benchmark-json file, with --markdown as
Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.command import Parser
from bench.records.records import RecordError, read
from bench.timing.busy import busy_line

Timed = tuple[str, dict[str, Any], float, float]  # group, extra_info, median and IQR in seconds

NOTES = (
    "Medians of rounds taken in turn; × is how many times faster than the first row.",
    "GB/s counts the bytes that the op must move at least, the floor; bytes/floor is how many",
    "times as many the provider loads and stores. Every row passed its check against float64",
    "before it was timed (error: in units of the tolerance). step/products: a training step over",
    "the fastest code at hand for its matrix products, the same shapes and dtype. of peak FLOP/s:",
    "their operations a second over those of one large product. All timed in the same run.",
)

GPU_NOTES = (
    "On a GPU, wall is the time of calls back to back, for which a caller waits: the host launches",
    "or the GPU works. Device is what the GPU takes for a call that starts with a cold L2",
    "cache; it is missing if the work waits for the GPU. Each × refers to the time before it. GB/s",
    "and step/products use the device's time. A graph row is the time of one call in a graph of",
    "many, each on tensors of its own.",
)


@dataclass(frozen=True)
class Table:
    """A group: a title, columns (name, width in text) and cells; the first column aligns left."""

    title: str
    columns: tuple[tuple[str, int], ...]
    rows: list[tuple[str, ...]]

    def text(self) -> Iterator[str]:
        yield ""
        yield self.title
        for cells in (tuple(name for name, _ in self.columns), *self.rows):
            first, *rest = zip(cells, self.columns, strict=True)
            line = f"{first[0]:<{first[1][1]}}"
            yield "  " + line + "".join(f"{cell:>{width}}" for cell, (_, width) in rest)

    def markdown(self) -> Iterator[str]:
        yield ""
        yield f"**{self.title}**"
        yield ""
        yield _pipes([name for name, _ in self.columns])
        yield _pipes(["---"] + ["---:"] * (len(self.columns) - 1))
        for cells in self.rows:
            yield _pipes(list(cells))


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def summary(rows: list[Timed], machine: dict[str, Any], markdown: bool = False) -> Iterator[str]:
    """Lines for the rows of a session, in the order in which they ran."""
    yield ""
    yield (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"triton {machine['triton']}"
    )
    for copy in {info["copy_gb_per_second"] for _, info, *_ in rows if info["floor_bytes"]}:
        yield f"a plain copy moves {copy:.1f} GB/s, read plus written"
    for table in tables(rows):
        yield from table.markdown() if markdown else table.text()
    yield ""
    yield from notes(info for _, info, *_ in rows)
    busy = busy_line(info for _, info, *_ in rows)
    if busy:
        yield ""
        yield busy


def notes(infos: Iterable[dict[str, Any]]) -> Sequence[str]:
    """The meaning of the tables' columns, for rows with this `extra_info`."""
    return NOTES + GPU_NOTES * any("device_seconds" in info for info in infos)


def tables(rows: list[Timed]) -> Iterator[Table]:
    trained = [row for row in rows if "metrics" in row[1]]
    timed = [row for row in rows if "metrics" not in row[1]]
    for title in dict.fromkeys(row[0] for row in timed):
        yield _rivals(title, [row for row in timed if row[0] == title])
    if trained:
        yield _metrics(trained)


def _rivals(title: str, rows: list[Timed]) -> Table:
    floor = rows[0][1]["floor_bytes"]
    on_gpu = any("device_seconds" in info for _, info, *_ in rows)
    firsts = rows[0][2], _device_time(rows[0][1])
    columns = [("provider", 21), ("wall" if on_gpu else "median", 10), ("±IQR/2", 10), ("×", 7)]
    columns += [("device", 10), ("×", 7)] * on_gpu
    if floor:
        title += f" ({size_text(floor)} at the floor)"
        columns += [("GB/s", 8), ("of copy", 9), ("bytes/floor", 13)]
    trains = any("step_over_products" in info for _, info, *_ in rows)
    peaks = any("peak_operations_per_second" in info for _, info, *_ in rows)
    alone = any("alone_seconds" in info for _, info, *_ in rows)
    images = all("images" in info for _, info, *_ in rows)
    columns += [("step/products", 15)] * trains + [("of peak FLOP/s", 16)] * peaks
    columns += [("alone", 10), ("× alone", 9)] * alone
    columns += [("images/s", 10)] * images
    columns += [("peak", 11), ("error", 7)]
    lines = []
    for _, info, wall, iqr in rows:
        cells = [info["provider"], time_text(wall), time_text(iqr / 2)]
        cells.append(_times_as_fast(firsts[0], wall))
        if on_gpu:
            device = _device_time(info)
            cells.append("–" if device is None else time_text(device))
            cells.append(_times_as_fast(firsts[1], device))
        if floor:
            cells += [f"{info['gb_per_second']:.1f}", f"{info['percent_of_copy']:.0f}%"]
            moved = info.get("moved_bytes")
            cells.append("–" if moved is None else f"{moved / floor:.2f}")
        if trains:
            ratio = info.get("step_over_products")
            cells.append("–" if ratio is None else f"{ratio:.2f}")
        if peaks:
            cells.append(_of_peak(info, _device_time(info) or wall))
        if alone:
            cells += [time_text(info["alone_seconds"]), f"{wall / info['alone_seconds']:.2f}"]
        if images:
            cells.append(f"{info['images'] / wall:.1f}")
        peak = info["peak_memory_bytes"]
        cells.append("–" if peak is None else size_text(peak))
        lines.append((*cells, f"{info['check_error_over_tolerance']:.2f}"))
    return Table(title, tuple(columns), lines)


def _device_time(info: dict[str, Any]) -> float | None:
    times = info.get("device_seconds")
    return median(times) if times else None


def _of_peak(info: dict[str, Any], seconds: float) -> str:
    highest = info.get("peak_operations_per_second")
    return "–" if highest is None else f"{info['operations'] / seconds / highest:.0%}"


def _times_as_fast(first: float | None, time: float | None) -> str:
    return "–" if first is None or time is None else f"{first / time:.2f}"


def _metrics(rows: list[Timed]) -> Table:
    title, info = rows[0][:2]
    samples = info["metrics"]["log_px_samples"]
    columns = (
        *(("arm", 34), ("time", 9), ("images/s", 10), ("step/products", 15)),
        *(("KL", 8), ("ELBO", 9), ("log p(x)", 10)),
    )
    lines = []
    for _, info, wall, _ in rows:
        metrics = [f"{info['metrics'][name]:.2f}" for name in ("rate", "elbo", "log_px")]
        speed = f"{info['images_per_second']:,.0f}"
        # Files from before the engine's floor was measured have none.
        over = info.get("step_over_products")
        ratio = "–" if over is None else f"{over:.2f}"
        lines.append((info["provider"], time_text(wall), speed, ratio, *metrics))
    title = f"{title}: {info['data']}, nats per image, {samples} samples"
    return Table(title, columns, lines)


def time_text(seconds: float, digits: int | None = None) -> str:
    """Seconds in s, ms or µs, with the digits of the tables or with `digits`."""
    if seconds >= 1:
        return f"{seconds:.{2 if digits is None else digits}f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.{2 if digits is None else digits}f} ms"
    return f"{seconds * 1e6:.{1 if digits is None else digits}f} µs"


def size_text(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.2f} GiB"


def rows_of_json(record: dict[str, Any]) -> list[Timed]:
    """The rows in the content of a --benchmark-json file."""
    return [
        (b["group"], b["extra_info"], b["stats"]["median"], b["stats"]["iqr"])
        for b in record["benchmarks"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a file is bad."""
    parser = Parser("summary", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="written by --benchmark-json")
    parser.add_argument("--markdown", action="store_true", help="tables for a report")
    options = parser.parse_args(argv)
    try:
        record = read(options.file)
    except RecordError as error:
        return parser.failed(error, 2)
    rows = [row.as_summary() for row in record.rows]
    print("\n".join(summary(rows, record.machine, options.markdown)))
    return 0
