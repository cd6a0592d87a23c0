"""Safe reading of untrusted archives that torch.save and numpy wrote.

Both are zip files. Before anything is unpacked, the sizes in the archive's directory must fit the
limit; afterwards, the content must have those sizes. The loaders get the checked content and not
the file, because two zip readers may see two different archives in one file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from .errors import first_line, shown
from .files import OutputError
from .inputs import read_bytes

# The calls in the pickle of tensors in dictionaries. torch.load would also call others, such as
# bytearray(8 * 2**30); these are refused.
CALLED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
NPY_HEADER = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0


def read_tensors(path: Path, most: int) -> Any:
    """The content of a file that torch.save wrote, with tensors on the CPU.

    The file may hold only tensors and plain values: loading it runs no code. The archive's
    checksums find flipped bits of a tensor, which PyTorch would not notice.

    Args:
        path: the file.
        most: the largest size in bytes; torch.save does not compress.

    Raises:
        OutputError: the file is missing, damaged or too large, or holds something else.
    """
    import torch  # readers of arrays do not need it

    try:
        entries = _entries(read_bytes(path, most), most, {zipfile.ZIP_STORED})
        for name, content in entries.items():
            if name.endswith("/data.pkl"):
                _check_calls(content)
        return torch.load(_archive(entries), weights_only=True, map_location="cpu")
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


def read_arrays(path: Path, most: int) -> dict[str, np.ndarray]:
    """The arrays that np.savez or np.savez_compressed wrote, by name; no arrays of Python objects.

    Args:
        path: the file.
        most: the largest size of all arrays together in bytes, unpacked.

    Raises:
        OSError: the file cannot be read.
        ValueError, zipfile.BadZipFile and others: it is damaged, too large or another file.
    """
    # Other methods allocate as much memory as the file asks for.
    methods = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    entries = _entries(read_bytes(path, most), most, methods)
    return {name.removesuffix(".npy"): _array(name, content) for name, content in entries.items()}


def _entries(content: bytes, most: int, methods: Collection[int]) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        listed = archive.infolist()
        if (total := sum(entry.file_size for entry in listed)) > most:
            raise ValueError(f"it unpacks to {total:,} bytes, expected at most {most:,}")
        for entry in listed:
            if entry.compress_type not in methods:
                raise ValueError(f"{shown(entry.filename)} is compressed as this file never is")
            if entry.filename in found:
                raise ValueError(f"{shown(entry.filename)} stands in it twice")
            found[entry.filename] = archive.read(entry)  # also compares the checksum
            if len(found[entry.filename]) != entry.file_size:
                raise ValueError(f"{shown(entry.filename)} is shorter than its archive says")
    return found


def _archive(entries: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def _check_calls(pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST"):
            raise pickle.UnpicklingError
        if opcode.name == "GLOBAL" and argument not in CALLED:
            module, _, name = str(argument).partition(" ")
            if module != "torch" or not name.endswith("Storage"):
                raise pickle.UnpicklingError


def _array(name: str, content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    major, minor = np.lib.format.read_magic(file)
    if (major, minor) not in ((1, 0), (2, 0)):
        raise ValueError(f"{shown(name)} is of a version of .npy that arrays of numbers never have")
    shape, _, dtype = NPY_HEADER[major - 1](file)
    held = len(content) - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{shown(name)} is of Python's objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{shown(name)} has {held:,} bytes, which are not those of {shape}")
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array
