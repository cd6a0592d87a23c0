"""The verdicts on all mutants, as a record, as a page, and as faults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.mutants.trial import Verdict
from vaez_fast.drawing.page import Block, Heading, Table, Text, markdown
from vaez_fast.system.environment import environment

LEAST_CAUGHT = 0.9  # of the mutants that are not harmless

Record = dict[str, Any]


def record_of(root: Path, verdicts: Sequence[Verdict], there: int) -> Record:
    """The content of results.json. `there` is the number of all mutants, tried or not."""
    rows = [
        {
            "says": v.mutant.says,
            "file": v.mutant.file,
            "line": v.mutant.line(root),
            "review": v.mutant.review,
            "harmless": v.mutant.harmless,
            "caught": v.caught,
            "by": v.by,
            "seconds": round(v.seconds, 1),
        }
        for v in verdicts
    ]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "machine": environment(), "there": there, "mutants": rows}


def bugs(record: Record) -> list[Record]:
    """The mutants that a test should catch."""
    return [m for m in record["mutants"] if not m["harmless"]]


def faults(record: Record) -> list[str]:
    """The reasons why the run fails, one a line; empty if it passes."""
    wanted = bugs(record)
    caught = sum(m["caught"] for m in wanted)
    lines = []
    if wanted and caught < LEAST_CAUGHT * len(wanted):
        lines.append(f"{caught} of {len(wanted)} caught, expected at least {LEAST_CAUGHT:.0%}")
    for m in record["mutants"]:
        if m["review"] and not m["caught"]:
            lines.append(f"missed, though a review had named it: {m['says']} ({m['file']})")
        if m["harmless"] and m["caught"]:
            lines.append(f"called harmless, but {m['by']} catches it: {m['says']} ({m['file']})")
    return lines


def page(record: Record) -> str:
    """The record as README.md."""
    machine = record["machine"]
    wanted = bugs(record)
    harmless = [m for m in record["mutants"] if m["harmless"]]
    missed = [m for m in wanted if not m["caught"]]
    reviewed = [m for m in wanted if m["review"]]
    caught, named = len(wanted) - len(missed), sum(m["caught"] for m in reviewed)
    blocks: list[Block] = [
        Heading(1, "Small bugs, and the tests that catch them"),
        Text(
            f"{machine['cpu']}, torch {machine['torch']}, Python {machine['python']}, "
            f"{record['date'][:10]}, revision {str(machine['revision'])[:7]}"
            f"{' with changes' if machine['dirty'] else ''}."
        ),
        Text("`make mutants` (or `python -m tests.mutants --out DIR`) repeats this page."),
        Text(
            f"Of {record['there']} small changes to the code {len(record['mutants'])} were tried. "
            f"Each row is one bug in one place. It was put into a copy of the checkout, and the "
            f"tests that should catch it were run. The tests catch {caught} of {len(wanted)} bugs "
            f"({caught / max(1, len(wanted)):.0%}); {len(harmless)} more changes turned out to be "
            f"harmless. {len(reviewed)} of the bugs represent what a review had found and no test "
            f"noticed, some of it in several places; now the tests catch {named} of these."
        ),
    ]
    if missed:
        blocks += [
            Heading(2, "Missed"),
            Table(("bug", "where"), [(m["says"], _place(m)) for m in missed]),
        ]
    for title, chosen in (
        ("Bugs that a review had named", reviewed),
        ("Other bugs", [m for m in wanted if not m["review"]]),
    ):
        rows = [(m["says"], _place(m), m["by"] or "**missed**") for m in chosen]
        blocks += [Heading(2, title), Table(("bug", "where", "caught by"), rows)]
    if harmless:
        rows = [(m["says"], _place(m), m["harmless"]) for m in harmless]
        blocks += [Heading(2, "Harmless"), Table(("change", "where", "why it has no effect"), rows)]
    return markdown(blocks)


def _place(mutant: Record) -> str:
    return f"{mutant['file']}:{mutant['line']}"
