"""Settings from a TOML or JSON file, which a person or a run wrote."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..system.errors import first_line, shown
from ..system.inputs import read_bytes

# Of the records that can be read. Studies of all three schemas have the same settings.
SCHEMAS = {"vaez-fast article": (1, 2, 3)}
SCHEMA = (1,)  # of all other commands
HEADER = ("kind", "schema")
MOST_BYTES = 2**26  # a record with a curve of a quarter of a million points


def read_settings(path: Path, command: str) -> dict[str, Any]:
    """The unchecked settings for a command in a file, by name.

    The file is TOML if its name ends in .toml, else JSON. It holds either the settings, or a record
    with a table of them under "config"; the rest of a record is ignored. Settings that are null are
    left out.

    Raises:
        ConfigError: the file is missing, too large, not TOML or JSON, a record of another command
            or of an unknown schema, or holds no table of settings.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise ConfigError(f"config: {path} must hold a table of settings, got {_kind(content)}")
    kind, schema = content.get("kind"), content.get("schema", 1)
    if kind is not None and kind != command:
        raise ConfigError(f"config: {path} is a record of {shown(kind)}, not of {command!r}")
    schemas = SCHEMAS.get(command, SCHEMA)
    if type(schema) is not int or schema not in schemas:
        known = ", ".join(map(str, schemas))
        raise ConfigError(
            f"config: {path} has schema {shown(schema)}, and schema {known} can be read"
        )
    if kind is None and "config" not in content:
        settings: Any = {name: value for name, value in content.items() if name not in HEADER}
    else:
        settings = content.get("config", {})  # missing in records of commands without settings
    if not isinstance(settings, dict):
        raise ConfigError(f"config: {path}: config must be a table, got {_kind(settings)}")
    return {name: value for name, value in settings.items() if value is not None}


def _content(path: Path) -> Any:
    form = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        # Pipes are allowed: `--config <(program)`.
        text = read_bytes(path, MOST_BYTES, regular=False).decode()
        if form == "TOML":
            return tomllib.loads(text)
        return json.loads(text, object_pairs_hook=_without_repetition)
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config: {path} is not {form}: {first_line(error)}") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # As in TOML, a repeated name is an error; Python's JSON reader would take the last value.
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} stands in it twice")
    return table


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else shown(value)
