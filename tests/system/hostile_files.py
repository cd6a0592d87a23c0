"""Malicious archives, arrays and data sets."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaez_fast import data

MANY = 2**27  # bytes that a small file claims to hold, or unpacks to


def saved(content: Any) -> dict[str, bytes]:
    """The entries of the archive that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def swollen(path: Path, entries: Mapping[str, bytes], name: str, size: int, head: bytes) -> None:
    """Write an archive with one entry that unpacks to `size` bytes, nearly all of them zero."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in entries.items():
            if other != name:
                archive.writestr(other, content)
        with archive.open(name, "w", force_zip64=True) as entry:
            entry.write(head)
            for first in range(len(head), size, 2**20):
                entry.write(bytes(min(2**20, size - first)))


def with_storage(entries: Mapping[str, bytes], was: int, numbers: int) -> dict[str, bytes]:
    """The entries, with a storage of `was` numbers that claims to have `numbers`."""
    said = b"K" + bytes([was]) + b"tq"
    pickled = entries["archive/data.pkl"]
    assert pickled.count(said) == 1
    claimed = b"J" + struct.pack("<i", numbers) + b"tq"
    return {**entries, "archive/data.pkl": pickled.replace(said, claimed)}


def bomb_of_tensors(path: Path, content: Any) -> None:
    """Write a file of torch.save whose storage of four numbers now has 2²⁵."""
    entries = with_storage(saved(content), 4, MANY // 4)
    swollen(path, entries, "archive/data/0", MANY, b"")


def calls(function: str, argument: int) -> bytes:
    """A pickle that calls a function of Python or PyTorch with a number."""
    module, _, name = function.rpartition(".")
    return f"\x80\x02c{module}\n{name}\n".encode("latin-1") + (
        b"J" + struct.pack("<i", argument) + b"\x85R."
    )


def npy(
    content: bytes, shape: str, dtype: str = "|u1", fortran: bool = False, version: int = 1
) -> bytes:
    """An .npy file with any header."""
    header = f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}}}".encode()
    form = "<H" if version == 1 else "<I"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(header) + 1) + header + b"\n"
    ) + content


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values)
    return buffer.getvalue()


def listed(archive: bytes, name: str, **fields: int) -> bytes:
    """The archive, with other `fields` (size, packed, crc) for an entry in its directory."""
    found = bytearray(archive)
    places = {"crc": 16, "packed": 20, "size": 24}
    start = found.rindex(b"PK\x01\x02", 0, found.rindex(name.encode()))
    for field, value in fields.items():
        found[start + places[field] : start + places[field] + 4] = struct.pack("<I", value)
    return bytes(found)


def twice(name: str, first: bytes, second: bytes, others: Mapping[str, bytes]) -> bytes:
    """An archive with two entries of the same name."""
    shadow = "x" * len(name)
    whole = zipped({name: first, shadow: second, **others})
    return whole.replace(shadow.encode(), name.encode())


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of `size` bytes that takes disk space only for its head."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def idx_head(name: str) -> bytes:
    count = 60_000 if name.startswith("train") else 10_000
    if "labels" in name:
        return struct.pack(">ii", 0x801, count)
    return struct.pack(">iiii", 0x803, count, 28, 28)


def mnist(root: Path) -> Path:
    """A whole data set of black images of class 0, in sparse files."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, size in data.IDX_FILE_BYTES.items():
        sparse(raw / name, size, idx_head(name))
    return raw


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, 784), dtype=np.uint8)
