"""Output folders and files: claimed by one run at a time, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class OutputError(RuntimeError):
    """A file or folder of results that cannot be written or read, or holds something already."""


def prepare_folder(path: Path) -> None:
    """Make the folder, before any work is done for it.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"out: cannot write in {path}: {error.strerror}") from None


def prepare_file(path: Path) -> None:
    """Make the folder of a file that is to be written, before any work is done for it.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The block in which this process alone writes in a folder, which is made if need be.

    The lock is the kernel's and ends with the process, however that ends. Files that a killed
    process left half written are removed.

    Raises:
        OutputError: the folder cannot be written, or another run is at work in it.
    """
    from filelock import FileLock, Timeout  # comes with torch

    prepare_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"out: another run is at work in {folder}; name another folder") from None
    except OSError as error:
        raise OutputError(f"out: cannot write in {folder}: {error.strerror}") from None
    try:
        for left in folder.glob(".*.unfinished-*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        # While it is still held: nobody waits for a lock, so nobody can come to hold a lost file's.
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        OutputError: the file could not be written (a full disk, a lost permission).
    """
    temporary = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        # A file system that refused the write may refuse this, too: the first reason counts.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"out: cannot write {path}: {error.strerror}") from None
        raise


def _sync_folder(folder: Path) -> None:
    # The new name itself reaches the disk; Windows has no such call for folders.
    if os.name == "posix":
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
        OutputError: no file, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise OutputError(f"cannot read {path}: {reason}") from None
    if not isinstance(content, dict):
        raise OutputError(f"cannot read {path}: not a JSON object")
    return content
