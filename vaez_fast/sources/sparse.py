"""A matrix of mostly zeros, such as counts of genes in cells, whose rows are gathered by index.

A CSR matrix has rows of different lengths, so a batch of its rows would have another shape in each
step. Here every row has the same number of places, and the spare places hold zeros. A gather then
has fixed shapes: it can be traced into the graph of a step and replayed with another index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaez_kernels.checks import check_indices

from .csr import csr_parts


@dataclass(frozen=True, eq=False)
class SparseRows:
    """N rows of G columns, stored as M columns and values a row; make it with `SparseRows.of`.

    M is the largest number of stored values of a row, and at least 1. A spare place has the value
    0. Values of one row that have the same column are added.

    The memory is N·M·(4 + the size of a value) bytes: one row that is much fuller than the others
    costs as much as if all were.
    """

    columns: Tensor  # (N, M) int32, in [0, G)
    values: Tensor  # (N, M) of any real dtype
    width: int  # G

    @classmethod
    def of(cls, matrix: Any) -> SparseRows:
        """The same matrix as padded rows, on its device.

        Args:
            matrix: (N, G), as a torch tensor of layout torch.sparse_csr, as a scipy.sparse matrix
                or array of any format, or as the tuple (indptr, indices, data, shape) of a CSR
                matrix in tensors or arrays. The columns of a row need no order.

        Raises:
            TypeError: the matrix is something else, or its values are no real numbers.
            ValueError: it has no row or column, or its indptr, indices and data do not fit.
        """
        indptr, indices, data, (N, G) = csr_parts("SparseRows.of", matrix)
        lengths = indptr.diff()
        M = max(1, int(lengths.max()))
        row = torch.repeat_interleave(torch.arange(N, device=data.device), lengths)
        place = torch.arange(len(data), device=data.device) - indptr[row]
        # On a GPU, additions to one element wait for each other: the spare places take turns.
        turns = torch.arange(M, dtype=torch.int32, device=data.device) % G
        columns = turns.repeat(N, 1)
        columns[row, place] = indices.int()
        values = data.new_zeros((N, M))
        values[row, place] = data
        return cls(columns, values, G)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return len(self.values), self.width

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored values; gathered rows are float32."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        places = self.values.shape[1]
        return f"SparseRows({self.shape}, {places} places a row, {self.dtype}, {self.device})"

    def to(self, device: torch.device | str) -> SparseRows:
        """The same rows on another device."""
        return SparseRows(self.columns.to(device), self.values.to(device), self.width)

    def tensors(self) -> list[Tensor]:
        """What `gather` reads: columns (N, M) int32 and values (N, M)."""
        return [self.columns, self.values]

    def gather(self, tensors: Sequence[Tensor], index: Tensor) -> Tensor:
        """Some rows, made dense, without a check: for the graph of a step.

        It reads only its arguments and G, so `tensors` may be the inputs of a traced graph.

        Args:
            tensors: those of `tensors()`, or of rows with the same G.
            index: (B,) int64 in [0, N), on the tensors' device.

        Returns:
            (B, G) float32; integers above 2²⁴ are rounded.
        """
        columns, values = tensors
        dense = torch.zeros(index.shape[0], self.width, device=values.device)
        return dense.scatter_add(1, columns[index].long(), values[index].float())

    def rows(self, index: Tensor) -> Tensor:
        """`gather` of these rows, after a check of the index: (B, G) float32.

        Raises:
            TypeError, ValueError: index is not (B,) int64 in [0, N) on the rows' device.
        """
        return self.gather(self.tensors(), _index(self, "rows", index))

    def dense(self) -> Tensor:
        """The whole matrix: (N, G) float32."""
        return self.gather(self.tensors(), torch.arange(len(self), device=self.device))

    def take(self, index: Tensor) -> SparseRows:
        """Some rows as `SparseRows`, in the order of index (B,) int64; M stays.

        Raises:
            TypeError, ValueError: as `rows`.
        """
        index = _index(self, "take", index)
        return SparseRows(self.columns[index], self.values[index], self.width)


def _index(rows: SparseRows, method: str, index: Tensor) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"SparseRows.{method}: index must be an int64 tensor, got {kind}")
    if index.dim() != 1 or index.device != rows.device:
        raise ValueError(
            f"SparseRows.{method}: index must have shape (B,) on {rows.device}, "
            f"got {tuple(index.shape)} on {index.device}"
        )
    check_indices(f"SparseRows.{method}", "index", index, len(rows))
    return index
