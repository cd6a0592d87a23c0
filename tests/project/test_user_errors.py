"""Errors that a user can correct have one base class, which carries the exit status."""

from __future__ import annotations

import pytest

import bench.records.records
import bench.scaling.run
import vaez_fast.config
import vaez_fast.data
import vaez_fast.system.files
import vaez_fast.system.world
import vaez_fast.training.loop
import vaez_fast.training.train
from vaez_fast.cli.main import main
from vaez_fast.system.errors import UserError

# Each from where it is raised or was always imported from; the base that callers caught before.
ERRORS = [
    (vaez_fast.config.ConfigError, 2, ValueError),
    (vaez_fast.data.DataError, 1, RuntimeError),
    (vaez_fast.system.files.OutputError, 1, RuntimeError),
    (vaez_fast.system.world.RankError, 1, RuntimeError),
    (vaez_fast.training.loop.TrainingError, 1, RuntimeError),
    (vaez_fast.training.train.TrainingError, 1, RuntimeError),
    (bench.records.records.RecordError, 2, ValueError),
    (bench.scaling.run.LayoutError, 1, RuntimeError),
]


@pytest.mark.parametrize(("kind", "status", "base"), ERRORS)
def test_an_error_has_its_exit_status(
    kind: type[UserError], status: int, base: type[Exception]
) -> None:
    assert issubclass(kind, UserError)
    assert issubclass(kind, base)
    assert kind("said").exit_status == status


@pytest.mark.parametrize(("kind", "status", "base"), ERRORS)
def test_the_command_line_says_it_in_a_line(
    kind: type[UserError],
    status: int,
    base: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: object) -> int:
        raise kind("no such\nthing")

    from vaez_fast.cli.commands import env

    monkeypatch.setattr(env, "run", broken)
    assert main(["env"]) == status
    assert capsys.readouterr().err == "vaez-fast env: error: no such thing\n"
