"""The change of each row between two runs, judged by intervals: see bench.records.compare."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.records.bootstrap import Estimate, LogMedian, log_median
from bench.records.records import Record, Row, reference_of

BAND = 5.0  # per cent
FEWEST_CONTROLS = 5
USUAL_SPREAD = 0.15  # with fewer controls: a measured value, see bench.records.compare


@dataclass(frozen=True)
class Change:
    """The change of a row: medians in seconds, None for a run that lacks the row."""

    group: str
    provider: str
    ours: bool
    verdict: str
    old: float | None
    new: float | None
    ratio: Estimate | None = None  # new over old, of what `judged` names
    judged: str | None = None  # "time over NAME's" or "time"
    note: str = ""


def changes(old: Record, new: Record, band: float = BAND) -> list[Change]:
    """Every row of either run, in the order of OLD and then of NEW.

    Args:
        band: the change in per cent that counts as none.
    """
    spread = control_spread(old, new)
    found = []
    for title in dict.fromkeys([*old.groups, *new.groups]):
        before, after = old.groups.get(title, {}), new.groups.get(title, {})
        for provider in dict.fromkeys([*before, *after]):
            row, successor = before.get(provider), after.get(provider)
            if successor is None:
                assert row is not None
                found.append(Change(title, provider, row.ours, "vanished", row.median, None))
            elif row is None:
                change = Change(title, provider, successor.ours, "appeared", None, successor.median)
                found.append(change)
            else:
                found.append(_change(before, after, provider, spread, band))
    return found


@dataclass(frozen=True)
class Spread:
    """Root mean square of the logarithmic changes of the controls between two runs."""

    value: float
    controls: int  # 0 if there were too few, and the value is the usual one

    @property
    def freedom(self) -> float:
        """Degrees of freedom; the usual spread counts as exactly known."""
        return float(self.controls or 10**9)

    def text(self) -> str:
        if not self.controls:
            return f"too few controls: taken to spread by {self.value:.0%} from run to run"
        return f"{self.controls} controls, code that did not change, spread by {self.value:.1%}"


def control_spread(old: Record, new: Record) -> Spread:
    """How far the ratios of unchanged rows are from 1."""
    squares = []
    for title in old.groups.keys() & new.groups.keys():
        before, after = old.groups[title], new.groups[title]
        reference = _common_reference(before, after)
        for provider in before.keys() & after.keys() - {reference}:
            ours = before[provider].ours or after[provider].ours
            if reference and not ours and not unlike(before[provider], after[provider]):
                squares.append(_log_ratio(before, after, provider, reference).value ** 2)
    if len(squares) < FEWEST_CONTROLS:
        return Spread(USUAL_SPREAD, 0)
    return Spread(math.sqrt(sum(squares) / len(squares)), len(squares))


def _log_ratio(
    before: dict[str, Row], after: dict[str, Row], provider: str, reference: str | None
) -> LogMedian:
    # NEW over OLD: of the row's time over the reference's, or of its time if there is no reference.
    then, now = (
        log_median(before[provider].seconds, run=0),
        log_median(after[provider].seconds, run=1),
    )
    if reference is not None:
        then -= log_median(before[reference].seconds, run=0)
        now -= log_median(after[reference].seconds, run=1)
    return now - then


def _common_reference(before: dict[str, Row], after: dict[str, Row]) -> str | None:
    # None if the first rows differ or are ours: then no row is known to be unchanged.
    if not (before and after):
        return None
    old, new = reference_of(before), reference_of(after)
    same = old.provider == new.provider and not old.ours and not unlike(old, new)
    return old.provider if same else None


def _change(
    before: dict[str, Row], after: dict[str, Row], provider: str, spread: Spread, band: float
) -> Change:
    old, new = before[provider], after[provider]
    change = Change(old.group, provider, old.ours, "unlike", old.median, new.median)
    if reason := unlike(old, new):
        return replace(change, note=reason)
    reference = _common_reference(before, after)
    if provider == reference:
        ratio = _log_ratio(before, after, provider, None).estimate()
        return replace(change, verdict="reference", judged="time", ratio=ratio)
    log_ratio = _log_ratio(before, after, provider, reference)
    ratio = log_ratio.widened(spread.value, spread.freedom).estimate()
    busy = [name for name, row in (("OLD", old), ("NEW", new)) if row.disturbed]
    return replace(
        change,
        verdict="ambiguous" if busy else judge(ratio, band),
        judged=f"time over {reference}'s" if reference else "time",
        ratio=ratio,
        note=f"disturbed in {' and '.join(busy)}" if busy else accuracy(old, new),
    )


def unlike(old: Row, new: Row) -> str:
    """Why two times of a row cannot be compared; empty if they can."""
    timings = old.info.get("timing"), new.info.get("timing")
    if timings[0] != timings[1]:
        return f"timed by {timings[0]} and by {timings[1]}"
    for name, row in (("OLD", old), ("NEW", new)):
        if row.info.get("check") != "passed" or not row.error <= 1:
            return f"did not pass its check in {name}"
    return ""


def accuracy(old: Row, new: Row) -> str:
    """A row's loss of accuracy, in units of its tolerance; empty if it lost none."""
    if new.error > max(2 * old.error, 0.1):
        return f"error {old.error:.2f} → {new.error:.2f} of its tolerance"
    return ""


def judge(ratio: Estimate, band: float) -> str:
    """ "slower", "faster", "same" or "ambiguous" for a ratio NEW over OLD; `band` in per cent."""
    edge = 1 + band / 100
    if math.isnan(ratio.low):
        return "ambiguous"
    if ratio.low >= 1 / edge and ratio.high <= edge:
        return "same"
    if ratio.low > 1 and ratio.value > edge:
        return "slower"
    if ratio.high < 1 and ratio.value < 1 / edge:
        return "faster"
    return "ambiguous"
