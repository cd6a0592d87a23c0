"""Output folders and files: claimed by one run at a time, written completely or not at all.

A file may be new or replace a regular file. A device, a pipe, a folder or a symbolic link in its
place is refused: through a link, a folder that came from elsewhere could make a report overwrite
any of the user's files. To write the file behind a link, name that file. Folders may be links.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError, first_line
from .inputs import kind_of, read_bytes

LOCK = ".vaez-fast.lock"
# A file that is being written. The random name keeps others from planting a link there.
UNFINISHED = re.compile(r"\.vaez-fast-[0-9a-f]{16}\.unfinished")


class OutputError(UserError, RuntimeError):
    """A result file or folder cannot be written or read, or already holds something."""


def prepare_folder(path: Path) -> None:
    """Create the folder before any work is done for it.

    Raises:
        OutputError: it cannot be created or written to.
    """
    _make_writable(path, f"out: cannot write in {path}")


def prepare_file(path: Path) -> None:
    """Create the folder of an output file before any work is done for it.

    Raises:
        OutputError: the file could not be written.
    """
    _make_writable(path.parent, f"cannot write {path}")
    check_place(path)


def prepare_files(folder: Path, *names: str) -> None:
    """Create the folder of output files before any work is done for them.

    Raises:
        OutputError: one of them could not be written.
    """
    prepare_folder(folder)
    for name in names:
        check_place(folder / name)


def check_place(path: Path) -> None:
    """Check that `path` is free or holds a regular file, so that a file can be written there.

    Raises:
        OutputError: something else is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise OutputError(
            f"cannot write {path}: it is {kind_of(mode)}; expected a regular file, or nothing there"
        )


def _make_writable(folder: Path, failed: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{failed}: {error.strerror}") from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A block in which only this process writes in the folder; creates the folder if needed.

    The operating system releases the lock when the process ends, however it ends. Unfinished files
    of a killed process are removed: regular files whose name matches `UNFINISHED`.

    Raises:
        OutputError: the folder cannot be written, or another run is at work in it.
    """
    from filelock import FileLock, Timeout  # comes with torch

    made = not folder.exists()
    prepare_files(folder, LOCK)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"out: another run is at work in {folder}; name another folder") from None
    except OSError as error:
        raise OutputError(f"out: cannot write in {folder}: {error.strerror}") from None
    try:
        for place in (folder, folder / "runs"):  # a study's runs
            _remove_unfinished(place)
        yield
    finally:
        # Deleted while still locked: nobody waits for the lock, and filelock checks that the file
        # it locked still has its name.
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:  # rmdir fails if it is not empty
            with suppress(OSError):
                folder.rmdir()


def _remove_unfinished(folder: Path) -> None:
    for left in folder.glob(".vaez-fast-*"):
        if UNFINISHED.fullmatch(left.name) and stat.S_ISREG(left.lstat().st_mode):
            left.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if the machine crashes.

    Its mode follows the umask.

    Raises:
        OutputError: the file could not be written (a full disk, a lost permission), or something
            other than a regular file is in its place.
    """
    check_place(path)
    temporary = path.with_name(f".vaez-fast-{secrets.token_hex(8)}.unfinished")
    try:
        handle = _create(temporary)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # A file system that refused the write may refuse this too; report the first error.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"out: cannot write {path}: {error.strerror}") from None


def _create(path: Path) -> int:
    # Windows lacks O_NOFOLLOW, and without O_BINARY it would convert line breaks.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def _sync_folder(folder: Path) -> None:
    # Makes the new name durable. Windows has no such call, and some network file systems refuse it.
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a record.

    Raises:
        OutputError: the file could not be written.
    """
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The content of a record.

    Raises:
        OutputError: there is no file, it is not a JSON object, or a number is not finite.
    """
    try:
        text = read_bytes(path).decode()
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise OutputError(f"cannot read {path}: not JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise OutputError(f"cannot read {path}: not a JSON object")
    return content


def _finite(text: str) -> float:
    # Python's JSON reader accepts NaN and Infinity, which `write_json` refuses.
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


@contextmanager
def reading(path: Path, writer: str) -> Iterator[None]:
    """A block that reads values of a record that `writer` wrote.

    Raises:
        OutputError: a value is missing or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OutputError(
            f"cannot read {path}: expected what `vaez-fast {writer}` writes ({first_line(error)})"
        ) from error
