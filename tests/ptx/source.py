"""Splits PTX text into an entry's head and the statements of its body, with line numbers."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.ptx.errors import UnsupportedPtx


class Statement(NamedTuple):
    """A label, a directive, an instruction, or the brace of a scope."""

    line: int
    text: str
    source: str  # file:line:column of the code it was compiled from, if the PTX records it


class Entry(NamedTuple):
    """A kernel as written. `before` is the module's text above it."""

    name: str
    before: str
    parameters: str
    directives: str
    body: list[Statement]


def entry_of(ptx: str) -> Entry:
    """The only kernel of a module.

    Raises:
        UnsupportedPtx: there is no kernel or more than one, or the module has functions.
    """
    code = _without(r"//.*|/\*.*?\*/|^[ \t]*\.(?:loc|file)\b.*", ptx)
    starts = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", code))
    if len(starts) != 1:
        raise UnsupportedPtx(f"expected one .entry in the PTX, got {len(starts)}")
    (start,) = starts
    if function := re.search(r"^\s*(?:\.\w+\s+)*\.func\b.*", code, re.M):
        raise UnsupportedPtx(f"functions are not supported: {function[0].strip()}")
    body = list(_statements(ptx, code, start.end()))
    return Entry(start[1], code[: start.start()], start[2], start[3], body)


def _without(pattern: str, ptx: str) -> str:
    # Spaces keep the length, so that positions are valid in both texts.
    return re.sub(pattern, lambda found: " " * len(found[0]), ptx, flags=re.M)


STATEMENT = re.compile(r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$]+:)(?!:)|(?P<code>[^;]*);)")


def _statements(ptx: str, code: str, position: int) -> Iterator[Statement]:
    # A brace that begins a statement opens or closes a scope; all others enclose a vector.
    located = [
        (place.start(), place[1])
        for place in re.finditer(r"^[ \t]*\.loc\b.*//\s*(\S+:\d+:\d+)", ptx, re.M)
    ]
    places = [start for start, _ in located]
    lines = [0, *(found.end() for found in re.finditer("\n", ptx))]
    depth = 0
    while depth >= 0:
        found = STATEMENT.match(code, position)
        if not found:
            raise UnsupportedPtx("the body of the .entry has no closing brace")
        position = found.end()
        begin = found.start(str(found.lastgroup))
        text = " ".join(found[str(found.lastgroup)].split())
        depth += {"{": 1, "}": -1}.get(text, 0)
        before = bisect.bisect(places, begin)
        source = located[before - 1][1] if before else ""
        if text and depth >= 0:
            yield Statement(bisect.bisect(lines, begin), text, source)
