"""Repeat committed training runs: `python -m bench repeat [RECORD ...] --data-root DIR`.

A record is the metrics.json of `vaez-fast train`; its run is trained again from its settings. On
the same processor with the same versions every metric and every point of the learning curve must be
the same to the last digit. Elsewhere rounding differs, and the test metrics must be close. The
default records are reports/train-mnist/seed*.json, which take some minutes on two cores.

Exit status: 0 repeated, 1 a number differs by more than is allowed, 2 a wrong setting, or a record
or data cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.command import Parser
from bench.process import ROOT
from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.data import DataError, load
from vaez_fast.runs.folder import metrics
from vaez_fast.system.environment import SAME_DIGITS, expect_no_gpu
from vaez_fast.system.files import OutputError, read_json, reading
from vaez_fast.training.train import train

# Nats. With other rounding a run differs like one of another seed; the three seeds of the committed
# table lie within 1.3.
NEAR = 2.0

Record = dict[str, Any]


def differences(before: Record, now: Record) -> Iterator[str]:
    """One line for each difference between two records of a run, except times and machines."""
    for name in before["test"]:
        was, is_now = before["test"][name], now["test"].get(name)
        if was != is_now:
            yield f"test {name} was {was!r}, is {is_now!r}"
    if before["best_step"] != now["best_step"]:
        yield f"best_step was {before['best_step']}, is {now['best_step']}"
    points = [[{**p, "seconds": 0.0} for p in record["curve"]] for record in (before, now)]
    if points[0] != points[1]:
        pairs = zip(*points, strict=False)
        first = next((was["step"] for was, is_now in pairs if was != is_now), "its end")
        yield f"the learning curve differs from step {first} on"


def moved(before: Record, now: Record) -> list[str]:
    """One phrase for each difference between the two machines."""
    was, is_now = before["environment"], now["environment"]
    return [
        f"{name} was {was.get(name)}, is {is_now.get(name)}"
        for name in SAME_DIGITS
        if was.get(name) != is_now.get(name)
    ]


def farthest(before: Record, now: Record) -> float:
    """The largest distance between the test bounds of the two runs, in nats."""
    return max(abs(before["test"][name] - now["test"][name]) for name in ("elbo", "log_px"))


def repeated(path: Path, data_root: str) -> tuple[Record, Record]:
    """A committed record, and the record of the same run trained now.

    Raises:
        OutputError: the file is no readable record of a training run.
        ConfigError, DataError: its device or its data is missing.
    """
    before = read_json(path)
    with reading(path, "train"):
        config = TrainConfig(**{**before["config"], "data_root": data_root})
        _check_numbers(before)
    dataset = load(config.data, config.data_root)
    return before, metrics(config, train(config, dataset, show_progress=True))


def _check_numbers(record: Record) -> None:
    numbers = [record["test"]["elbo"], record["test"]["log_px"], record["best_step"]]
    numbers += [point["step"] for point in record["curve"]]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError("a metric or a step is no number")
    if not isinstance(record["environment"], dict):
        raise TypeError("environment is no table")


def verdict(before: Record, now: Record) -> tuple[bool, list[str]]:
    """Whether the run was repeated, and lines that explain this."""
    lines = list(differences(before, now))
    if not lines:
        return True, ["the same to the last digit"]
    elsewhere = moved(before, now)
    if not elsewhere:
        return False, lines
    far = farthest(before, now)
    said = f"the bounds differ by up to {far:.3f} nats; up to {NEAR:g} are allowed"
    return far <= NEAR, [f"another machine: {'; '.join(elsewhere)}", said, *lines]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("repeat", __doc__)
    parser.add_argument(
        "records", type=Path, nargs="*", metavar="RECORD", help="metrics.json of a run"
    )
    parser.add_data_root("the runs' data")
    options = parser.parse_args(argv)
    expect_no_gpu()
    records = options.records or sorted((ROOT / "reports" / "train-mnist").glob("seed*.json"))
    good = True
    try:
        for path in records:
            repeats, lines = verdict(*repeated(path, options.data_root))
            good = good and repeats
            print(f"{path}: {'repeated' if repeats else 'NOT repeated'}")
            print("".join(f"  {line}\n" for line in lines), end="", flush=True)
    except (OutputError, ConfigError, DataError) as error:
        return parser.failed(error, 2)
    return 0 if good else 1
