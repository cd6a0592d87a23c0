"""The tables printed after a run: providers side by side, ratios, the article's metrics.

`python -m bench.summary FILE` prints those of a --benchmark-json file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[str, dict[str, Any], float, float]  # group, extra_info, median and IQR in seconds


def summary(rows: list[Row], machine: dict[str, Any]) -> Iterator[str]:
    """Lines of text for the rows of a session, in the order they ran."""
    yield ""
    yield (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"triton {machine['triton']}"
    )
    for copy in {info["copy_gb_per_second"] for _, info, *_ in rows if info["floor_bytes"]}:
        yield f"a plain copy moves {copy:.1f} GB/s, read plus written"
    trained = [row for row in rows if "metrics" in row[1]]
    timed = [row for row in rows if "metrics" not in row[1]]
    for title in dict.fromkeys(row[0] for row in timed):
        yield from _rivals(title, [row for row in timed if row[0] == title])
    if trained:
        yield from _metrics(trained)
    yield ""
    yield "Medians of rounds taken in turn; × is how many times faster than the first row."
    yield "GB/s counts the bytes that the op must move at least. Every row passed its check"
    yield "against float64 before it was timed (error: in units of the tolerance)."


def _rivals(title: str, rows: list[Row]) -> Iterator[str]:
    moves = rows[0][1]["floor_bytes"] is not None
    yield ""
    floor = f" ({_size(rows[0][1]['floor_bytes'])} at the floor)" if moves else ""
    yield f"{title}{floor}"
    header = f"  {'provider':<17}{'median':>10}{'±IQR/2':>10}{'×':>8}"
    yield header + (f"{'GB/s':>8}{'of copy':>9}" if moves else "") + f"{'peak':>11}{'error':>8}"
    first = rows[0][2]
    for _, info, median, iqr in rows:
        line = (
            f"  {info['provider']:<17}{_time(median):>10}{_time(iqr / 2):>10}{first / median:>8.2f}"
        )
        if moves:
            line += f"{info['gb_per_second']:>8.1f}{info['percent_of_copy']:>8.0f}%"
        peak = info["peak_memory_bytes"]
        line += f"{_size(peak) if peak is not None else '?':>11}"
        yield line + f"{info['check_error_over_tolerance']:>8.2f}"


def _metrics(rows: list[Row]) -> Iterator[str]:
    info = rows[0][1]
    yield ""
    samples = info["metrics"]["log_px_samples"]
    yield f"{rows[0][0]}: {info['data']}, nats per image, {samples} samples"
    yield f"  {'arm':<34}{'time':>9}{'images/s':>10}{'KL':>8}{'ELBO':>9}{'log p(x)':>10}"
    for _, info, median, _ in rows:
        m = info["metrics"]
        yield (
            f"  {info['provider']:<34}{_time(median):>9}{info['images_per_second']:>10,.0f}"
            f"{m['rate']:>8.2f}{m['elbo']:>9.2f}{m['log_px']:>10.2f}"
        )


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.2f} GiB"


def rows_of_json(record: dict[str, Any]) -> list[Row]:
    """The rows of a --benchmark-json file's content."""
    return [
        (b["group"], b["extra_info"], b["stats"]["median"], b["stats"]["iqr"])
        for b in record["benchmarks"]
    ]


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text())
    print("\n".join(summary(rows_of_json(content), content["machine_info"])))
