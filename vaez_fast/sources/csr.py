"""A CSR matrix of PyTorch, of scipy or in four parts, checked before it is used.

Row i has the columns `indices[indptr[i] : indptr[i + 1]]`, and the values at the same places of
`data`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaez_kernels.checks import check_indices

from .arrays import NUMBERS, tensor_of


def csr_parts(op: str, matrix: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """indptr (N + 1,), indices (K,), data (K,) and shape (N, G) of a matrix with K stored values.

    Args:
        op: who asks; the messages begin with it.
        matrix: a tensor of layout torch.sparse_csr, a scipy.sparse matrix or array of any format,
            or (indptr, indices, data, shape) in tensors or arrays.

    Raises:
        TypeError: the matrix is something else, or its parts are no numbers that fit.
        ValueError: it has no row or column, or the parts do not fit each other.
    """
    if isinstance(matrix, Tensor):
        if matrix.layout != torch.sparse_csr:
            raise TypeError(f"{op}: matrix must be of torch.sparse_csr, got {matrix.layout}")
        m = matrix.detach()
        parts, shape = (m.crow_indices(), m.col_indices(), m.values()), m.shape
    elif isinstance(matrix, tuple) and len(matrix) == 4:
        parts, shape = matrix[:3], matrix[3]
    elif hasattr(matrix, "tocsr"):  # scipy.sparse, which is not imported for this
        csr = matrix.tocsr()
        parts, shape = (csr.indptr, csr.indices, csr.data), csr.shape
    else:
        raise TypeError(
            f"{op}: matrix must be a CSR tensor, a scipy.sparse matrix or (indptr, indices, data, "
            f"shape), got {type(matrix).__name__}"
        )
    N, G = _sizes(op, shape)
    names = ("indptr", "indices", "data")
    indptr, indices, data = (_vector(op, *named) for named in zip(names, parts, strict=True))
    for name, whole in (("indptr", indptr), ("indices", indices)):
        if whole.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: {name} must be int32 or int64, got {whole.dtype}")
    if len(indptr) != N + 1 or int(indptr[0]) != 0 or bool((indptr.diff() < 0).any()):
        raise ValueError(f"{op}: indptr must be {N + 1} numbers that begin with 0 and never fall")
    stored = int(indptr[-1])
    if not stored <= len(indices) == len(data):
        raise ValueError(
            f"{op}: indices and data must be equally long, at least indptr's last {stored}, "
            f"got {len(indices)} and {len(data)}"
        )
    # scipy's arrays may have room for more values than there are.
    indices, data = indices[:stored], data[:stored]
    check_indices(op, "indices", indices, G)
    return indptr, indices, data, (N, G)


def _sizes(op: str, shape: Iterable[Any]) -> tuple[int, int]:
    try:
        N, G = (int(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: shape must be (N, G), got {shape!r}") from None
    if min(N, G) < 1 or G > 2**31:  # columns are int32
        raise ValueError(f"{op}: shape must be (N, G) of 1 or more, got {(N, G)}")
    return N, G


def _vector(op: str, name: str, part: Any) -> Tensor:
    try:
        vector = part.detach() if isinstance(part, Tensor) else tensor_of(np.asarray(part))
        if vector.dtype not in NUMBERS:
            raise TypeError(f"expected real numbers, got {vector.dtype}")
    except TypeError as error:
        raise TypeError(f"{op}: {name}: {error}") from None
    if vector.dim() != 1:
        raise ValueError(f"{op}: {name} must have shape (K,), got {tuple(vector.shape)}")
    return vector
