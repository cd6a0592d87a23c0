"""The results of executed kernels, as a record for JSON and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.executed.cases import OUTPUTS, Case
from tests.executed.route import execution, names_of
from tests.ptx.units import Units
from vaez_fast.drawing.page import Block, Heading, Table, Text, markdown
from vaez_fast.system.environment import environment
from vaez_kernels.error_bounds import worst

Record = dict[str, Any]


def record_of(rows: Sequence[Record]) -> Record:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "machine": environment(), "rows": [_with_words(row) for row in rows]}


def _with_words(row: Record) -> Record:
    # JSON has no NaN, so a share that is not finite becomes a string, which float() reads.
    errors = {
        output: {units: x if math.isfinite(x) else str(x) for units, x in shares.items()}
        for output, shares in row["errors"].items()
    }
    return row | {"errors": errors}


def rows_of(case: Case, target: str) -> Iterator[Record]:
    """A row for each kernel that the case launches, executed with all three Units."""
    outputs, runs = execution(case, target)
    shares: dict[str, dict[str, float]] = {}
    for units, found in outputs.items():
        for one in found:
            shares.setdefault(one.name.split()[-1], {})[units.value] = one.share()
    for name, run in zip(names_of(runs), runs, strict=True):
        errors = {of: shares[of] for of in OUTPUTS.get(run.kernel, tuple(shares)) if of in shares}
        floor = case.floors.get(name)
        yield {
            "kernel": run.kernel,
            "op": case.op,
            "flags": case.flags,
            "dtype": str(case.dtype).removeprefix("torch."),
            "shape": list(case.shape),
            "target": target,
            "errors": errors,
            "loaded": run.moved.loaded,
            "stored": run.moved.stored,
            "floor": None if floor is None else sum(floor),
            "wide": run.moved.loads[16] + run.moved.stores[16],
            "instructions": run.traffic.instructions,
            "barriers": run.traffic.barriers,
            "products": run.traffic.products,
        }


def line(row: Record) -> str:
    """A row for the terminal."""
    what = " ".join(filter(None, (row["kernel"], row["flags"], row["dtype"])))
    shares = ", ".join(
        f"{units.value} {s}" for units, s in zip(Units, _largest([row]), strict=True)
    )
    return f"{row['target']} {what} {_shape(row)}: {shares}"


def faults(rows: Sequence[Record]) -> list[str]:
    """A line for each output that errs by more than its bound."""
    return [
        f"{line(row)}: {output} errs by {share:.3g} times its bound with units {units}"
        for row in rows
        for output, shares in row["errors"].items()
        for units, share in shares.items()
        if not share <= 1.0
    ]


def page(records: Sequence[Record]) -> str:
    """README.md of the records of several stacks."""
    blocks: list[Block] = [
        Heading(1, "Every kernel's PTX, executed"),
        Text(
            "No GPU was available. Triton compiled each kernel for a GPU, and the PTX was executed "
            "instruction by instruction on a CPU (tests/ptx), through the public functions and "
            "including backward. Outputs are compared with a float64 reference, within the bounds "
            "that hold on every backend. **error** is the largest error of a kernel's outputs in "
            "units of its bound: 1 is the largest error allowed. Low precisions come close to 1, "
            "because rounding the result is most of their bound."
        ),
        Text(
            "Each kernel was executed three times: with approximate instructions (ex2.approx, "
            "rcp.approx, sqrt.approx, div.full) rounded to nearest, then with the largest error "
            "that NVIDIA documents for them, first upwards (up), then downwards (down)."
        ),
        Text(
            "**bytes / floor**: bytes that blocks of threads load and store, as "
            "tests/executed/global_traffic.py counts them, over the least possible number. The "
            "mixture's kernels read components again for each block of draws, so their floor is "
            "the count of bench/timing/traffic.py. The decoder's loads some tensors "
            "twice, because two uses need them in different layouts. **16-byte**: the share of "
            "these bytes in 128-bit accesses."
        ),
        Text("`python -m tests.executed --out DIR` repeats this page for the installed Triton."),
    ]
    for record in records:
        blocks += _stack(record)
    return markdown(blocks)


def _stack(record: Record) -> Iterator[Block]:
    machine = record["machine"]
    yield Heading(2, f"Triton {machine['triton']}")
    changes = " with changes" if machine["dirty"] else ""
    yield Text(
        f"{machine['cpu']}, torch {machine['torch']}, Python {machine['python']}, "
        f"{record['date'][:10]}, revision {str(machine['revision'])[:7]}{changes}."
    )
    rows = record["rows"]
    head = ("kernel", "target", "dtype", "cases", "nearest", "up", "down", "bytes / floor")
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["target"], row["dtype"]), []).append(row)
    summary = [
        (*name, str(len(group)), *_largest(group), _ratios(group)) for name, group in groups.items()
    ]
    yield Heading(3, "The largest error of each kernel")
    yield Table(head, summary)
    yield Heading(3, "Each launch")
    columns = (
        "kernel", "flags", "dtype", "shape", "target", "nearest", "up", "down",
        "loaded", "stored", "bytes / floor", "16-byte", "warp instructions",
    )  # fmt: skip
    yield Table(columns, [_cells(row) for row in rows])


def _cells(row: Record) -> tuple[str, ...]:
    return (
        *(row[name] for name in ("kernel", "flags", "dtype")),
        _shape(row),
        row["target"],
        *_largest([row]),
        f"{row['loaded']:,}",
        f"{row['stored']:,}",
        _ratios([row]),
        f"{row['wide'] / max(1, row['loaded'] + row['stored']):.0%}",
        f"{row['instructions']:,}",
    )


def _largest(rows: Sequence[Record]) -> tuple[str, ...]:
    found = []
    for units in Units:
        shares = [float(of[units.value]) for row in rows for of in row["errors"].values()]
        found.append(f"{worst(shares):.3f}")
    return tuple(found)


def _ratios(rows: Sequence[Record]) -> str:
    known = [(r["loaded"] + r["stored"]) / r["floor"] for r in rows if r["floor"] is not None]
    if not known:
        return "–"
    low, high = (f"{ratio(known):.2f}" for ratio in (min, max))
    return low if low == high else f"{low} to {high}"


def _shape(row: Record) -> str:
    return "×".join(map(str, row["shape"]))
