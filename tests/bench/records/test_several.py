"""Comparing two sides of several runs: false alarms, changes found, and what intervals rest on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import norm

from bench.records.changes import Change
from bench.records.compare import main
from bench.records.records import Record, parse
from bench.records.several import Moved, changes, prior_variance
from tests.bench.suite_record import content, write

GROUPS = {
    f"an op, {size} × 128, float32": {"eager": 4e-3, "compiled": 2e-3, "fallback": 1e-3}
    for size in (1, 2, 4, 8, 16, 32)
}
FIRST = next(iter(GROUPS))
BAND = 5.0


class Machine:
    """Runs of the suite in which every process has its own luck, and the machine drifts."""

    def __init__(self, seed: int, noise: float = 0.02, drift: float = 0.3) -> None:
        self.random = np.random.default_rng(seed)
        self.noise, self.drift = noise, drift

    def run(self, groups: dict[str, dict[str, float]], **slower: float) -> dict[str, Any]:
        """`slower` multiplies the times of a provider in the first group."""
        drift = self.drift * self.random.normal()
        medians = {
            group: {
                provider: seconds
                * math.exp(drift + self.noise * self.random.normal())
                * (slower.get(provider, 1.0) if group == FIRST else 1.0)
                for provider, seconds in of_group.items()
            }
            for group, of_group in groups.items()
        }
        return content(medians, 1, rounds=1, noise=0.0)

    def runs(
        self, count: int, groups: dict[str, dict[str, float]] = GROUPS, **slower: float
    ) -> list[Record]:
        return [parse(Path("run"), self.run(groups, **slower)) for _ in range(count)]


def ours(found: Sequence[Change]) -> dict[str, str]:
    return {c.group: c.verdict for c in found if c.provider == "fallback"}


def row(found: Sequence[Change], provider: str = "fallback") -> Change:
    return next(c for c in found if c.group == FIRST and c.provider == provider)


def test_unchanged_code_is_rarely_called_slower_or_faster() -> None:
    """Of 200 comparisons at most 5 % should be wrong; more than 20 are with a chance of 0.0005."""
    wrong = 0
    for seed in range(200):
        machine = Machine(seed, noise=0.05)
        found = changes(machine.runs(3), machine.runs(3), BAND)
        wrong += bool({"slower", "faster"} & set(ours(found).values()))
    assert wrong <= 20


def test_a_tenth_more_time_is_found_where_processes_differ_by_two_per_cent() -> None:
    """Its standard error is 2 %, and 6 rows are judged: the bound is near 2.9 errors, 5.9 %."""
    found = 0
    for seed in range(20):
        machine = Machine(seed)
        verdicts = ours(changes(machine.runs(5), machine.runs(5, fallback=1.1), BAND))
        found += verdicts.pop(FIRST) == "slower"
        assert "slower" not in verdicts.values()
    assert found >= 18


def test_a_machine_that_drifts_is_no_change() -> None:
    """Times differ by 35 % between runs in turn, and by 0.1 % given the controls."""
    machine = Machine(0, noise=0.001)
    found = changes(machine.runs(4), machine.runs(4), BAND)
    assert set(ours(found).values()) == {"same"}


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_machine_that_differed_between_the_sides_alone_is_no_change(factor: float) -> None:
    """All rows of NEW take 1.5 times as long, and within a side the machine did not drift."""
    slow = {group: {p: 1.5 * t for p, t in of.items()} for group, of in GROUPS.items()}
    machine = Machine(0, noise=0.001, drift=0.0)
    found = ours(changes(machine.runs(4), machine.runs(4, slow, fallback=factor), BAND))
    assert found.pop(FIRST) == ("slower" if factor > 1 else "same")
    assert set(found.values()) == {"same"}


def test_controls_that_are_noise_themselves_are_left_out() -> None:
    """Controls that differ by 20 % from process to process cannot hide a change of 10 %."""
    found = 0
    for seed in range(20):
        machine = Machine(seed, noise=0.01, drift=0.0)
        sides = []
        for factor in (1.0, 1.1):
            of_side = [machine.run(GROUPS, fallback=factor) for _ in range(6)]
            for benchmark in (b for run in of_side for b in run["benchmarks"]):
                if benchmark["extra_info"]["provider"] != "fallback":
                    benchmark["stats"]["median"] *= math.exp(0.2 * machine.random.normal())
            sides.append([parse(Path("run"), run) for run in of_side])
        found += ours(changes(sides[0], sides[1], BAND))[FIRST] == "slower"
    assert found >= 16


def test_a_change_has_the_medians_of_both_sides() -> None:
    machine = Machine(0, noise=0.001, drift=0.0)
    change = row(changes(machine.runs(3), machine.runs(3, fallback=1.5), BAND))
    assert change.old == pytest.approx(1e-3, rel=0.01)
    assert change.new == pytest.approx(1.5e-3, rel=0.01)
    assert change.ratio is not None
    assert change.ratio.value == pytest.approx(1.5, rel=0.01)


def test_a_row_is_judged_by_the_controls_of_its_group() -> None:
    """Two of three controls of one group became slower with the machine, as did our row."""
    more = {group: {**of, "careful": 3e-3} for group, of in GROUPS.items()}
    machine = Machine(0, noise=0.001)
    new = machine.runs(3, more, fallback=1.3, eager=1.3, compiled=1.3)
    found = changes(machine.runs(3, more), new, BAND)
    assert set(ours(found).values()) == {"same"}


def test_a_group_without_controls_is_judged_by_those_of_the_others() -> None:
    alone = {"a training, no controls": {"fallback": 1e-3}, **GROUPS}
    machine = Machine(0, noise=0.001)
    found = changes(machine.runs(3, alone), machine.runs(3, alone), BAND)
    assert ours(found)["a training, no controls"] == "same"


def test_an_interval_is_wider_the_more_rows_are_judged() -> None:
    def width(groups: int) -> float:
        # Equal noise of all rows makes their variance certain, so that the t law is the normal law.
        some = {f"op {i}": {"eager": 1.0, "fallback": 1.0} for i in range(groups)}
        some = {FIRST: {"eager": 1.0, "fallback": 1.0}, **some}
        step = math.exp(0.01)
        runs = [
            {g: {"eager": 1.0, "fallback": step**s} for g in some} for s in (-1, 0, 1, -1, 0, 1)
        ]
        records = [parse(Path("run"), content(run, 1, rounds=1, noise=0.0)) for run in runs]
        ratio = row(changes(records[:3], records[3:], BAND)).ratio
        assert ratio is not None
        return math.log(ratio.high)

    # Each side has a variance of 1e-4, and its mean a third of it. Equal variances with f = 4
    # degrees of freedom speak for a law whose mean is larger, by exp(log(f/2) − digamma(f/2)).
    spread = math.sqrt(2e-4 / 3 * 2 / math.exp(digamma(2)))
    assert width(1) == pytest.approx(norm.isf(0.025 / 2) * spread, rel=1e-3)
    assert width(39) == pytest.approx(norm.isf(0.025 / 40) * spread, rel=1e-3)


def test_an_interval_knows_that_the_slope_is_uncertain() -> None:
    """By least squares: the variance grows by d²/Σc², d between the sides and c within them."""

    def width(between: float) -> float:
        runs = [
            {
                group: {
                    "eager": math.exp(0.02 * c + between * new),
                    "fallback": math.exp(0.02 * c + between * new + 0.001 * residual),
                }
                for group in GROUPS
            }
            for new in (0, 1)
            for c, residual in ((-1, 1), (0, -2), (1, 1))
        ]
        records = [parse(Path("run"), content(run, 1, rounds=1, noise=0.0)) for run in runs]
        ratio = row(changes(records[:3], records[3:], BAND)).ratio
        assert ratio is not None
        assert ratio.value == pytest.approx(1.0)
        return math.log(ratio.high)

    wider = (2 / 3 + 0.03**2 / (4 * 0.02**2)) / (2 / 3)
    assert width(0.03) / width(0.0) == pytest.approx(math.sqrt(wider), rel=1e-3)


@pytest.mark.parametrize("freedom", [5.0, 40.0])
def test_the_prior_is_found_from_rows_that_follow_it(freedom: float) -> None:
    """20,000 rows with 4 degrees of freedom each; the fit's own error is a few per cent."""
    random = np.random.default_rng(0)
    variances = 0.01 * freedom / random.chisquare(freedom, 20_000)
    seen = variances * random.chisquare(4, 20_000) / 4
    value, found = prior_variance([Moved(0.0, v, 4, 1.0) for v in seen])
    assert value == pytest.approx(0.01, rel=0.05)
    assert found == pytest.approx(freedom, rel=0.2)


def disturb(run: dict[str, Any], provider: str) -> dict[str, Any]:
    """The same run, but this row of the first group took five times as long, and says why."""
    load = {"seconds": 1.0, "own": 0.5, "others": 0.5, "load_average": 2.0, "processors": 2}
    for benchmark in run["benchmarks"]:
        if benchmark["group"] == FIRST and benchmark["extra_info"]["provider"] == provider:
            benchmark["extra_info"]["load"] = load | {"disturbed": True}
            benchmark["stats"]["median"] *= 5
    return run


@pytest.mark.parametrize(("disturbed", "verdict"), [(1, "same"), (2, "ambiguous")])
def test_disturbed_runs_of_a_row_do_not_count(disturbed: int, verdict: str) -> None:
    machine = Machine(0, noise=0.001)
    runs = [machine.run(GROUPS) for _ in range(4)]
    for run in runs[:disturbed]:
        disturb(run, "fallback")
    old = [parse(Path("run"), run) for run in runs]
    change = row(changes(old, machine.runs(4), BAND))
    assert change.verdict == verdict
    assert change.note == ("disturbed in too many runs" if verdict == "ambiguous" else "")


def test_a_disturbed_control_does_not_count_either() -> None:
    machine = Machine(0, noise=0.001)
    runs = [disturb(machine.run(GROUPS), "eager") for _ in range(3)]
    old = [parse(Path("run"), run) for run in runs]
    found = changes(old, machine.runs(3), BAND)
    assert row(found).verdict == "same"
    assert row(found, "eager").verdict == "ambiguous"


def test_rows_that_vanished_appeared_or_changed_their_kind_are_named() -> None:
    machine = Machine(0)
    less = {group: dict(of) for group, of in GROUPS.items()}
    del less[FIRST]["compiled"]
    old = [machine.run(GROUPS) for _ in range(3)]
    old[1]["benchmarks"][2]["extra_info"]["timing"] = "another clock"
    found = changes(
        [parse(Path("run"), run) for run in old],
        machine.runs(3, less | {"a new op": {"eager": 1.0}}),
        BAND,
    )
    assert row(found, "compiled").verdict == "vanished"
    assert row(found, "fallback").verdict == "unlike"
    assert found[-1].verdict == "appeared"


def test_a_loss_of_accuracy_is_noted() -> None:
    machine = Machine(0, noise=0.001)
    new = machine.runs(3)
    new[1].groups[FIRST]["fallback"].info["check_error_over_tolerance"] = 0.8
    assert row(changes(machine.runs(3), new, BAND)).note == "error 0.05 → 0.80 of its tolerance"


class TestCommand:
    def files(self, folder: Path, side: str, count: int, **slower: float) -> list[str]:
        machine = Machine(len(side), noise=0.002)
        return [
            str(write(folder / f"{side}-{n}.json", machine.run(GROUPS, **slower)))
            for n in range(count)
        ]

    def test_all_runs_are_named_and_the_slower_row_exits_with_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = self.files(tmp_path, "old", 3)
        new = self.files(tmp_path, "newer", 4, fallback=1.2)
        assert main([*old, "--new", *new]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"slower: {FIRST}, fallback"
        assert [line.split()[0] for line in lines[:7]] == ["OLD"] * 3 + ["NEW"] * 4
        assert "3 and 4 runs; intervals of 95 % for all rows of ours at once" in lines
        assert main([*old, "--new", *new, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert [len(told[side]) for side in ("old", "new")] == [3, 4]
        assert told["verdicts"]["slower"] == 1

    @pytest.mark.parametrize(("old", "new"), [(1, 0), (3, 0), (3, 1), (1, 3), (2, 2)])
    def test_a_side_has_one_file_or_several_as_the_other(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: int, new: int
    ) -> None:
        arguments = self.files(tmp_path, "old", old)
        if new:
            arguments += ["--new", *self.files(tmp_path, "newer", new)]
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
        assert "expected OLD NEW, or at least three files a side" in capsys.readouterr().err

    def test_a_run_of_another_machine_is_refused_on_either_side(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, new = self.files(tmp_path, "old", 3), self.files(tmp_path, "newer", 3)
        write(Path(new[1]), content(GROUPS, 1, threads=4))
        assert main([*old, "--new", *new]) == 2
        assert "threads: 2 and 4" in capsys.readouterr().err
