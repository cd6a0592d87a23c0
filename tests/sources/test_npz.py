"""Data sets in .npz files, also scipy's, and the one line that says what is wrong with a file."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaez_fast.data import DataError
from vaez_fast.sources import Entry, SparseRows, load_npz, save_npz
from vaez_fast.system.files import OutputError


def counts(n: int = 4) -> SparseRows:
    """(n, 5): row i has the values i and 10·i, and the last two places are 0."""
    indices, data = np.tile([3, 1], n), np.outer(np.arange(n), [1, 10]).flatten()
    return SparseRows.of((2 * np.arange(n + 1), indices, data, (n, 5)))


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def refused(path: Path, **given: Any) -> str:
    """The message, which names the file and has one line."""
    with pytest.raises(DataError) as caught:
        load_npz(path, **given)
    said = str(caught.value)
    assert said.startswith(f"cannot read {path}: ")
    assert "\n" not in said
    return said.removeprefix(f"cannot read {path}: ")


# What is written is read.


def test_what_save_npz_writes_load_npz_reads(tmp_path: Path) -> None:
    data: dict[str, Entry] = {
        "x": torch.rand(4, 3, 2),
        "counts": counts(),
        "label": torch.arange(4),
        "file": torch.ones(4, dtype=torch.bool),  # np.savez has an argument of this name
    }
    save_npz(tmp_path / "new" / "data.npz", data)
    read = load_npz(str(tmp_path / "new" / "data.npz"))
    assert list(read) == list(data)
    for name in ("x", "label", "file"):
        wanted, found = data[name], read[name]
        assert isinstance(found, torch.Tensor)
        assert isinstance(wanted, torch.Tensor)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    rows = read["counts"]
    assert isinstance(rows, SparseRows)
    assert torch.equal(rows.dense(), counts().dense())
    assert rows.dtype == torch.int64


def test_the_file_holds_a_sparse_entry_as_csr_without_zeros(tmp_path: Path) -> None:
    save_npz(tmp_path / "data.npz", {"c": counts()})
    with np.load(tmp_path / "data.npz") as arrays:
        assert sorted(arrays) == ["c.data", "c.indices", "c.indptr", "c.shape"]
        assert arrays["c.indptr"].tolist() == [0, 0, 2, 4, 6]  # row 0 holds zeros alone
        assert arrays["c.indices"].tolist() == [3, 1] * 3
        assert arrays["c.data"].tolist() == [1, 10, 2, 20, 3, 30]
        assert arrays["c.shape"].tolist() == [4, 5]


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array"])
def test_a_file_of_scipy_is_the_entry_x(kind: str, tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(0).poisson(0.5, (6, 9)).astype(np.uint16)
    sparse.save_npz(tmp_path / "m.npz", getattr(sparse, kind)(dense))
    read = load_npz(tmp_path / "m.npz")
    assert list(read) == ["x"]
    assert isinstance(read["x"], SparseRows)
    assert read["x"].dense().tolist() == dense.tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numpy_keep_their_values(save: Any, tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(12.0, dtype=">f8").reshape(4, 3))
    depth, wide = np.array([0, 1, 2, 65535], np.uint16), np.array([0, 1, 2, 2**32 - 1], np.uint32)
    save(tmp_path / "d.npz", x=x, depth=depth, wide=wide)
    read = load_npz(tmp_path / "d.npz")
    kinds = {name: entry.dtype for name, entry in read.items()}
    assert kinds == {"x": torch.float64, "depth": torch.int32, "wide": torch.int64}
    for name, array in {"x": x, "depth": depth, "wide": wide}.items():
        entry = read[name]
        assert isinstance(entry, torch.Tensor)
        assert entry.tolist() == array.tolist()
        assert entry.is_contiguous()


def test_names_with_a_dot_are_arrays_where_there_is_no_indptr(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", **{"a.data": np.ones(2), "shape": np.ones((2, 2))})
    assert list(load_npz(path)) == ["a.data", "shape"]


# Files that are refused.


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.npz") == "No such file or directory"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == "Is a directory"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    assert refused(tmp_path / "x.npy").startswith("not an .npz, or a damaged one")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    assert refused(path).startswith("not an .npz, or a damaged one (Bad CRC-32")


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:-30])
    assert refused(path).startswith("not an .npz, or a damaged one")


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(10**5))
    assert "unpacks to 800,128 bytes, expected at most 800,000" in refused(
        tmp_path / "d.npz", most=800_000
    )
    assert list(load_npz(tmp_path / "d.npz", most=800_128)) == ["x"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_objects_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=np.ones(1))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + pickle.dumps(np.array([Bomb()], object)))
    assert refused(path) == "'x.npy' is of Python's objects"


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "its entries: data must have at least one entry"),
    (
        {"x": np.ones(3), "label": np.ones(4)},
        "its entries: all entries must have the same number of rows, but x has 3 and label has 4",
    ),
    ({"x": np.float32(1)}, "its entries: x must have shape (N, ...) without a 0, got ()"),
    ({"x": np.ones((0, 2))}, "its entries: x must have shape (N, ...) without a 0, got (0, 2)"),
    ({"x": np.array([1, np.nan])}, "its entries: x has NaN or infinity in 1 of 2 rows"),
    ({"x": np.array(["a"])}, "x: expected real numbers, got <U1"),
    ({"x": np.array([1j])}, "x: expected real numbers, got complex128"),
    ({"x": np.array([1], np.uint64)}, "x: expected real numbers, got uint64"),
    ({"x": np.zeros(2, "datetime64[s]")}, "x: expected real numbers, got datetime64[s]"),
    ({"c.indptr": np.zeros(2)}, "the sparse matrix c lacks indices, data, shape"),
]


@pytest.mark.parametrize(("arrays", "says"), BAD)
def test_entries_that_are_none_are_refused(
    arrays: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert refused(saved(tmp_path / "d.npz", **arrays)) == says


def of_csr(prefix: str = "c.", **changed: Any) -> dict[str, Any]:
    given = {
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 2]),
        "data": np.array([1.0, 2.0]),
        "shape": np.array([2, 3]),
    }
    return {f"{prefix}{part}": array for part, array in (given | changed).items()}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (of_csr(indices=np.array([0, 3])), "the sparse matrix c: indices must be in [0, 3), got 3"),
        (of_csr(shape=np.array(3)), "the sparse matrix c: shape must be (N, G), got (3,)"),
        (of_csr(data=np.array([1, np.inf])), "its entries: c has NaN or infinity in 1 of 2 rows"),
        (
            of_csr() | {"x": np.ones(3)},
            "its entries: all entries must have the same number of rows, but c has 2 and x has 3",
        ),
        (of_csr("") | {"x": np.ones(2)}, "two of its entries are called x"),
        (
            of_csr("", format=np.array(b"csc")),
            "x is a sparse matrix of the format csc, expected csr: save matrix.tocsr()",
        ),
    ],
)
def test_a_sparse_matrix_that_does_not_fit_is_refused(
    arrays: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert refused(saved(tmp_path / "d.npz", **arrays)) == says


# What cannot be written.


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        ({}, ValueError, "save_npz: data must have at least one entry"),
        ({"a.b": torch.ones(2)}, ValueError, "save_npz: 'a.b' cannot be the name of an entry"),
        ({"indptr": torch.ones(2)}, ValueError, "save_npz: 'indptr' cannot be the name"),
        ({"format": torch.ones(2)}, ValueError, "save_npz: 'format' cannot be the name"),
        ({"x": torch.ones(2).bfloat16()}, TypeError, "save_npz: x: .*BFloat16"),
    ],
)
def test_entries_that_cannot_be_written_leave_no_file(
    data: dict[str, Entry], kind: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=f"^{says}"):
        save_npz(tmp_path / "d.npz", data)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*/file/d.npz"):
        save_npz(tmp_path / "file" / "d.npz", {"x": torch.ones(2)})
