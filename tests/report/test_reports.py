"""Numbers and revisions that README.md and reports/README.md quote are in committed JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.process import ROOT
from bench.records.records import parse, revision_of
from bench.records.summary import summary

REPORTS = ROOT / "reports"
PAGES = [ROOT / "README.md", REPORTS / "README.md"]

Content = dict[str, Any]


def contents() -> Iterator[tuple[str, Content]]:
    """Every committed JSON object, by its path under reports."""
    for path in sorted(REPORTS.rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            yield path.relative_to(REPORTS).as_posix(), content


def machine_of(content: Content) -> Content | None:
    machine = content.get("machine_info") or content.get("environment") or content.get("machine")
    return machine if isinstance(machine, dict) and "revision" in machine else None


def quoted_rows(page: Path) -> list[str]:
    """Lines of the suite's tables in fenced blocks, without their white space."""
    blocks = re.findall(r"^```text\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks if "  provider " in block for line in block.splitlines()]
    return [" ".join(line.split()) for line in lines if re.search(r"\d ?(s|ms|µs) ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_row_of_a_quoted_table_was_measured(page: Path) -> None:
    printed = {
        " ".join(line.split())
        for name, content in contents()
        if "benchmarks" in content
        for record in [parse(REPORTS / name, content)]
        for line in summary([row.as_summary() for row in record.rows], record.machine)
    }
    rows = quoted_rows(page)
    assert rows
    assert [row for row in rows if row not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_quoted_training_run_has_the_numbers_of_its_record(page: Path) -> None:
    rows = re.findall(r"^\| \[\d\]\(([\w/.-]+\.json)\) \|(.+)\|$", page.read_text(), re.MULTILINE)
    assert len(rows) == 3
    for file, quoted in rows:
        record = json.loads((page.parent / file).read_text())
        metrics = [f"{record['test'][n]:.2f}" for n in ("elbo", "rate", "distortion", "log_px")]
        expected = [*metrics, f"{record['speed']['train_seconds']:.1f} s"]
        assert [cell.strip() for cell in quoted.split("|")] == expected


def revisions() -> dict[str, list[str]]:
    """The table of reports/README.md: file → its other cells."""
    text = (REPORTS / "README.md").read_text()
    _, _, rest = text.partition("## Where each number was made")
    table = rest.partition("\n## ")[0]
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \|(.+)\|$", table, re.MULTILINE)
    assert all(name == target for name, target, _ in rows)
    return {name: [cell.strip() for cell in rest.split("|")] for name, _, rest in rows}


def test_every_result_says_at_which_revision_and_where_it_was_made() -> None:
    table = revisions()
    made = {name: machine_of(content) for name, content in contents()}
    assert set(table) == {name for name, machine in made.items() if machine is not None}
    for name, machine in made.items():
        if machine is not None:
            where = f"{machine['cpu']}, torch {str(machine['torch']).partition('+')[0]}"
            assert table[name][:2] == [revision_of(machine), where], name
