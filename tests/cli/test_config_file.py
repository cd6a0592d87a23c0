"""Settings from a file: every record of a run can be run again, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.process import ROOT
from tests.kernels.drawn import repeatable
from vaez_fast.cli import settings
from vaez_fast.cli.commands import article, compare, latents, remedies, sweep, theory, train
from vaez_fast.cli.config_file import read_settings
from vaez_fast.cli.main import main
from vaez_fast.cli.parser import Parser
from vaez_fast.config import LOG_PX_SAMPLES, ConfigError, TrainConfig
from vaez_fast.study.config import RemedyConfig, StudyConfig, SweepConfig


def parsed(command: Any, *words: str) -> Namespace:
    return Parser(command.__name__.rsplit(".", 1)[1], command).settings(words)


def trained(*words: str) -> TrainConfig:
    return settings.train_config(parsed(train, *words))


def study(*words: str) -> StudyConfig:
    options = parsed(article, *words)
    return StudyConfig(settings.train_config(options), options.seeds, tuple(options.betas))


def write(folder: Path, content: Any, name: str = "settings.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def record(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def stated(path: Path) -> dict[str, Any]:
    """The settings in a committed record; files of benchmarks have none."""
    found = record(path)
    return dict(found.get("config", found if path.name == "study.json" else {}))


COMMITTED = [path for path in sorted((ROOT / "reports").rglob("*.json")) if stated(path)]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_committed_record_is_a_file_of_settings(path: Path) -> None:
    wanted = stated(path)
    if record(path).get("kind") == "vaez-fast compare":
        options = parsed(compare, "--config", str(path))
        read = {"backends": ",".join(options.backends), "ops": ",".join(options.ops)}
        assert read == wanted
    elif record(path).get("kind") == "vaez-fast latents":
        options = parsed(latents, "run", "--config", str(path))
        assert {name: getattr(options, name) for name in wanted} == wanted
    elif "latents" in wanted:
        options = parsed(sweep, "--config", str(path))
        base = settings.train_config(options)
        swept = (options.seeds, tuple(options.latents), tuple(options.betas))
        assert SweepConfig(base, *swept).as_dict() == wanted
    elif "remedies" in wanted:
        options = parsed(remedies, "--config", str(path))
        base = settings.train_config(options)
        assert RemedyConfig(base, options.seeds, tuple(options.remedies)).as_dict() == wanted
    elif "seeds" in wanted:
        config = study("--config", str(path))
        assert config.as_dict() == {"test_samples": LOG_PX_SAMPLES} | wanted
    else:
        # A record older than a setting has its default.
        resolved = dataclasses.asdict(trained("--config", str(path)))
        assert resolved == dataclasses.asdict(TrainConfig()) | wanted


def test_all_kinds_of_record_are_among_those() -> None:
    assert {"results.json", "study.json", "metrics.json", "seed0.json", "compare-cpu.json"} <= {
        path.name for path in COMMITTED
    }


FORMS = {
    "flat.json": '{"model": "burda", "steps": 7, "epochs": null, "lr": 1}',
    "flat.toml": 'model = "burda"\nsteps = 7\nlr = 1\n',
    "table.toml": 'schema = 1\n[config]\nmodel = "burda"\nsteps = 7\nlr = 1.0\n',
    "record.json": '{"kind": "vaez-fast train", "schema": 1, "speed": {"steps": 3}, "config":'
    ' {"model": "burda", "steps": 7, "lr": 1.0}}',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_means_the_same(name: str, tmp_path: Path) -> None:
    config = trained("--config", write(tmp_path, FORMS[name], name))
    assert config == TrainConfig(model="burda", epochs=None, steps=7, lr=1.0)
    assert type(config.lr) is float


def test_flags_outrank_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, {"model": "burda", "lr": 0.01, "out": "there"})
    options = parsed(train, "--config", file, "--lr", "0.5")
    assert (options.model, options.lr, options.seed) == ("burda", 0.5, 0)
    assert options.out == Path("there")
    assert options.given == {"config", "model", "lr", "out"}


@pytest.mark.parametrize(("in_file", "flag"), [("epochs", "steps"), ("steps", "epochs")])
def test_a_flag_for_the_length_replaces_the_files_other(
    in_file: str, flag: str, tmp_path: Path
) -> None:
    config = trained("--config", write(tmp_path, {in_file: 5}), f"--{flag}", "6")
    assert (getattr(config, in_file), getattr(config, flag)) == (None, 6)


def test_a_studys_betas_are_a_list(tmp_path: Path) -> None:
    file = write(tmp_path, {"betas": [2, 8.5], "seeds": 3})
    assert study("--config", file).betas == (2.0, 8.5)
    assert study("--config", file, "--beta").betas == ()


BAD: list[tuple[Any, str]] = [
    ({"modle": "burda"}, "no setting 'modle'; did you mean model? (there are data, data_root, "),
    ({"help": True}, "no setting 'help'"),
    ({"config": {"config": "x"}}, "no setting 'config'"),
    ({"json": True}, "no setting 'json'"),
    ({"batch-size": 3}, "no setting 'batch-size'; did you mean batch_size?"),
    ({"steps": "40"}, "steps must be an integer, got '40'"),
    ({"steps": True}, "steps must be an integer, got True"),
    ({"steps": 40.0}, "steps must be an integer, got 40.0"),
    ({"steps": [40]}, "steps must be an integer, got [40]"),
    ({"steps": {}}, "steps must be an integer, got {}"),
    ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
    ({"lr": False}, "lr must be a number, got False"),
    ({"model": 3}, "model must be text, got 3"),
    ({"out": 3}, "out must be a path, got 3"),
    ({"out": "a\0b"}, "out must be a path, got 'a\\x00b'"),
    ({"schema": 2, "config": {}}, "has schema 2, and schema 1 can be read"),
    ({"schema": "one"}, "has schema 'one', and schema 1 can be read"),
    ({"schema": True}, "has schema True, and schema 1 can be read"),
    (
        {"kind": "vaez-fast article", "config": {}},
        "is a record of 'vaez-fast article', not of 'vaez-fast train'",
    ),
    ({"config": [1]}, "config must be a table, got a list"),
    ([], "must hold a table of settings, got a list"),
    ("3", "must hold a table of settings, got 3"),
    ("", "is not JSON: Expecting value: line 1 column 1"),
    ('{"steps": 1, "steps": 2}', "is not JSON: 'steps' stands in it twice"),
    ("[" * 100_000, "is not JSON: "),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=lambda value: str(value)[:30])
def test_a_file_that_cannot_be_taken_is_one_line(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, content)
    assert main(["train", "--config", file, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vaez-fast train: error: config: {file}")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1e999"])
def test_a_number_out_of_range_is_refused_as_the_flags_would_be(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, f'{{"lr": {number}}}')
    assert main(["train", "--config", file, "--out", str(tmp_path / "out")]) == 2
    assert "error: lr must be a positive number, got " in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"out": "\xe9"}')
    (tmp_path / "bad.toml").write_text("steps = = 3\n")
    for name, message in (
        ("none.json", "cannot read .*No such file"),
        (".", "cannot read .*Is a directory"),
        ("latin.json", "is not JSON: .*utf-8"),
        ("bad.toml", "is not TOML: Invalid value"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_settings(tmp_path / name, "vaez-fast train")


def test_a_record_of_a_command_without_settings_holds_none(tmp_path: Path) -> None:
    record = {"kind": "vaez-fast theory", "schema": 1, "surface": {}}
    assert parsed(theory, "--config", write(tmp_path, record)).given == {"config"}


WORDS = st.text("ab1-. \0\n_é", max_size=5)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
NAMES = [field.name for field in dataclasses.fields(TrainConfig)]
FILE_NAMES = [*NAMES, "out", "config", "schema"]


@repeatable(200)
@given(st.dictionaries(st.sampled_from([*FILE_NAMES, "kind"]), TREES))
def test_any_json_gives_settings_or_names_what_is_wrong(content: dict[str, Any]) -> None:
    message = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: json.dumps(content))
        try:
            trained("--config", "file.json")
        except ConfigError as error:
            message = str(error).removeprefix("config: file.json")
    assert "\n" not in message
    assert not message or "record of" in message or any(name in message for name in FILE_NAMES)


@repeatable(200)
@given(st.dictionaries(st.sampled_from(NAMES), TREES))
def test_a_config_of_any_values_is_whole_or_names_the_field(values: dict[str, Any]) -> None:
    named, config = NAMES, TrainConfig()
    try:
        config = TrainConfig(**values)
    except ConfigError as error:
        message = str(error)
        named = [name for name in NAMES if name in message]
    assert named
    assert all(0 < float(number) < float("inf") for number in (config.lr, config.beta))
