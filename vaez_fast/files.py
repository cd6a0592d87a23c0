"""Output folders and files: claimed by one run at a time, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import first_line


class OutputError(RuntimeError):
    """A file or folder of results that cannot be written or read, or holds something already."""


def prepare_folder(path: Path) -> None:
    """Make the folder, before any work is done for it.

    Raises:
        OutputError: it cannot be made or written.
    """
    _make_writable(path, f"out: cannot write in {path}")


def prepare_file(path: Path) -> None:
    """Make the folder of a file that is to be written, before any work is done for it.

    Raises:
        OutputError: the file could not be written.
    """
    _make_writable(path.parent, f"cannot write {path}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")


def _make_writable(folder: Path, failed: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{failed}: {error.strerror}") from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The block in which this process alone writes in a folder, which is made if need be.

    The lock is the kernel's and ends with the process, however that ends. Files that a killed
    process left half written are removed.

    Raises:
        OutputError: the folder cannot be written, or another run is at work in it.
    """
    from filelock import FileLock, Timeout  # comes with torch

    made = not folder.exists()
    prepare_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"out: another run is at work in {folder}; name another folder") from None
    except OSError as error:
        raise OutputError(f"out: cannot write in {folder}: {error.strerror}") from None
    try:
        for pattern in (".*.unfinished-*", "runs/.*.unfinished-*"):  # a study's runs
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        yield
    finally:
        # While it is still held: nobody waits for a lock, and filelock looks whether the file that
        # it has locked still has its name.
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
        lock.release()
        if made:  # and nothing put into it
            with suppress(OSError):
                folder.rmdir()


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
    # The new name itself reaches the disk, where folders can be told so: Windows has no such call,
    # and some network file systems refuse it.
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
        OutputError: no file, not a JSON object, or a number in it that is not finite.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise OutputError(f"cannot read {path}: not JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise OutputError(f"cannot read {path}: not a JSON object")
    return content


def _finite(text: str) -> float:
    # Python's JSON has NaN and Infinity, which `write_json` refuses
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


@contextmanager
def reading(path: Path, writer: str) -> Iterator[None]:
    """The block that looks up what `writer` puts into a record.

    Raises:
        OutputError: the record lacks something, or holds another kind of value there.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OutputError(
            f"cannot read {path}: expected what `vaez-fast {writer}` writes ({first_line(error)})"
        ) from error


def read_tensors(path: Path) -> Any:
    """The content of a file that torch.save wrote; tensors come to the CPU.

    It may hold tensors and plain values alone: loading it runs no code. PyTorch would not notice
    flipped bits of a tensor, the archive's checksums tell.

    Raises:
        OutputError: no such file, a damaged one, or one that holds something else.
    """
    import torch  # not for the readers of records

    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except pickle.UnpicklingError:
        raise OutputError(
            f"cannot read {path}: expected tensors and plain values; what else it holds was not "
            "loaded"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways
        raise OutputError(
            f"cannot read {path}: not a file of tensors, or a damaged one ({first_line(error)})"
        ) from None
