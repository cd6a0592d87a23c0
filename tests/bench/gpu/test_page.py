"""The page and the JSON files that a run writes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.gpu import clocks, page
from bench.gpu.journal import Journal, rows
from bench.gpu.parts import PARTS
from bench.gpu.results import benchmarks, comparison, found
from bench.records.records import parse
from tests.bench.gpu.journals import SMI, journal
from tests.bench.suite_record import content, on_a_gpu
from vaez_fast.compare import Row
from vaez_kernels.cases import OPS

TIMED = ("eager", "triton")


class TestPage:
    def timed(self, out: Path) -> Journal:
        """A log of clocks and a journal: two timed rows, one failed, one crashed, one missing."""
        (out / page.CLOCKS).write_text(SMI)
        began = clocks.read(out / page.CLOCKS)[0].time
        of = journal(out)
        of.write("plan", worker="0", rows=[*TIMED, "wrong", "fatal", "late"])
        medians = {"latent op, forward, 128 × 20, float32": {"eager": 4e-3, "triton": 1e-3}}
        for row in on_a_gpu(content(medians, seed=1))["benchmarks"]:
            row["extra_info"]["load"] = {
                "seconds": 0.2,
                "ended": began + 0.25,
                "own": 1.0,
                "others": 0.0,
                "load_average": 0.1,
                "processors": 16,
            }
            provider = row["extra_info"]["provider"]
            values = {"worker": "0", "why": "", "seconds": 1.0, "benchmark": row}
            of.write("row", id=provider, outcome="passed", **values)
        of.write("row", worker="0", id="wrong", outcome="failed", why="off by 3", seconds=1.0)
        of.write("row", worker="0", id="fatal", outcome="crashed", why="killed by SIGSEGV")
        return of

    def test_it_shows_what_is_there_and_names_what_is_not(self, tmp_path: Path) -> None:
        self.timed(tmp_path).write("end", seconds=7.0, problems=["cut off at the time limit"])
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert text.startswith("# The ops on a GPU\n")
        state = "1 failed; 1 crashed; 1 missing; cut off at the time limit"
        assert f"| ops | {state} | 2 of 5 | 0 | 7 |" in text
        assert "| training | not run | 0 of 0 | 0 | – |" in text
        assert "- `wrong`: failed: off by 3" in text
        assert "- `fatal`: crashed: killed by SIGSEGV" in text
        assert "- `late`" in text.partition("missing: not run before the end")[2]
        assert "**latent op, forward, 128 × 20, float32" in text
        assert "2 of 2 rows were timed on a throttled GPU" in text
        assert "| eager, triton | 1410 | 1500 |" in text
        assert "**power cap, temperature, by hardware**" in text

    def test_a_run_that_was_killed_is_told_from_one_that_ended(self, tmp_path: Path) -> None:
        self.timed(tmp_path)
        page.write(tmp_path)
        assert "1 missing; it was killed" in (tmp_path / "README.md").read_text()

    def test_rows_of_a_group_that_were_timed_apart_have_their_own_clocks(
        self, tmp_path: Path
    ) -> None:
        of = self.timed(tmp_path)
        again = rows(of.lines())["triton"]
        again["benchmark"]["extra_info"]["load"]["ended"] += 8.8
        again["benchmark"]["extra_info"]["graph_fits_l2"] = True
        of.write(**{name: value for name, value in again.items() if name != "time"})
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "1 of 2 rows were timed on a throttled GPU" in text
        assert "| eager | 1410 |" in text
        assert "| triton | 1980 |" in text
        warm = text.partition("## Graphs whose tensors fit in the L2 cache")[2]
        assert "float32, triton\n" in warm.partition("## Clocks")[0]
        assert "float32, eager\n" not in warm.partition("## Clocks")[0]

    def test_other_tools_read_the_rows_and_their_clocks(self, tmp_path: Path) -> None:
        self.timed(tmp_path)
        page.write(tmp_path)
        record = parse(tmp_path / "ops.json", json.loads((tmp_path / "ops.json").read_text()))
        assert [row.provider for row in record.rows] == list(TIMED)
        assert record.rows[0].info["gpu"]["sm_mhz"]["min"] == 1410

    def test_a_dry_run_is_no_measurement(self, tmp_path: Path) -> None:
        of = journal(tmp_path, dry_run=True)
        row = content({"g": {"eager": 1.0}}, seed=1)["benchmarks"][0]
        of.write("plan", worker="0", rows=["eager"])
        values = {"worker": "0", "why": "", "seconds": 1.5, "prepared_seconds": 0.5}
        of.write("row", id="eager", outcome="dry run", benchmark=row, **values)
        of.write("end", seconds=2.0, problems=[])
        (ops,) = (part for part in page.write(tmp_path) if part.part.name == "ops")
        assert ops.passed
        text = (tmp_path / "README.md").read_text()
        assert text.startswith("# DRY RUN on a GPU: no times and no checks")
        assert "| ops | dry run | 1 of 1 |" in text
        assert "| eager | 1 | 1.5 | 0.5 |" in text
        assert benchmarks(ops, []) is None
        assert not (tmp_path / "ops.json").exists()

    def test_a_line_sums_the_seconds_of_a_tests_rows_and_names_the_slowest(
        self, tmp_path: Path
    ) -> None:
        of = journal(tmp_path, dry_run=True)
        values = {"worker": "0", "outcome": "dry run", "why": ""}
        of.write("row", id="a.py::test[1]", seconds=1.5, prepared_seconds=0.25, **values)
        of.write("row", id="b.py::test[1]", seconds=2.5, **values)
        of.write("row", id="a.py::test[2]", seconds=4.0, prepared_seconds=0.5, **values)
        # A row that crashed has no seconds.
        of.write("row", worker="0", id="a.py::test[3]", outcome="crashed", why="killed")
        page.write(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "| a.py::test | 3 | 5.5 | 0.8 | [2] | 4.0 |" in text
        assert "| b.py::test | 1 | 2.5 | 0.0 | [1] | 2.5 |" in text


ROW = Row("rsample", "z", "cuda", "float32", "1×7×20", 1e-7, 1e-7, 1.0, 1e-7, 1e-6, 1e-7, True)


class TestComparison:
    def compared(self, out: Path, compared: list[Row]) -> dict[str, Any]:
        of = journal(out, "correctness")
        for i, row in enumerate(compared):
            values = {"worker": "0", "why": "", "seconds": 1.0, "comparison": [asdict(row)]}
            of.write("row", id=str(i), outcome="passed", **values)
        got = comparison(found(out, PARTS["correctness"]))
        assert got is not None
        return got[1]

    def test_it_passes_where_every_op_was_compared(self, tmp_path: Path) -> None:
        every = self.compared(tmp_path, [replace(ROW, op=op) for op in OPS])
        assert (every["passed"], every["missing"], len(every["rows"])) == (True, [], len(OPS))

    def test_an_op_that_was_not_compared_is_missing_and_does_not_pass(self, tmp_path: Path) -> None:
        others = self.compared(tmp_path, [replace(ROW, op=op) for op in OPS if op != "rsample"])
        assert (others["passed"], others["missing"]) == (False, ["rsample"])

    def test_a_row_without_numbers_does_not_pass_and_is_shown(self, tmp_path: Path) -> None:
        lacking = replace(ROW, absolute=math.nan, relative=math.nan, ulp=math.nan, passed=False)
        every = [replace(ROW, op=op) for op in OPS if op != ROW.op]
        record = self.compared(tmp_path, [*every, lacking])
        assert not record["passed"]
        assert record["rows"][-1]["absolute"] is None
        page.write(tmp_path)
        assert "nan" in (tmp_path / "README.md").read_text()
