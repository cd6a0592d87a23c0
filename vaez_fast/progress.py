"""A progress bar on a terminal; silence elsewhere, and where tqdm is not installed."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Counts steps; shows steps/s, time left and a note, when `show` and stderr is a terminal."""

    def __init__(self, total: int, label: str, *, show: bool) -> None:
        self._bar: Any = None
        if show and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # a bare GPU machine
                return
            self._bar = tqdm(total=total, desc=label, unit="step", dynamic_ncols=True)

    def advance(self, steps: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(steps)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)

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
