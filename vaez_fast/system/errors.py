"""Errors that a user can correct, and how messages show errors and values."""

from __future__ import annotations

LONGEST_SHOWN = 100  # characters


class UserError(Exception):
    """An error that the user can correct: a command prints its one line and exits.

    `exit_status` is the status with which the command exits.
    """

    exit_status = 1


class ConfigError(UserError, ValueError):
    """An invalid setting; the message names the setting and what was expected."""

    exit_status = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a CUDA device or on the host.

    The host's allocator raises a plain RuntimeError, so its message has to be searched.
    """
    import torch  # not for `vaez-fast --help`

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said or "not enough memory" in said
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; a KeyError's message is only the key."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[0]


def shown(value: object) -> str:
    """A value as a message shows it, cut off if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; deep nesting
        return "what is too large to be shown"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def printable(text: object) -> str:
    """A text that is safe to print: every character is visible.

    A path or a record can hold terminal escape sequences, line breaks, marks that change the
    writing direction, and bytes that are not text. These are shown as in a Python string,
    `\\x1b`. Letters of every language stay.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text)
    )
