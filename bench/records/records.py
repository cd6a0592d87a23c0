"""The suite's JSON files, read again: rows in groups, the machine, the date."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.timing.busy import disturbed
from vaez_fast.system.errors import UserError, first_line, shown
from vaez_fast.system.inputs import read_bytes

# Providers that are not ours, timed for comparison; all other providers are ours.
OTHERS = ("eager", "textbook", "torch.randn", "compiled", "careful", "products")


class RecordError(UserError, ValueError):
    """The file holds no run of the suite; the message names the file and what was expected."""

    exit_status = 2


@dataclass(frozen=True)
class Row:
    """A provider's rounds in one group."""

    group: str
    provider: str
    seconds: tuple[float, ...]  # of each round, in the order they were taken
    median: float
    iqr: float
    info: dict[str, Any]

    @property
    def error(self) -> float:
        """The largest error in its check, in units of the tolerance."""
        return float(self.info["check_error_over_tolerance"])

    @property
    def own_time(self) -> float:
        """Median seconds of the device alone where they are known, else of the caller."""
        times = self.info.get("device_seconds")
        return median(times) if times else self.median

    @property
    def ours(self) -> bool:
        return not self.provider.startswith(OTHERS)

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much of the machine that the time is doubtful."""
        load = self.info.get("load")
        return load is not None and disturbed(load, self.info.get("device", "cpu"))

    def as_summary(self) -> tuple[str, dict[str, Any], float, float]:
        """The row as the tables of bench.records.summary take it."""
        return self.group, self.info, self.median, self.iqr


@dataclass(frozen=True)
class Record:
    """One run of the suite."""

    path: Path
    date: str  # ISO 8601, UTC
    machine: dict[str, Any]
    quick: bool
    command: str
    groups: dict[str, dict[str, Row]]  # title → provider → row, in the order they ran

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups.values() for row in group.values()]

    @property
    def copy(self) -> float | None:
        """GB/s of a plain copy, read plus written; None if no row has a floor in bytes."""
        rates = (row.info.get("copy_gb_per_second") for row in self.rows)
        return next((float(rate) for rate in rates if rate), None)

    @property
    def revision(self) -> str:
        """The first seven digits of the commit, and whether files differed from it."""
        return revision_of(self.machine)

    def where(self) -> str:
        """Machine, versions, date and commit in one line."""
        machine = self.machine
        return (
            f"{machine_text(machine)}, torch {machine['torch']}, triton {machine['triton']}, "
            f"{self.date[:16].replace('T', ' ')}, revision {self.revision}"
        )


def machine_text(machine: dict[str, Any]) -> str:
    """The name of the machine and the number of threads."""
    threads = machine["threads"]
    return f"{machine['device']}, {threads} thread{'' if threads == 1 else 's'}"


def revision_of(machine: dict[str, Any]) -> str:
    """The commit in a record of `environment`: "c9ddd57", "c9ddd57 with changes" or "–"."""
    revision, dirty = machine.get("revision"), machine.get("dirty")
    return f"{revision[:7]}{' with changes' if dirty else ''}" if revision else "–"


def family(group: str) -> str:
    """The title of a group without direction, size and dtype: "latent op", "training step"."""
    return group.split(",")[0]


def part_of_name(family: str) -> str:
    """A family as a part of file names."""
    return re.sub(r"\W+", "-", family)


def reference_of(group: dict[str, Row]) -> Row:
    """The first row; the speed-ups of all rows are relative to it."""
    return next(iter(group.values()))


def on_device(group: dict[str, Row]) -> dict[str, Row]:
    """The rows with device times as their rounds; empty if the first row has no device times."""
    if not reference_of(group).info.get("device_seconds"):
        return {}
    return {
        name: replace(row, seconds=tuple(row.info["device_seconds"]), median=row.own_time)
        for name, row in group.items()
        if row.info.get("device_seconds")
    }


def read(path: Path) -> Record:
    """Read a file that --benchmark-json wrote.

    Raises:
        RecordError: it cannot be read, is not of the suite, or has no rows or rounds.
    """
    return parse(path, load(path))


def load(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}; {EXPECTED}") from None
    except (ValueError, RecursionError):  # also of UnicodeDecodeError
        raise RecordError(f"{path}: not JSON; {EXPECTED}") from None


EXPECTED = "expected a file that `pytest bench --benchmark-only --benchmark-json=FILE` wrote"


def parse(path: Path, content: Any) -> Record:
    """The record from the content of a file.

    Raises:
        RecordError: as for `read`.
    """
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list):
        raise RecordError(f"{path}: not a benchmark's JSON; {EXPECTED}")
    groups: dict[str, dict[str, Row]] = {}
    try:
        for benchmark in content["benchmarks"]:
            row = _row(benchmark)
            groups.setdefault(row.group, {})[row.provider] = row
        machine = content["machine_info"]
        machine = {name: machine.get(name) for name in machine} | {
            name: machine[name] for name in ("device", "cpu", "threads", "torch", "triton")
        }
        for title, group in groups.items():
            if len({row.info["floor_bytes"] for row in group.values()}) > 1:
                raise ValueError(f"the rows of {title} have several floors")
        for name, value in machine.items():
            _check_visible(shown(name), value)
        _check_text("device", machine["device"])
        _check_text("datetime", content["datetime"])
        _check_text("revision", machine.get("revision") or "")
        record = Record(
            path,
            content["datetime"],
            machine,
            bool(content.get("quick")),
            str(content.get("command", "")),
            groups,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(
            f"{path}: not a run of this suite ({first_line(error)}); {EXPECTED}"
        ) from None
    if not groups:
        raise RecordError(f"{path}: has no rows; {EXPECTED}")
    return record


def _row(benchmark: dict[str, Any]) -> Row:
    info, stats = benchmark["extra_info"], benchmark["stats"]
    seconds = tuple(float(value) for value in stats["data"])
    middle, iqr = float(stats["median"]), float(stats["iqr"])
    if not seconds or not all(0 < value < math.inf for value in (*seconds, middle)):
        raise ValueError(f"no positive times in {benchmark['group']}, {info['provider']}")
    if not 0 <= iqr < math.inf:
        raise ValueError(f"no spread of times in {benchmark['group']}, {info['provider']}")
    _check_info(info)
    for name, text in (("group", benchmark["group"]), ("provider", info["provider"])):
        _check_text(name, text)
    return Row(benchmark["group"], info["provider"], seconds, middle, iqr, info)


# The values that tables and figures use: of a row with a floor, those that may be missing, those of
# the machine's load, and those of a training.
WITH_FLOOR = ("floor_bytes", "gb_per_second", "copy_gb_per_second", "percent_of_copy")
MAYBE = (
    *("moved_bytes", "images", "step_over_products", "operations"),
    *("peak_operations_per_second", "alone_seconds"),
)
LOAD = ("seconds", "own", "others", "load_average", "processors")
LOAD_MAYBE = ("others", "load_average")
METRICS = ("rate", "elbo", "log_px", "log_px_samples")


def _check_info(info: dict[str, Any]) -> None:
    _check_number("check_error_over_tolerance", info["check_error_over_tolerance"], least=0)
    if info["peak_memory_bytes"] is not None:
        _check_number("peak_memory_bytes", info["peak_memory_bytes"], least=0)
    if info["floor_bytes"] is not None:
        for name in WITH_FLOOR:
            _check_number(name, info[name], least=1e-12)
    for name in MAYBE:
        if info.get(name) is not None:
            _check_number(name, info[name], least=1e-12)
    if info.get("device_seconds") is not None:
        if not isinstance(info["device_seconds"], list) or not info["device_seconds"]:
            raise ValueError(f"its device_seconds are {shown(info['device_seconds'])}")
        for value in info["device_seconds"]:
            _check_number("device_seconds", value, least=1e-12)
    if info.get("load") is not None:
        load = info["load"]
        for name in LOAD:
            if not (name in LOAD_MAYBE and load[name] is None):
                _check_number(name, load[name], least=0)
        if load.get("stolen") is not None:  # older files lack it
            _check_number("stolen", load["stolen"], least=0)
        if load.get("disturbed") not in (None, True, False):
            raise ValueError(f"its disturbed is {shown(load['disturbed'])}")
    if "metrics" in info:
        _check_number("images_per_second", info["images_per_second"], least=0)
        for name in METRICS:
            _check_number(name, info["metrics"][name], least=-math.inf)
        _check_text("data", info["data"])


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"its {name} is {shown(value)}")
    _check_visible(name, value)
    if "$" in value:  # matplotlib would typeset a formula
        raise ValueError(f"its {name} is {shown(value)}")


def _check_visible(name: str, value: object) -> None:
    # Tables go to a terminal, which obeys escape sequences.
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"its {name} is {shown(value)}")


def _check_number(name: str, value: object, least: float) -> None:
    if type(value) not in (int, float) or not least <= value <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"its {name} is {shown(value)}")
