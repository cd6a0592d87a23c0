"""SIGINT and SIGTERM: a run ends after the step that it is in, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

PATIENT_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was told to stop, and did; like KeyboardInterrupt no `except Exception` takes it.

    `exit_status` is the shell's for that signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


class Signals:
    """Takes note of the signals inside a `with`; `received` is the first of them, or 0.

    Between `hold` and `release` they are only noted, elsewhere they raise `Stopped` at once: where
    no step is under way nothing can be torn. In threads other than the main one, where Python
    allows no handlers, the block does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # a rank that failed listens no more
                signal.signal(number, handler)

    def hold(self) -> None:
        """From here on a signal is only noted."""
        self._held = True

    def release(self) -> None:
        """From here on a signal raises again; one that was noted and not obeyed, at once."""
        self._held = False
        if self.received:
            raise Stopped(self.received)

    def _note(self, number: int, _: FrameType | None) -> None:
        # torchrun passes a terminal's Ctrl-C on to ranks that have had it: once is enough. Later
        # it is a person who will not wait for a long step, or for a rank that hangs.
        if self.received:
            if number == signal.SIGINT and time.monotonic() - self._received_at > PATIENT_SECONDS:
                raise KeyboardInterrupt
            return
        self.received, self._received_at = number, time.monotonic()
        if not self._held:
            raise Stopped(number)
