"""SIGINT, SIGTERM and SIGHUP: a run ends after the current step, with a checkpoint."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

PATIENT_SECONDS = 2.0
# Seconds that a signal may stay unhandled while the main thread waits for other ranks. The second
# limit holds during training, so that the current step can end and write a checkpoint.
DEAF_SECONDS, DEAF_SECONDS_HELD = 0.5, 10.0
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


KEPT = "what was finished is kept"


class Stopped(BaseException):
    """A signal stopped the run. Like KeyboardInterrupt, `except Exception` does not catch it.

    `exit_status` is the one that shells report for that signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


class Signals:
    """Handles the signals inside a `with`; `received` is the first of them, or 0.

    Between `hold` and `release` a signal is only recorded. Elsewhere it raises `Stopped` at once,
    because no step can be interrupted there. Signals that the process was started to ignore, as
    nohup does with SIGHUP, stay ignored. In threads other than the main one, where Python allows
    no handlers, the block does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._held = False
        self._before: dict[int, Any] = {}
        self._unheard: socket.socket | None = None  # numbers of signals that arrived

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # a failed rank ignores signals
                signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Signals) and not outer.received:  # outer blocks see it too
                outer.received, outer._received_at = self.received, self._received_at

    def hold(self) -> None:
        """From here on, signals are only recorded."""
        self._held = True

    def release(self) -> None:
        """From here on, signals raise `Stopped` again; a recorded signal raises it now."""
        self._held = False
        if self.received:
            raise Stopped(self.received)

    @contextmanager
    def heard_in_waits(self, end: Callable[[Stopped], None]) -> Iterator[None]:
        """A block in which `end` is called if Python's handlers do not get to run.

        The main thread runs no handler while it waits for other ranks, because PyTorch waits in
        C++. Another thread notices that a signal was not handled, and calls `end`.
        """
        if not self._before:
            yield
            return
        self._unheard, sender = socket.socketpair()
        self._unheard.setblocking(False)
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(self._unheard, end), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._forget_unheard()
            sender.close()
            thread.join()
            self._unheard.close()
            self._unheard = None

    def _watch(self, unheard: socket.socket, end: Callable[[Stopped], None]) -> None:
        while True:
            select.select([unheard], [], [])
            if (numbers := _numbers_in(unheard)) is None:
                return
            since, first = time.monotonic(), len(numbers)
            while numbers:
                waited = time.monotonic() - since
                if waited < PATIENT_SECONDS:
                    first = len(numbers)
                # A second signal after a while: see `_note`.
                urgent = not self._held or len(numbers) > first or self._is_impatient(since)
                if waited > (DEAF_SECONDS if urgent else DEAF_SECONDS_HELD):
                    end(Stopped(self.received or numbers[0]))
                    return
                time.sleep(0.05)
                numbers = _numbers_in(unheard)

    def _forget_unheard(self) -> None:
        if self._unheard is not None:
            with suppress(BlockingIOError):
                while self._unheard.recv(4096):
                    pass

    def _is_impatient(self, now: float) -> bool:
        return self.received > 0 and now - self._received_at > PATIENT_SECONDS

    def _note(self, number: int, _: FrameType | None) -> None:
        self._forget_unheard()
        # torchrun forwards Ctrl-C to ranks that already received it from the terminal: ignore the
        # copy. A later one is from a person who does not want to wait for a step or a hanging rank.
        if self.received:
            if number == signal.SIGINT and self._is_impatient(time.monotonic()):
                raise KeyboardInterrupt
            return
        self.received, self._received_at = number, time.monotonic()
        if not self._held:
            raise Stopped(number)


def _numbers_in(unheard: socket.socket) -> list[int] | None:
    """The unhandled ones among our signals; None if no more can arrive."""
    try:
        numbers = unheard.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
        return []
    if not numbers:
        return None
    ours = [number for number in numbers if number in SIGNALS]
    if not ours:
        unheard.recv(len(numbers))
    return ours
