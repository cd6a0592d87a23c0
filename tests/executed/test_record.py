"""The record of executed kernels, and its page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.executed import __main__, cases, record
from tests.executed.cases import Case
from tests.executed.record import Record, faults, line, page, record_of
from tests.ptx import Fault
from vaez_fast.system.files import read_json, write_json


def row(**shares: float) -> Record:
    """A launch whose outputs err by these shares of their bounds, with all Units."""
    return {
        "kernel": "noise_kernel",
        "op": "noise",
        "flags": "normal",
        "dtype": "float32",
        "shape": [2, 3],
        "target": "sm_90",
        "errors": {
            name: dict.fromkeys(("nearest", "up", "down"), share) for name, share in shares.items()
        },
        "loaded": 16,
        "stored": 24,
        "floor": 40,
        "wide": 16,
        "instructions": 100,
        "barriers": 0,
        "products": 0,
    }


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_an_output_that_is_no_number_shows_in_the_record_and_on_the_page(
    share: float, tmp_path: Path
) -> None:
    rows = [row(log_prob=0.25, grad_z=share), row(log_prob=0.5)]
    assert line(rows[0]).endswith(f"nearest {share:.3f}, up {share:.3f}, down {share:.3f}")
    assert len(faults(rows)) == 3
    write_json(tmp_path / "results.json", record_of(rows))
    text = page([read_json(tmp_path / "results.json")])
    # The summary of both launches, and the first launch.
    assert text.count(" | ".join([f"{share:.3f}"] * 3)) == 2
    assert text.count("0.500 | 0.500 | 0.500") == 1


def test_a_run_that_ends_early_keeps_the_cases_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    three = [Case("noise", name, torch.float32, (2, 3), list) for name in ("a", "b", "c")]

    def rows(case: Case, target: str) -> Iterator[Record]:
        if case.flags == "c":
            raise Fault("this one has a race")
        yield row(normal=0.5) | {"flags": case.flags}

    monkeypatch.setattr(cases, "all_cases", lambda: three)
    monkeypatch.setattr(record, "rows_of", rows)
    with pytest.raises(Fault, match="race"):
        __main__.main(["--out", str(tmp_path)])
    (written,) = tmp_path.glob("results-triton-*.json")
    assert [one["flags"] for one in read_json(written)["rows"]] == ["a", "b"]
    assert not (tmp_path / "README.md").exists()
    assert __main__.main(["--out", str(tmp_path), "--only=-b-"]) == 0
    assert [one["flags"] for one in read_json(written)["rows"]] == ["b"]
    assert "0.500" in (tmp_path / "README.md").read_text()
    assert __main__.main(["--only=another"]) == 2
