"""The messages of a command on stderr, and closed standard streams."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from .errors import printable

STREAMS = ("stdin", "stdout", "stderr")  # by descriptor


def say(command: str, text: str) -> None:
    """Print one line to stderr. If stderr is gone (a closed terminal), the line is lost."""
    line = printable(" ".join(text.split()))  # a path may hold a line break
    with suppress(OSError):
        print(f"{f'vaez-fast {command}'.strip()}: {line}", file=sys.stderr, flush=True)


def open_closed_streams() -> frozenset[str]:
    """Replace closed standard streams by the null device; returns their names.

    Otherwise a file opened later would get the stream's descriptor, and messages would go there.
    """
    closed = set()
    for descriptor, name in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(name)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
            os.set_inheritable(descriptor, True)
    for name in STREAMS:
        if getattr(sys, name) is None:
            closed.add(name)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that cannot print σ or ²
    return frozenset(closed)
