"""What kind of failure an exception is, and what a message shows of it."""

from __future__ import annotations

LONGEST_SHOWN = 100  # characters


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a CUDA device or on the host.

    The host's allocator raises a plain RuntimeError, which only its words tell from others.
    """
    import torch  # not for `vaez-fast --help`

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said or "not enough memory" in said
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in a line: a KeyError's words are the key alone."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[0]


def shown(value: object) -> str:
    """A value as a message shows it: the start of one that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; deep nesting
        return "what is too large to be shown"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def printable(text: object) -> str:
    """A text as a terminal or a page may have it: every character can be seen.

    A path or a record can hold escape sequences, which a terminal obeys, line breaks, marks that
    turn the direction of writing, and bytes that are no text: they are shown as in a string of
    Python's, `\\x1b`. Letters of every language stay.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text)
    )
