"""Untrusted input files: read only if their kind and size are acceptable."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 2**29  # a record with a curve of two million points
PART = 2**20

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """The name of a kind of file other than a regular one, by its st_mode."""
    return KINDS.get(stat.S_IFMT(mode), "no file")


def read_bytes(path: Path, most: int = MOST_BYTES, *, regular: bool = True) -> bytes:
    """The content of a file of at most `most` bytes; reading stops when a file is larger.

    Args:
        path: the file; links are followed.
        most: the largest size in bytes.
        regular: whether to refuse devices and pipes, which may have no end or no writer.

    Raises:
        OSError: it cannot be read, is too large or of another kind; its strerror says which.
    """
    # Without O_NONBLOCK, opening a pipe without a writer would block.
    at_once = getattr(os, "O_NONBLOCK", 0) if regular else 0
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once)) as file:
        about = os.fstat(file.fileno())
        if regular and not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, f"it is {kind_of(about.st_mode)}, expected a regular file")
        parts, size = [], 0
        # st_size is not reliable: a file may grow, and a device reports 0.
        while max(size, about.st_size) <= most and (part := file.read(PART)):
            parts.append(part)
            size += len(part)
    if max(size, about.st_size) > most:
        raise OSError(errno.EFBIG, f"it is too large, expected at most {most:,} bytes")
    return b"".join(parts)
