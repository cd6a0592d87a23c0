"""A progress bar on a terminal; silent elsewhere and if tqdm is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from .errors import printable


class Progress:
    """Counts steps; shows steps/s, time left and a note if `show` and stderr is a terminal."""

    def __init__(self, total: int, label: str, *, show: bool, unit: str = "step") -> None:
        self._bar: Any = None
        if show and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # a bare GPU machine
                return
            self._bar = tqdm(total=total, desc=printable(label), unit=unit, dynamic_ncols=True)

    def advance(self, steps: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(steps)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(printable(text))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def waiting(what: str, *, show: bool) -> Iterator[None]:
    """A block of unknown duration: its name is shown in place of a progress bar."""
    show = show and sys.stderr.isatty()
    if show:
        with suppress(OSError):  # the terminal was closed; the run continues
            print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if show:
            with suppress(OSError):
                print("\r\033[K", end="", file=sys.stderr, flush=True)  # clears the line
