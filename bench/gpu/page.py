"""DIR/README.md: the results so far, and what is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import clocks
from bench.gpu.journal import DRY, PASSED, SKIPPED, Line
from bench.gpu.parts import PARTS
from bench.gpu.results import Found, benchmarks, comparison, found
from bench.records.summary import rows_of_json, summary
from vaez_fast.compare import table
from vaez_fast.system.files import write_atomically, write_json

MOST_NAMED = 40  # rows in a list; the journals have all of them
CLOCKS = "clocks.csv"


def write(out: Path) -> list[Found]:
    """Write README.md and the JSON files from the journals in `out`, and return the parts.

    Raises:
        OutputError: a file cannot be written.
    """
    parts = [found(out, part) for part in PARTS.values()]
    samples = clocks.read(out / CLOCKS)
    measured: dict[str, dict[str, Any]] = {}
    for part in parts:
        content = benchmarks(part, samples)
        if content is not None:
            measured[part.part.name] = content
            write_json(out / f"{part.part.name}.json", content)
    compared = comparison(parts[0])
    if compared is not None:
        write_json(out / "comparison.json", compared[1])
    lines = _lines(parts, measured)
    if compared is not None:
        lines = [*lines, "", "## Comparison", "", "```text", *table(compared[0]), "```"]
    write_atomically(out / "README.md", ("\n".join(lines) + "\n").encode())
    return parts


def _lines(parts: Sequence[Found], measured: dict[str, dict[str, Any]]) -> list[str]:
    runs = [part.run for part in parts if part.run is not None]
    if not runs:
        return ["# No part of bench.gpu was run here"]
    run = max(runs, key=lambda run: float(run["time"]))
    machine, dry = run["machine"], run["dry_run"]
    title, repeat = f"# The ops on {machine['device']}", "make gpu"
    if dry:
        title = f"# DRY RUN on {machine['device']}: no times and no checks"
        repeat = "python -m bench gpu --dry-run --out DIR"
    changes = " (with changes)" if machine["dirty"] else ""
    when = time.strftime("%Y-%m-%d", time.gmtime(run["time"]))
    lines = [
        title,
        "",
        f"{when}, torch {machine['torch']}, triton {machine['triton']}, Python "
        f"{machine['python']}, revision {machine['revision']}{changes}, code {run['code']}. "
        f"Repeat with `{repeat}`.",
        "",
        *([f"`{run['gpu']}`", ""] if run["gpu"] else []),
        *_states(parts),
        *_trouble(parts),
    ]
    if dry:
        return [*lines, *_host_seconds(parts)]
    for name, content in measured.items():
        lines += ["", f"## Speed: {name}"]
        lines += summary(rows_of_json(content), content["machine_info"], markdown=True)
    return [*lines, *_warm_graphs(measured), *_clocks(measured)]


def _states(parts: Sequence[Found]) -> Iterator[str]:
    yield "| part | result | rows | skipped | seconds |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for of in parts:
        seconds = "–" if of.seconds is None else f"{of.seconds:.0f}"
        counts = of.counts
        passed = f"{counts[PASSED] + counts[DRY]} of {len(of.rows) + len(of.missing)}"
        yield f"| {of.part.name} | {of.state} | {passed} | {counts[SKIPPED]} | {seconds} |"


def _trouble(parts: Sequence[Found]) -> Iterator[str]:
    for of in parts:
        for what, rows in (
            ("failed or crashed", [f"`{row}`: {why}" for row, why in of.trouble().items()]),
            ("missing: not run before the end", [f"`{row}`" for row in of.missing]),
            ("skipped", [f"`{row}`: {why}" for row, why in _skipped(of).items()]),
        ):
            if rows:
                yield ""
                yield f"**{of.part.name}, {what}:**"
                yield ""
                yield from (f"- {row}" for row in rows[:MOST_NAMED])
                if len(rows) > MOST_NAMED:
                    yield f"- and {len(rows) - MOST_NAMED} more: see {of.part.name}.jsonl"


def _skipped(of: Found) -> dict[str, str]:
    # Sizes at which launches are a small part of the time are skipped on purpose.
    return {
        row: line["why"].removeprefix("Skipped: ")
        for row, line in of.rows.items()
        if line["outcome"] == SKIPPED and "launches are a small part" not in line["why"]
    }


def _host_seconds(parts: Sequence[Found]) -> Iterator[str]:
    """Seconds of each test in a dry run; the journals hold those of its rows."""
    yield ""
    yield "## Seconds on the host"
    for of in parts:
        if of.rows:
            ahead = sum(of.ahead_seconds.values())
            yield ""
            yield f"**{of.part.name}**" + (f", compiled ahead in {ahead:.1f} s" if ahead else "")
            yield ""
            yield "| test | rows | seconds | of them to prepare | slowest row | its seconds |"
            yield "| --- | ---: | ---: | ---: | --- | ---: |"
            tests: dict[str, dict[str, Line]] = {}
            for row, line in of.rows.items():
                tests.setdefault(row.partition("[")[0], {})[row] = line
            yield from (_seconds_of(test, rows) for test, rows in tests.items())


def _seconds_of(test: str, rows: dict[str, Line]) -> str:
    # A crashed row has no seconds, and a row without rivals prepares nothing.
    seconds = {row: line.get("seconds", 0.0) for row, line in rows.items()}
    prepared = sum(line.get("prepared_seconds", 0.0) for line in rows.values())
    slowest = max(seconds, key=lambda row: seconds[row])
    return (
        f"| {test} | {len(rows)} | {sum(seconds.values()):.1f} | {prepared:.1f} | "
        f"{slowest.removeprefix(test)} | {seconds[slowest]:.1f} |"
    )


def _warm_graphs(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    warm = [
        f"{row['group']}, {row['extra_info']['provider']}"
        for content in measured.values()
        for row in content["benchmarks"]
        if row["extra_info"].get("graph_fits_l2")
    ]
    if warm:
        yield ""
        yield "## Graphs whose tensors fit in the L2 cache"
        yield ""
        yield "Wall times are those of warm calls; device times start with a cold cache."
        yield ""
        yield from (f"- {row}" for row in warm)


def _clocks(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    # The rows of a group were timed in turn: in one run they share their clocks.
    providers: dict[tuple[str, float], list[str]] = {}
    clocks_of: dict[tuple[str, float], dict[str, Any]] = {}
    for content in measured.values():
        for row in content["benchmarks"]:
            info = row["extra_info"]
            if info.get("gpu"):
                key = row["group"], info["load"]["ended"]
                providers.setdefault(key, []).append(info["provider"])
                clocks_of[key] = info["gpu"]
    yield ""
    yield "## Clocks while rows were timed"
    yield ""
    if not clocks_of:
        yield "Not known: nvidia-smi is not installed, or printed nothing."
        return
    rows = sum(map(len, providers.values()))
    throttled = sum(len(providers[key]) for key in clocks_of if clocks_of[key]["throttled"])
    yield f"{throttled} of {rows} rows were timed on a throttled GPU."
    yield ""
    yield "| group | rows | SM MHz, min | median | W, median | °C, max | throttled |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for key, values in clocks_of.items():
        cells = [
            ", ".join(providers[key]),
            _cell(values, "sm_mhz", "min"),
            _cell(values, "sm_mhz", "median"),
            _cell(values, "watts", "median"),
            _cell(values, "celsius", "max"),
            "**" + ", ".join(values["throttled"]) + "**" if values["throttled"] else "no",
        ]
        yield f"| {key[0]} | " + " | ".join(cells) + " |"


def _cell(values: dict[str, Any], name: str, which: str) -> str:
    return "–" if values[name] is None else f"{values[name][which]:.0f}"
