"""Data sets in .npz files: arrays of numbers, and sparse matrices as scipy writes them.

A dense entry is an array of its name. A sparse entry `counts` is four arrays: `counts.indptr`,
`counts.indices`, `counts.data` and `counts.shape`. So counts and, say, the size of each cell's
library lie in one file. In a file of `scipy.sparse.save_npz` the four have no prefix; that matrix
becomes the entry `x`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data import DataError
from ..system.archives import read_arrays
from ..system.errors import first_line
from ..system.files import prepare_file, write_atomically
from .arrays import tensor_of
from .entries import Entry, check_entries
from .sparse import SparseRows

MOST_BYTES = 2**33
PARTS = ("indptr", "indices", "data", "shape")
OF_SCIPY = ("format", "_is_array")  # what scipy.sparse.save_npz writes beside the parts


def load_npz(path: str | Path, *, most: int = MOST_BYTES) -> dict[str, Entry]:
    """The entries of an .npz, on the CPU, in the order of the file.

    Reading it runs no code, whoever wrote it. It needs about three times the memory of the arrays
    for a moment.

    Args:
        path: of a file that `save_npz`, np.savez, np.savez_compressed or scipy.sparse.save_npz (in
            the format CSR) wrote.
        most: the largest size of all arrays together in bytes, unpacked.

    Returns:
        Tensors of the arrays' dtypes, where uint16 becomes int32 and uint32 int64, and
        `SparseRows`.

    Raises:
        DataError: the file is missing, damaged, larger than `most` or no .npz, or an entry is not
            what `check_entries` and `SparseRows.of` take: one line names the file and the entry.
    """
    try:
        data = _entries(read_arrays(Path(path), most))
        check_entries(data, op="its entries")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except zipfile.BadZipFile as error:
        raise DataError(
            f"cannot read {path}: not an .npz, or a damaged one ({first_line(error)})"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways
        raise DataError(f"cannot read {path}: {first_line(error)}") from None
    return data


def save_npz(path: str | Path, data: Mapping[str, Entry]) -> None:
    """Write entries to a file that `load_npz` reads, completely or not at all.

    Spare places and values of 0 of a sparse entry are not written, and each row's columns keep
    their order.

    Raises:
        TypeError, ValueError: the entries are not what `check_entries` takes, a name is not one of
            Python's identifiers or is that of a part, or a dtype is unknown to NumPy (bfloat16).
        OutputError: the file cannot be written.
    """
    check_entries(data, op="save_npz")
    arrays: dict[str, np.ndarray] = {}
    for name, entry in data.items():
        if not name.isidentifier() or name in (*PARTS, *OF_SCIPY):
            raise ValueError(f"save_npz: {name!r} cannot be the name of an entry")
        if isinstance(entry, SparseRows):
            arrays |= {f"{name}.{part}": array for part, array in _csr(name, entry).items()}
        else:
            arrays[name] = _array(name, entry)
    prepare_file(Path(path))
    buffer = io.BytesIO()
    # Not np.savez, whose own arguments could not be names of entries.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    write_atomically(Path(path), buffer.getvalue())


def _entries(arrays: dict[str, np.ndarray]) -> dict[str, Entry]:
    data: dict[str, Entry] = {}
    for name, array in arrays.items():
        prefix, dot, part = name.rpartition(".")
        of_matrix = f"{prefix}{dot}indptr" in arrays
        if of_matrix and part in PARTS:
            if part == "indptr":
                _add(data, prefix or "x", _sparse(prefix or "x", prefix + dot, arrays))
        elif not (of_matrix and part in OF_SCIPY):
            _add(data, name, _tensor(name, array))
    return data


def _add(data: dict[str, Entry], name: str, entry: Entry) -> None:
    if name in data:
        raise ValueError(f"two of its entries are called {name}")
    data[name] = entry


def _tensor(name: str, array: np.ndarray) -> Tensor:
    try:
        return tensor_of(array)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def _sparse(name: str, prefix: str, arrays: dict[str, np.ndarray]) -> SparseRows:
    if missing := [part for part in PARTS if prefix + part not in arrays]:
        raise ValueError(f"the sparse matrix {name} lacks {', '.join(missing)}")
    form = np.asarray(arrays.get(f"{prefix}format", "csr")).astype(str).item()
    if form != "csr":
        raise ValueError(
            f"{name} is a sparse matrix of the format {form}, expected csr: save matrix.tocsr()"
        )
    indptr, indices, values, shape = (arrays[prefix + part] for part in PARTS)
    try:
        return SparseRows.of((indptr, indices, values, tuple(shape.flatten().tolist())))
    except (TypeError, ValueError) as error:
        said = str(error).removeprefix("SparseRows.of: ")
        raise ValueError(f"the sparse matrix {name}: {said}") from None


def _csr(name: str, rows: SparseRows) -> dict[str, np.ndarray]:
    stored = rows.values != 0
    lengths = stored.sum(1).cpu()
    indptr = np.concatenate([[0], lengths.cumsum(0).numpy()]).astype(np.int64)
    return {
        "indptr": indptr,
        "indices": rows.columns[stored].cpu().numpy(),
        "data": _array(name, rows.values[stored]),
        "shape": np.array(rows.shape, dtype=np.int64),
    }


def _array(name: str, entry: Tensor) -> np.ndarray:
    try:
        array: np.ndarray = entry.detach().cpu().numpy()
    except TypeError as error:
        raise TypeError(f"save_npz: {name}: {error}") from None
    return array
