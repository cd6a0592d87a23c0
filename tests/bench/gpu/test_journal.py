"""The order of rows, and their journal: which rows are settled, which rows a crash costs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from bench.gpu.comparison import CASES
from bench.gpu.journal import planned, rows, settled
from bench.gpu.parts import PARTS, group_of, in_order
from tests.bench.gpu.journals import SESSION, ended, journal
from vaez_kernels.cases import OPS


class TestOrder:
    def ops(self) -> list[str]:
        sizes = {
            "latent": ("128x20", "524288x128"),
            "linear": ("1x128x256x784", "64x1024x256x784"),
        }
        return [
            f"bench/ops/bench_ops.py::test_{op}[{dtype}-{size}-{direction}"
            for op in sizes
            for dtype in ("float32", "bfloat16")
            for size in sizes[op]
            for direction in ("forward", "forward+backward")
        ]

    def test_each_op_has_its_turn_and_the_largest_size_with_gradients_comes_first(self) -> None:
        order = in_order(self.ops(), PARTS["ops"])
        assert sorted(order) == sorted(self.ops())
        assert [group.partition("[")[2] for group in order[:4]] == [
            "float32-524288x128-forward+backward",
            "float32-64x1024x256x784-forward+backward",
            "float32-128x20-forward+backward",
            "float32-1x128x256x784-forward+backward",
        ]
        assert all("bfloat16" in group for group in order[4:8])
        assert all(group.endswith("-forward") for group in order[8:])

    def test_steps_come_before_whole_trainings_and_jax_before_max_autotune(self) -> None:
        for part, first, last in (
            ("training", "training/bench_step", "training/bench_training"),
            ("rivals", "jax/bench_jax", "ops/bench_autotuned"),
        ):
            given = [f"bench/{name}.py::test[{i}" for name in (last, first) for i in "ab"]
            names = [group.partition("::")[0] for group in in_order(given, PARTS[part])]
            assert names == [f"bench/{name}.py" for name in (first, first, last, last)]

    def test_rows_of_a_group_differ_in_their_provider_alone(self) -> None:
        row = "bench/ops/bench_ops.py::test_latent[float32-128x20-forward+backward-eager graph]"
        assert group_of(row, "eager graph").endswith("[float32-128x20-forward+backward")
        assert group_of("tests/cuda/test_numbers.py::test_x[1]", None).endswith("[1]")

    def test_a_comparison_begins_with_a_case_of_each_op(self) -> None:
        assert [case.op for case in CASES[: len(OPS)]] == list(OPS)


class TestJournal:
    def test_a_line_that_a_kill_left_half_written_is_left_out(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        of.write("row", worker="0", id="a", outcome="passed", why="", seconds=math.nan)
        with of.path.open("a") as file:
            file.write('{"kind": "row", "id": "b", "outc')
        (line,) = rows(of.lines()).values()
        assert (line["id"], line["seconds"]) == ("a", None)

    def test_a_line_after_half_a_line_is_whole(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        with of.path.open("a") as file:
            file.write('{"kind": "row", "id": "b", "outc')
        of.write("row", worker="0", id="c", outcome="passed", why="")
        assert list(rows(of.lines())) == ["c"]
        assert "" not in of.path.read_text().splitlines()  # no empty line after a whole one

    def test_a_line_that_does_not_fit_on_the_disk_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of = journal(tmp_path)
        write = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:9]))
        with pytest.raises(OSError, match="only 9 of"):
            of.write("end", seconds=1.0, problems=[])

    def test_the_next_run_tries_again_what_failed_and_keeps_what_passed(
        self, tmp_path: Path
    ) -> None:
        of = journal(tmp_path)
        outcomes = ("passed", "skipped", "dry run", "failed", "crashed", "missing")
        ended(of, *((outcome, outcome) for outcome in outcomes))
        assert settled(of.lines()) == set(outcomes) - {"missing"}
        of.write("run", **SESSION)
        assert settled(of.lines()) == {"passed", "skipped", "dry run"}
        of.write("row", worker="0", id="failed", outcome="failed", why="again")
        assert "failed" in settled(of.lines())
        assert planned(of.lines()) == list(outcomes)

    def test_a_crash_takes_what_was_at_stake_and_has_no_row_yet(self, tmp_path: Path) -> None:
        of = journal(tmp_path)
        of.write("begin", worker="0", rows=["a", "b", "c"])
        of.write("begin", worker="1", rows=["d"])
        of.write("row", worker="0", id="a", outcome="passed", why="")
        assert of.crash("0", "killed") == ["b", "c"]
        found = rows(of.lines())
        assert {row: line["outcome"] for row, line in found.items()} == {
            "a": "passed",
            "b": "crashed",
            "c": "crashed",
        }
        assert of.crash("0", "killed") == []
        of.write("run", **SESSION)
        assert of.crash("1", "of a run before") == []
