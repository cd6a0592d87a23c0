"""A mutant: one small bug, made by one replacement in a file, and the tests to catch it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {
    "says": str,
    "file": str,
    "was": str,
    "becomes": str,
    "tests": list,
    "review": bool,
    "harmless": str,
}
REQUIRED = ("says", "file", "was", "becomes", "tests")


class MutantError(ValueError):
    """A mutant cannot be made, or a test run allows no conclusion about it."""


@dataclass(frozen=True)
class Mutant:
    """One small bug.

    Attributes:
        says: the bug in one sentence.
        file: the file that has the bug, relative to the top of the checkout.
        was, becomes: the text to replace, which occurs in the file once, and its replacement.
        tests: arguments of pytest that name the tests.
        review: whether a review once put this bug in, and the tests of that time passed.
        harmless: the reason why the change has no observable effect; empty for a bug.
    """

    says: str
    file: str
    was: str
    becomes: str
    tests: tuple[str, ...]
    review: bool = False
    harmless: str = ""

    def line(self, root: Path) -> int:
        """The line of the file, counted from 1, at which the replaced text begins."""
        before, _, _ = self._text(root).partition(self.was)
        return before.count("\n") + 1

    def mutated(self, root: Path) -> str:
        """The content of the file with the bug.

        Raises:
            MutantError: the file cannot be read, or the text does not occur in it exactly once.
        """
        text = self._text(root)
        if (count := text.count(self.was)) != 1:
            raise MutantError(
                f"{self.says!r}: its text must stand in {self.file} once, found {count} times"
            )
        return text.replace(self.was, self.becomes)

    def _text(self, root: Path) -> str:
        try:
            return (root / self.file).read_text()
        except OSError as error:
            raise MutantError(f"{self.says!r}: cannot read {self.file}: {error.strerror}") from None


def read(path: Path) -> list[Mutant]:
    """The mutants of a TOML file, one for each `[[mutant]]`.

    Raises:
        MutantError: the file cannot be read, or a mutant lacks a key, has an unknown key, or has a
            value of a wrong type.
    """
    try:
        tables = tomllib.loads(path.read_text()).get("mutant", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise MutantError(f"{path}: {error}") from None
    return [_mutant(path, table) for table in tables]


def sample(mutants: Sequence[Mutant], every: int) -> list[Mutant]:
    """The mutants that a review named, and every `every`-th of the others, in their order."""
    others = [m for m in mutants if not m.review][::every]
    chosen = {id(m) for m in others}
    return [m for m in mutants if m.review or id(m) in chosen]


def _mutant(path: Path, table: dict[str, Any]) -> Mutant:
    name = table.get("says", "a mutant without says")
    for key in REQUIRED:
        if key not in table:
            raise MutantError(f"{path}: {name!r} lacks {key}")
    for key, value in table.items():
        if key not in KINDS:
            raise MutantError(f"{path}: {name!r} has {key!r}, expected {', '.join(KINDS)}")
        if type(value) is not KINDS[key]:
            raise MutantError(f"{path}: {name!r}: {key} must be a {KINDS[key].__name__}")
    if not table["tests"]:
        raise MutantError(f"{path}: {name!r} names no tests")
    if table["was"] == table["becomes"]:
        raise MutantError(f"{path}: {name!r} changes nothing")
    return Mutant(**{**table, "tests": tuple(table["tests"])})
