"""`SparseRows` hold the matrix that scipy holds, and gather its rows in a traced graph too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from vaez_fast.sources import SparseRows

sparse = pytest.importorskip("scipy.sparse")

N, G = 7, 11


def matrix(dtype: Any = np.int32) -> Any:
    """Counts (7, 11) in scipy's CSR; row 2 is empty, and row 4 is the fullest."""
    dense = np.random.default_rng(0).poisson(0.6, (N, G)).astype(dtype)
    dense[2] = 0
    dense[4] = np.arange(G) + 1
    return sparse.csr_matrix(dense)


def dense(of: Any) -> Tensor:
    return torch.from_numpy(of.toarray().astype(np.float32))


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok"])
def test_a_matrix_of_scipy_in_any_format_is_held(form: str) -> None:
    rows = SparseRows.of(matrix().asformat(form))
    assert torch.equal(rows.dense(), dense(matrix()))
    assert rows.shape == (N, G)
    assert len(rows) == N
    assert [tuple(t.shape) for t in rows.tensors()] == [(N, G), (N, G)]  # row 4 is full


def test_a_sparse_array_of_scipy_is_held() -> None:
    assert torch.equal(SparseRows.of(sparse.csr_array(matrix())).dense(), dense(matrix()))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_csr_tensor_is_held() -> None:
    rows = SparseRows.of(dense(matrix()).to_sparse_csr().requires_grad_())
    assert torch.equal(rows.dense(), dense(matrix()))
    assert not rows.values.requires_grad


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_the_four_parts_of_a_csr_matrix_are_held(kind: str) -> None:
    m = matrix()
    parts = [m.indptr, m.indices, m.data]
    if kind == "tensors":
        parts = [torch.from_numpy(part) for part in parts]
        parts[2] = parts[2].float().requires_grad_()
    rows = SparseRows.of((*parts, m.shape))
    assert torch.equal(rows.dense(), dense(m))
    assert not rows.values.requires_grad


def test_there_are_as_many_places_as_the_fullest_row_needs() -> None:
    m = matrix()[:4]
    most = int(np.diff(m.indptr).max())
    assert 0 < most < G
    assert SparseRows.of(m).values.shape == (4, most)


@pytest.mark.parametrize(
    ("of_scipy", "held"),
    [
        (np.bool_, torch.bool),
        (np.uint8, torch.uint8),
        (np.uint16, torch.int32),  # PyTorch cannot add uint16
        (np.uint32, torch.int64),
        (np.int64, torch.int64),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
    ],
)
def test_values_keep_their_dtype_and_are_gathered_in_float32(
    of_scipy: Any, held: torch.dtype
) -> None:
    rows = SparseRows.of(matrix(of_scipy))
    assert rows.dtype == held
    gathered = rows.rows(torch.tensor([4, 2]))
    assert gathered.dtype == torch.float32
    assert torch.equal(gathered, dense(matrix(of_scipy))[[4, 2]])


def test_duplicated_entries_of_a_row_add_up_as_scipys_do() -> None:
    # More places than columns: 3 and 2.
    parts = ([0, 3, 3, 5], [1, 0, 1, 1, 1], [1.5, 4.0, 2.0, -1.0, 1.0])
    m = sparse.csr_matrix((parts[2], parts[1], parts[0]), shape=(3, 2))
    rows = SparseRows.of((*(np.array(part) for part in parts), (3, 2)))
    assert torch.equal(rows.dense(), dense(m))
    assert rows.dense().tolist() == [[4, 3.5], [0, 0], [0, 0]]


def test_columns_need_no_order() -> None:
    rows = SparseRows.of((np.array([0, 3]), np.array([3, 0, 2]), np.array([1, 2, 3]), (1, 5)))
    assert rows.dense().tolist() == [[2, 0, 3, 1, 0]]


def test_room_that_scipy_has_not_used_is_dropped() -> None:
    rows = SparseRows.of((np.array([0, 1]), np.array([1, 99]), np.array([5, 7]), (1, 3)))
    assert rows.dense().tolist() == [[0, 5, 0]]


def test_spare_places_change_no_column() -> None:
    # One full row: the others have 11 spare places, which name every column.
    m = sparse.csr_matrix(np.vstack([np.ones((1, G)), np.zeros((N - 1, G))]))
    assert torch.equal(SparseRows.of(m).dense(), dense(m))


def test_a_matrix_of_zeros_has_one_place_a_row() -> None:
    rows = SparseRows.of(sparse.csr_matrix((3, 5)))
    assert rows.values.shape == (3, 1)
    assert torch.equal(rows.dense(), torch.zeros(3, 5))


def test_a_traced_gather_reads_the_tensors_and_the_index_it_is_given() -> None:
    rows = SparseRows.of(matrix())
    # Clones: the trace would take the rows' own tensors for its arguments.
    given = [t.clone() for t in rows.tensors()]
    graph = make_fx(lambda *args: rows.gather(args[:2], args[2]))(*given, torch.tensor([0, 1, 2]))
    # Another matrix with the same numbers of places and columns, and another index.
    other = SparseRows.of(matrix()[::-1])
    index = torch.tensor([6, 4, 4])
    assert torch.equal(graph(*other.tensors(), index), dense(matrix()[::-1])[index])


def test_a_compiled_gather_equals_the_eager_one() -> None:
    rows = SparseRows.of(matrix())
    gather = torch.compile(rows.gather, fullgraph=True)
    for index in (torch.tensor([5, 0, 4]), torch.tensor([4, 4, 2])):
        assert torch.equal(gather(rows.tensors(), index), dense(matrix())[index])


def test_taken_rows_are_sparse_rows_in_the_order_of_the_index() -> None:
    index = torch.tensor([4, 0, 4])
    taken = SparseRows.of(matrix()).take(index)
    assert taken.shape == (3, G)
    assert torch.equal(taken.dense(), dense(matrix())[index])


def test_rows_move_to_another_device() -> None:
    moved = SparseRows.of(matrix()).to("meta")
    assert [t.device.type for t in moved.tensors()] == ["meta", "meta"]
    assert moved.device.type == "meta"
    assert moved.shape == (N, G)


def parts(**changed: Any) -> tuple[Any, ...]:
    given = {
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 2]),
        "data": np.array([1.0, 2.0]),
        "shape": (2, 3),
    }
    return tuple((given | changed).values())


BAD = [
    (torch.ones(2, 2), TypeError, "matrix must be of torch.sparse_csr, got torch.strided"),
    ([[1, 0]], TypeError, "matrix must be a CSR tensor, a scipy.sparse matrix or .* got list"),
    (parts(shape=(2,)), ValueError, r"shape must be \(N, G\), got \(2,\)"),
    (parts(shape=3), ValueError, r"shape must be \(N, G\), got 3"),
    (parts(shape=(2, 0)), ValueError, r"shape must be \(N, G\) of 1 or more, got \(2, 0\)"),
    (parts(shape=(2, 2**31 + 1)), ValueError, "shape must be"),
    (parts(shape=(3, 3)), ValueError, "indptr must be 4 numbers"),
    (parts(indptr=np.array([1, 1, 2])), ValueError, "indptr must be 3 numbers that begin with 0"),
    (parts(indptr=np.array([0, 2, 1])), ValueError, "indptr .* never fall"),
    (parts(indptr=np.array([0.0, 1, 2])), TypeError, "indptr must be int32 or int64, got .*64"),
    (parts(indices=np.array([0.5, 1])), TypeError, "indices must be int32 or int64, got .*64"),
    (parts(indptr=np.array([0, 1, 3])), ValueError, ".* at least indptr's last 3, got 2 and 2"),
    (parts(indices=np.array([0, 1, 2])), ValueError, "indices and data .* got 3 and 2"),
    (parts(indices=np.array([0, 3])), ValueError, r"indices must be in \[0, 3\), got 3"),
    (parts(indices=np.array([-1, 0])), ValueError, r"indices must be in \[0, 3\), got -1"),
    (parts(data=np.array(["a", "b"])), TypeError, "data: expected real numbers, got <U1"),
    (parts(data=np.array([1j, 2])), TypeError, "data: expected real numbers, got complex128"),
    (parts(data=torch.tensor([1j, 2])), TypeError, "data: expected real numbers, got torch.compl"),
    (parts(data=np.ones((2, 2))), ValueError, r"data must have shape \(K,\), got \(2, 2\)"),
]


@pytest.mark.parametrize(("given", "kind", "says"), BAD)
def test_a_bad_matrix_is_refused(given: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=f"^SparseRows.of: {says}"):
        SparseRows.of(given)


@pytest.mark.parametrize("method", ["rows", "take"])
@pytest.mark.parametrize(
    ("index", "kind", "says"),
    [
        ([0, 1], TypeError, "index must be an int64 tensor, got list"),
        (torch.tensor([0], dtype=torch.int32), TypeError, "index .* got torch.int32"),
        (torch.tensor([[0]]), ValueError, r"index must have shape \(B,\) on cpu, got \(1, 1\)"),
        (torch.tensor([0], device="meta"), ValueError, r"index .* got \(1,\) on meta"),
        (torch.tensor([0, N]), ValueError, r"index must be in \[0, 7\), got 7"),
        (torch.tensor([-1]), ValueError, r"index must be in \[0, 7\), got -1"),
    ],
)
def test_a_bad_index_is_refused(method: str, index: Any, kind: type[Exception], says: str) -> None:
    rows = SparseRows.of(matrix())
    with pytest.raises(kind, match=f"^SparseRows.{method}: {says}"):
        getattr(rows, method)(index)
