"""What a command says on stderr, a line at a time, and where the standard streams are closed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from .errors import printable

STREAMS = ("stdin", "stdout", "stderr")  # by descriptor


def say(command: str, text: str) -> None:
    """Print one line. Where stderr is gone, as a terminal that was closed, the line is lost."""
    line = printable(" ".join(text.split()))  # one, also where a path holds a line break
    with suppress(OSError):
        print(f"{f'vaez-fast {command}'.strip()}: {line}", file=sys.stderr, flush=True)


def open_closed_streams() -> frozenset[str]:
    """Put the null device where a standard stream is closed; returns the names of those.

    Otherwise a file that is opened later gets the stream's descriptor, and messages land in it.
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
            stream.reconfigure(errors="replace")  # a terminal that cannot print σ or ² goes on
    return frozenset(closed)
