"""The kinds of values that settings have, on the command line and in a file of settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..system.errors import shown


@dataclass(frozen=True)
class Kind:
    """The `type` of an argument; its error messages say what was expected.

    Attributes:
        expected: completes the sentence "must be …".
        convert: the value of a command line's text; ValueError if it is not of this kind.
        in_file: the types that the value may have in a file.
    """

    expected: str
    convert: Callable[[str], Any]
    in_file: tuple[type, ...] = (str,)

    def __call__(self, text: str) -> Any:
        """The value of a command line's `text`.

        Raises:
            argparse.ArgumentTypeError: "must be …, got …".
        """
        try:
            return self.convert(text)
        except ValueError:
            raise self._refusal(text) from None

    def of_file(self, value: object) -> Any:
        """The value of a file's entry: as for the same text on a command line.

        Raises:
            argparse.ArgumentTypeError: "must be …, got …".
        """
        if type(value) not in self.in_file:  # not isinstance: True is an int
            raise self._refusal(value)
        try:
            text = value if isinstance(value, str) else repr(value)
        except ValueError:  # an integer of more than 4,300 digits
            raise self._refusal(value) from None
        return self(text)

    def _refusal(self, value: object) -> argparse.ArgumentTypeError:
        return argparse.ArgumentTypeError(f"must be {self.expected}, got {shown(value)}")


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


def one_of(values: Sequence[str]) -> Kind:
    """A word of `values`."""

    def convert(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return Kind(f"one of {', '.join(values)}", convert)


def some_of(values: Sequence[str]) -> Kind:
    """Comma-separated words of `values`."""

    def convert(text: str) -> list[str]:
        names = text.split(",")
        if any(name not in values for name in names):
            raise ValueError
        return names

    return Kind(f"among {', '.join(values)}, with commas between them", convert)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise ValueError
    return text


def _integer(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not least <= (value := int(text)) < 2**32:  # a word of the noise stream
            raise ValueError
        return value

    return convert


INTEGER = Kind("an integer", int, (int,))
COUNT = Kind("a positive integer below 2**32", _integer(1), (int,))
SEED = Kind("an integer in [0, 2**32)", _integer(0), (int,))
NUMBER = Kind("a number", float, (int, float))
TEXT = Kind("text", str)
PATH = Kind("a path", _path)
DEVICE = Kind("auto, cpu, cuda or cuda:N", _device)


def no_such(what: str, name: str, known: Sequence[str]) -> str:
    """The message for an unknown name, with the nearest known name and the list of all."""
    near = get_close_matches(name, known, n=1)
    nearest = f"; did you mean {near[0]}?" if near else ""
    return f"no {what} {shown(name)}{nearest} (there are {', '.join(known)})"
