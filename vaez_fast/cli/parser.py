"""A command's settings: its flags, then its --config file, then its defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..config import ConfigError
from .config_file import read_settings
from .kinds import PATH, Kind, no_such

ABSENT = object()
# Alternatives: a flag for one also replaces the other in a file.
INSTEAD = {"epochs": "steps", "steps": "epochs"}


class Parser(argparse.ArgumentParser):
    """The parser of one command. Every error is a ConfigError of one line."""

    def __init__(self, name: str, command: ModuleType) -> None:
        super().__init__(
            prog=f"vaez-fast {name}",
            description=command.DESCRIPTION,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            exit_on_error=False,
        )
        command.add_options(self)
        self.add_argument(
            "--config",
            type=PATH,
            metavar="FILE",
            help="settings from a TOML or JSON file, or from the record that a run wrote; flags"
            " outrank it",
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def settings(self, words: Sequence[str]) -> argparse.Namespace:
        """Every setting, and as `given` the names of those that were set explicitly.

        Raises:
            ConfigError: an unknown flag, a value that is not of its argument's kind, or an invalid
                file of settings; the message names the argument.
        """
        flags = self._flags(words)
        file = self._file(flags["config"]) if "config" in flags else {}
        for name in flags:
            file.pop(INSTEAD.get(name, ""), None)
        given = file | flags
        values = {action.dest: action.default for action in self._actions} | given
        del values["help"]
        return argparse.Namespace(**values, given=frozenset(given))

    def _flags(self, words: Sequence[str]) -> dict[str, Any]:
        nothing = argparse.Namespace(**{action.dest: ABSENT for action in self._actions})
        try:
            found, extra = self.parse_known_args(words, nothing)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "").split("/")[-1].removeprefix("--").replace("-", "_")
            # Messages of our kinds continue the sentence; argparse's own messages do not.
            glue = " " if error.message.startswith("must be ") else ": "
            self.error(f"{name}{glue}{error.message}" if name else error.message)
        if extra:
            self._refuse(extra[0])
        return {name: value for name, value in vars(found).items() if value is not ABSENT}

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            self.error(f"no argument was expected at {word!r}")
        flags = [action.option_strings[-1] for action in self._actions if action.option_strings]
        self.error(no_such("flag", word.split("=")[0], flags))

    def _file(self, path: Path) -> dict[str, Any]:
        known = {
            action.dest: action
            for action in self._actions
            if isinstance(action.type, Kind) and action.option_strings and action.dest != "config"
        }
        values = {}
        for name, value in read_settings(path, self.prog).items():
            if name not in known:
                self.error(f"config: {path}: {no_such('setting', name, list(known))}")
            try:
                values[name] = _of_file(known[name], value)
            except argparse.ArgumentTypeError as error:
                self.error(f"config: {path}: {name} {error}")
        return values


def _of_file(action: argparse.Action, value: object) -> Any:
    assert isinstance(action.type, Kind)
    if action.nargs is None:
        return action.type.of_file(value)
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"must be a list, got {value!r}")
    return [action.type.of_file(one) for one in value]
