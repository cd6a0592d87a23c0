"""Comparing two runs of the suite: what counts as a change, what is refused, what scripts read."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.records.bootstrap import Estimate, LogMedian, log_median
from bench.records.changes import USUAL_SPREAD, Change, changes, control_spread, judge
from bench.records.compare import main
from bench.records.records import parse
from tests.bench.suite_record import content, write

GROUPS = {
    f"an op, {size} × 128, float32": {"eager": 4e-3, "compiled": 2e-3, "fallback": 1e-3}
    for size in (1, 2, 4, 8, 16, 32)
}
FIRST = next(iter(GROUPS))


def scaled(providers: dict[str, float], group: str = FIRST) -> dict[str, dict[str, float]]:
    """GROUPS, with the times of some providers of one group multiplied by these factors."""
    medians = {name: dict(of_group) for name, of_group in GROUPS.items()}
    for provider, factor in providers.items():
        medians[group][provider] *= factor
    return medians


def compared(old: dict[str, Any], new: dict[str, Any], **options: float) -> dict[str, Change]:
    found = changes(parse(Path("old"), old), parse(Path("new"), new), **options)
    return {c.provider: c for c in found if c.group == FIRST}


class TestIntervals:
    def test_they_cover_the_true_ratio_though_rounds_are_not_independent(self) -> None:
        """200 runs of 75 rounds, in which another process slows both rows alike for some rounds.

        True 95 % intervals cover in fewer than 170 of 200 runs with a chance below 1e-7.
        """
        random = np.random.default_rng(0)
        covered = 0
        for _ in range(200):
            neighbour = np.zeros(75)
            for i in range(1, 75):
                neighbour[i] = 0.8 * neighbour[i - 1] + 0.1 * random.normal()
            first, other = np.exp(neighbour + 0.1 * random.normal(size=(2, 75)))
            ratio = (log_median(list(3 * first)) - log_median(list(other))).estimate()
            covered += ratio.low <= 3 <= ratio.high
        assert covered >= 170

    def test_what_slows_both_rows_of_a_round_leaves_their_ratio_alone(self) -> None:
        random = np.random.default_rng(1)
        neighbour = np.exp(random.normal(size=101))
        first, other = 2 * neighbour, neighbour
        ratio = (log_median(list(first)) - log_median(list(other))).estimate()
        assert ratio.low == pytest.approx(2)
        assert ratio.high == pytest.approx(2)
        alone = log_median(list(first)).estimate()
        assert alone.high / alone.low > 1.2

    def test_they_leave_a_fortieth_on_either_side(self) -> None:
        found = LogMedian(0.0, np.linspace(-1.0, 1.0, 1001)).estimate()
        assert np.log([found.low, found.value, found.high]) == pytest.approx([-0.95, 0.0, 0.95])

    def test_the_value_is_the_median_of_the_rounds(self) -> None:
        rounds = [1.0, 1.0, 3.0, 3.0, 3.0, 90.0, 1.0, 5.0, 9.0]
        assert log_median(rounds).estimate().value == pytest.approx(3.0)

    def test_a_time_alone_is_covered_though_a_neighbour_slows_many_rounds_in_a_row(self) -> None:
        """The same with one row: resampling single rounds covers in 95 of 200 runs, blocks in 153.

        Blocks of √75 rounds are shorter than the correlation of the slowdown, so coverage stays
        below 95 %.
        """
        random = np.random.default_rng(0)
        covered = 0
        for _ in range(200):
            neighbour = np.zeros(75)
            for i in range(1, 75):
                neighbour[i] = 0.8 * neighbour[i - 1] + 0.1 * random.normal()
            found = log_median(list(np.exp(neighbour))).estimate()
            covered += found.low <= 1 <= found.high
        assert covered >= 135

    def test_two_runs_are_resampled_apart(self) -> None:
        """Equal rounds cancel in a ratio of two rows of one run, but not in a ratio of two runs."""
        rounds = list(np.exp(0.1 * np.random.default_rng(2).normal(size=75)))
        one_run = (log_median(rounds, run=0) - log_median(rounds, run=0)).estimate()
        assert one_run.low == one_run.high == 1.0
        two_runs = (log_median(rounds, run=1) - log_median(rounds, run=0)).estimate()
        assert two_runs.low < 0.98 < 1.02 < two_runs.high

    def test_a_few_rounds_have_none(self) -> None:
        assert np.isnan(log_median([1.0, 1.1, 0.9]).estimate().low)

    def test_a_known_spread_widens_them_by_the_normal_quantile(self) -> None:
        exact = log_median([1.0] * 20)
        wide = exact.widened(0.1, freedom=1e9).estimate()
        # The 97.5 % quantile of 1,000 draws has a standard error of 0.085 standard deviations.
        assert np.log(wide.high) == pytest.approx(0.196, abs=0.03)
        assert np.log(wide.low) == pytest.approx(-0.196, abs=0.03)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (0.99, 1.00, 1.01, "same"),
        (1.01, 1.02, 1.03, "same"),  # a real change, but a small one
        (1.01, 1.10, 1.20, "slower"),
        (1.01, 1.04, 1.07, "ambiguous"),
        (0.90, 1.10, 1.30, "ambiguous"),
        (0.80, 0.90, 0.99, "faster"),
        (0.90, 1.00, 1.10, "ambiguous"),
        (float("nan"), 9.00, float("nan"), "ambiguous"),
    ],
)
def test_a_verdict_takes_interval_and_band(
    low: float, value: float, high: float, verdict: str
) -> None:
    assert judge(Estimate(value, low, high), band=5.0) == verdict


class TestVerdicts:
    def test_the_same_code_is_the_same_though_the_machine_drifts(self) -> None:
        """Every row of the second run takes 1.5 times as long."""
        slow = {g: {p: 1.5 * t for p, t in of.items()} for g, of in GROUPS.items()}
        rows = compared(content(GROUPS, 1), content(slow, 2))
        assert rows["fallback"].verdict == "same"
        assert rows["eager"].verdict == "reference"
        assert rows["eager"].ratio is not None
        assert rows["eager"].ratio.value == pytest.approx(1.5, rel=0.02)

    def test_a_row_that_takes_longer_is_slower_and_one_that_takes_less_faster(self) -> None:
        old = content(GROUPS, 1)
        assert compared(old, content(scaled({"fallback": 1.2}), 2))["fallback"].verdict == "slower"
        rows = compared(old, content(scaled({"fallback": 0.8}), 2))
        assert rows["fallback"].verdict == "faster"
        assert rows["fallback"].judged == "time over eager's"

    def test_a_change_must_exceed_what_unchanged_code_shows(self) -> None:
        """Controls spread by 20 % from run to run, so a fifth more time proves nothing."""
        random = np.random.default_rng(3)
        new = scaled({"fallback": 1.2})
        for of_group in new.values():
            of_group["compiled"] *= float(np.exp(0.2 * random.normal()))
        old = content(GROUPS, 1)
        assert compared(old, content(new, 2))["fallback"].verdict == "ambiguous"
        spread = control_spread(parse(Path("old"), old), parse(Path("new"), content(new, 2)))
        assert spread.controls == len(GROUPS)
        assert 0.1 < spread.value < 0.4

    def test_controls_are_unchanged_code_and_their_common_change_counts(self) -> None:
        """All controls are 1.2 times slower relative to the first row.

        A drift of the machine would cancel in that ratio, so this is no drift.
        """
        new = {
            group: {"eager": 2 * of["eager"], "compiled": 2.4 * of["compiled"], "fallback": 9.0}
            for group, of in GROUPS.items()
        }
        old = parse(Path("old"), content(GROUPS, 1, noise=0.0))
        spread = control_spread(old, parse(Path("new"), content(new, 2, noise=0.0)))
        assert spread.value == pytest.approx(np.log(1.2))
        assert spread.controls == len(GROUPS)

    def test_every_change_has_the_medians_and_the_ratio_of_new_over_old(self) -> None:
        slow = scaled({"eager": 2.0, "fallback": 5.0})
        rows = compared(content(GROUPS, 1, noise=0.0), content(slow, 2, noise=0.0))
        row = rows["fallback"]
        assert (row.old, row.new) == (pytest.approx(1e-3), pytest.approx(5e-3))
        assert row.ratio is not None
        assert row.ratio.value == pytest.approx(2.5)  # 5 times slower, eager 2 times

    def test_few_controls_leave_the_usual_spread(self) -> None:
        few = {FIRST: GROUPS[FIRST]}
        old, new = (parse(Path("f"), content(few, seed)) for seed in (1, 2))
        assert control_spread(old, new).value == USUAL_SPREAD
        assert {c.verdict for c in changes(old, new)} == {"reference", "ambiguous"}

    def test_a_wide_band_takes_a_small_change_for_none(self) -> None:
        old, new = content(GROUPS, 1), content(scaled({"fallback": 1.2}), 2)
        assert compared(old, new, band=50.0)["fallback"].verdict == "same"

    def test_one_round_is_ambiguous(self) -> None:
        old, new = content(GROUPS, 1, rounds=1), content(scaled({"fallback": 3.0}), 2, rounds=1)
        assert compared(old, new)["fallback"].verdict == "ambiguous"

    @pytest.mark.parametrize("side", ["OLD", "NEW"])
    def test_a_disturbed_row_is_ambiguous_and_says_where(self, side: str) -> None:
        runs = {"OLD": content(GROUPS, 1), "NEW": content(scaled({"fallback": 2.0}), 2)}
        load = {"seconds": 1.0, "own": 0.5, "others": 0.5, "load_average": 2.0, "processors": 2}
        runs[side]["benchmarks"][2]["extra_info"]["load"] = load | {"disturbed": True}
        row = compared(runs["OLD"], runs["NEW"])["fallback"]
        assert (row.verdict, row.note) == ("ambiguous", f"disturbed in {side}")

    def test_without_a_first_row_of_others_times_are_judged(self) -> None:
        ours = {FIRST: {"elbo/analytic/joint": 1.0, "elbo/total-derivative/joint": 1.0}}
        slow = {FIRST: {"elbo/analytic/joint": 3.0, "elbo/total-derivative/joint": 3.0}}
        rows = compared(content(ours, 1), content(slow, 2))
        assert {(c.verdict, c.judged) for c in rows.values()} == {("slower", "time")}

    def test_a_larger_error_is_named(self) -> None:
        new = content(GROUPS, 2)
        new["benchmarks"][2]["extra_info"]["check_error_over_tolerance"] = 0.8
        rows = compared(content(GROUPS, 1), new)
        assert rows["fallback"].note == "error 0.05 → 0.80 of its tolerance"

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"timing": "CUDA events, cold L2"}, "timed by wall clock and by CUDA events"),
            ({"check_error_over_tolerance": 1.5}, "did not pass its check in NEW"),
            ({"check": "failed"}, "did not pass its check in NEW"),
        ],
    )
    def test_a_row_of_another_kind_is_not_compared(
        self, change: dict[str, Any], reason: str
    ) -> None:
        new = content(GROUPS, 2)
        new["benchmarks"][2]["extra_info"] |= change
        row = compared(content(GROUPS, 1), new)["fallback"]
        assert row.verdict == "unlike"
        assert row.note.startswith(reason)


class TestCommand:
    def run(
        self,
        folder: Path,
        old: dict[str, Any],
        new: dict[str, Any],
        *options: str,
    ) -> int:
        files = [write(folder / name, run) for name, run in (("old", old), ("new", new))]
        return main([*map(str, files), *options])

    def test_nothing_slower_exits_with_0(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = scaled({"fallback": 0.5})
        new["another op, float32"] = {"eager": 1.0}
        assert self.run(tmp_path, content(GROUPS, 1), content(new, 2, torch="2.16.0")) == 0
        out = capsys.readouterr().out
        assert "torch differs: 2.15.0 and 2.16.0" in out
        assert "1 faster, 1 appeared, 11 same, 6 reference" in out

    def test_a_slower_row_is_named_and_exits_with_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, content(GROUPS, 1), content(scaled({"fallback": 2}), 2)) == 1
        assert capsys.readouterr().out.splitlines()[-1] == f"slower: {FIRST}, fallback"

    def test_old_and_new_times_are_in_their_columns(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = content(GROUPS, 1, noise=0.0)
        new = content(scaled({"eager": 1.5, "fallback": 4.5}), 2, noise=0.0)
        self.run(tmp_path, old, new)
        out = capsys.readouterr().out
        assert "first row eager: 4.00 ms → 6.00 ms, ratio 1.50 [1.50, 1.50]" in out
        assert re.search(r"fallback +1\.00 ms +4\.50 ms +3\.00 \[\d\.\d\d, \d\.\d\d\] +slower", out)

    def test_code_of_others_that_became_slower_is_no_failure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, content(GROUPS, 1), content(scaled({"compiled": 9}), 2)) == 0

    def test_a_row_that_vanished_is_named_and_exits_with_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = {g: dict(of) for g, of in GROUPS.items()}
        del new[FIRST]["fallback"]
        assert self.run(tmp_path, content(GROUPS, 1), content(new, 2)) == 1
        assert f"vanished: {FIRST}, fallback" in capsys.readouterr().out

    def test_a_row_that_is_not_comparable_exits_with_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = content(GROUPS, 2)
        new["benchmarks"][2]["extra_info"]["timing"] = "another clock"
        assert self.run(tmp_path, content(GROUPS, 1), new) == 2
        assert f"unlike: {FIRST}, fallback" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("machine", "named"),
        [
            ({"device": "an NVIDIA H100"}, "device: a CPU and an NVIDIA H100"),
            ({"cpu": "another CPU"}, "cpu: a CPU and another CPU"),
            ({"threads": 4}, "threads: 2 and 4"),
        ],
    )
    def test_another_machine_is_refused_unless_forced(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        machine: dict[str, Any],
        named: str,
    ) -> None:
        old, new = content(GROUPS, 1), content(GROUPS, 2, **machine)
        assert self.run(tmp_path, old, new) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
        assert self.run(tmp_path, old, new, "--force") == 0
        assert named in capsys.readouterr().out

    def test_a_quick_run_is_not_held_against_a_full_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, content(GROUPS, 1), content(GROUPS, 2) | {"quick": True}) == 2
        assert "a full run and a quick run" in capsys.readouterr().err

    def test_some_groups_can_be_compared_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, new = content(GROUPS, 1), content(scaled({"fallback": 2}), 2)
        assert self.run(tmp_path, old, new, "--groups", "32 ×") == 0
        capsys.readouterr()
        assert self.run(tmp_path, old, new, "--groups", "64 ×") == 2
        assert "'64 ×'" in capsys.readouterr().err

    def test_json_says_what_the_tables_say(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, new = content(GROUPS, 1), content(scaled({"fallback": 2}), 2)
        new["benchmarks"] = new["benchmarks"][:-1]
        assert self.run(tmp_path, old, new, "--json") == 1
        told = json.loads(capsys.readouterr().out)
        assert told["exit_status"] == 1
        assert told["verdicts"]["slower"] == told["verdicts"]["vanished"] == 1
        slower = next(row for row in told["rows"] if row["verdict"] == "slower")
        assert slower["ratio"]["low"] < 2 < slower["ratio"]["high"]

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            (None, "No such file"),
            ("{", "not JSON"),
            ("[]", "not a benchmark's JSON"),
            ('{"benchmarks": []}', "lacks 'machine_info'"),
            ('{"benchmarks": [{"group": "g"}]}', "lacks 'extra_info'"),
        ],
    )
    def test_a_bad_file_is_named_in_one_line(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        text: str | None,
        named: str,
    ) -> None:
        good, bad = write(tmp_path / "good.json", content(GROUPS, 1)), tmp_path / "bad.json"
        if text is not None:
            bad.write_text(text)
        assert main([str(good), str(bad)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bench.compare: error: {bad}: ")
        assert named in error
        assert "expected a file that" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("times", [[], [0.0], [float("nan")], ["fast"]])
    def test_rows_need_times(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], times: list[Any]
    ) -> None:
        new = copy.deepcopy(content(GROUPS, 2))
        new["benchmarks"][0]["stats"]["data"] = times
        assert self.run(tmp_path, content(GROUPS, 1), new) == 2
        assert "not a run of this suite" in capsys.readouterr().err

    def test_a_file_without_rows_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, content({}, 1), content(GROUPS, 2)) == 2
        assert "has no rows" in capsys.readouterr().err

    def test_a_band_is_a_percentage(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["a", "b", "--band", "-1"])
        assert stop.value.code == 2
        assert "--band must be a percentage" in capsys.readouterr().err
