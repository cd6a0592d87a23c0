"""Damaged and malicious records of the suite: every program refuses them in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records import compare as bench_compare
from bench.records import history as bench_history
from bench.records import records
from bench.records import report as bench_report
from bench.records import summary as bench_summary
from tests.bench import suite_record

GROUPS = {"an op, 8 × 128, float32": {"eager": 2e-3, "fallback": 1e-3}}


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A folder with an undamaged record, `bench.json`."""
    suite_record.write(tmp_path / "bench.json", suite_record.content(GROUPS, 1))
    return tmp_path


BENCH: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("a list", lambda run: [run], "not a benchmark's JSON"),
    ("no rows", lambda run: run | {"benchmarks": []}, "has no rows"),
    ("rows of words", lambda run: run | {"benchmarks": ["x"]}, "not a run of this suite"),
    ("no machine", lambda run: run | {"machine_info": None}, "not a run of this suite"),
    ("no date", lambda run: run | {"datetime": 3}, "its datetime is 3"),
    ("a number as device", lambda run: with_machine(run, device=3), "its device is 3"),
    ("a number as commit", lambda run: with_machine(run, revision=3), "its revision is 3"),
    ("no check", lambda run: with_info(run, check_error_over_tolerance=None), "tolerance is None"),
    ("words as floor", lambda run: with_info(run, floor_bytes="3"), "its floor_bytes is '3'"),
    ("no memory", lambda run: without_info(run, "peak_memory_bytes"), "it lacks 'peak_memory"),
    ("no speed", lambda run: without_info(run, "gb_per_second"), "it lacks 'gb_per_second'"),
    ("no rounds of a GPU", lambda run: with_info(run, device_seconds=[]), "device_seconds are []"),
    ("a round of 0 s", lambda run: with_info(run, device_seconds=[1e-6, 0]), "device_seconds is 0"),
    ("half a metric", lambda run: with_info(run, metrics={}), "it lacks 'images_per_second'"),
    ("a median of zero", lambda run: with_stats(run, median=0.0), "no positive times"),
    ("a spread of NaN", lambda run: with_stats(run, iqr=float("nan")), "no spread of times"),
]


def with_machine(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    return run | {"machine_info": run["machine_info"] | values}


def with_info(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    run["benchmarks"][1]["extra_info"] |= values
    return run


def without_info(run: dict[str, Any], name: str) -> dict[str, Any]:
    del run["benchmarks"][1]["extra_info"][name]
    return run


def with_stats(run: dict[str, Any], **values: Any) -> dict[str, Any]:
    run["benchmarks"][1]["stats"] |= values
    return run


class TestBench:
    def refused(self, at: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
        (at / "folder").mkdir()
        bad, out = str(at / "folder" / "bad.json"), str(at / "out")
        if (at / "bad.json").exists():
            (at / "bad.json").rename(bad)
        for program, words in (
            (bench_compare, [str(at / "bench.json"), bad]),
            (bench_summary, [bad]),
            (bench_report, [str(at / "bench.json"), bad, "--out", out]),
            (bench_history, [str(at / "folder"), "--out", out]),
        ):
            assert program.main(words) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            name = program.__name__.rpartition(".")[2]
            assert captured.err.startswith(f"bench.{name}: error: ")
            assert captured.err.count("\n") == 1
            if program is not bench_history or message not in ("not a benchmark's JSON", "No such"):
                assert message in captured.err
            assert not (at / "out").exists()

    @pytest.mark.parametrize(
        ("change", "message"), [row[1:] for row in BENCH], ids=[r[0] for r in BENCH]
    )
    def test_a_bad_record_is_one_line_in_every_program(
        self,
        change: Callable[[dict[str, Any]], Any],
        message: str,
        at: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run = change(json.loads((at / "bench.json").read_text()))
        suite_record.write(at / "bad.json", run)
        self.refused(at, capsys, message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[" * 10**5, "not JSON"),
            (None, "No such"),
        ],
        ids=["empty", "noise", "endless", "missing"],
    )
    def test_a_file_that_is_no_record_is_one_line_in_every_program(
        self, content: bytes | None, message: str, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if content is not None:
            (at / "bad.json").write_bytes(content)
        self.refused(at, capsys, message)

    def test_a_record_that_tells_its_time_in_words_is_named(
        self, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine = {"device": "a CPU", "threads": 2}
        speed = {"train_seconds": "long", "steps": 0}
        run = {"arm": "randn", "config": {"model": "burda"}, "environment": machine, "speed": speed}
        suite_record.write(at / "study" / "bad.json", run)
        assert bench_history.main([str(at / "study"), "--out", str(at / "out")]) == 2
        error = capsys.readouterr().err
        assert "bad.json: tells no time (" in error
        assert error.count("\n") == 1

    def test_a_summary_prints_what_the_suite_printed(
        self, at: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench_summary.main([str(at / "bench.json")]) == 0
        assert "an op, 8 × 128, float32" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["group", "provider", "device", "torch", "revision", "datetime"])
@pytest.mark.parametrize("word", ["\x1b]0;owned\x07", "a\nb", "\udcff", "\u202egnp"])
def test_a_record_with_words_that_a_terminal_would_obey_is_none_of_the_suite(
    field: str, word: str, tmp_path: Path
) -> None:
    content = suite_record.content({"an op": {"a": 1.0}}, 1)
    row = content["benchmarks"][0]
    where = {"group": row, "provider": row["extra_info"], "datetime": content}
    where.get(field, content["machine_info"])[field] = word
    path = suite_record.write(tmp_path / "bench.json", content)
    with pytest.raises(records.RecordError) as raised:
        records.read(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("group", ["../../x, float32", "a/b, float32", "nul\0, float32", "$x$"])
def test_a_groups_name_leads_to_no_other_folder(group: str, tmp_path: Path) -> None:
    from bench.records import report as bench_report

    content = suite_record.content({group: {"a": 1.0, "b": 2.0}}, 1, rounds=9)
    path = suite_record.write(tmp_path / "bench.json", content)
    out = tmp_path / "deep" / "out"
    assert bench_report.main([str(path), "--out", str(out)]) in (0, 2)
    assert {p.parent for p in tmp_path.rglob("*.png")} <= {out}
