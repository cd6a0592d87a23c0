"""cuBLAS's products, computed by the CPU in the operands' memory.

Operands are converted to float32 (float64 stays float64) and results are rounded once, as cuBLAS
promises for all types that accumulate in float32. If TF32 is allowed, it is not imitated.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.rehearsal.memory import tensor_at

if TYPE_CHECKING:
    from tests.rehearsal.stand_in import Product

# cudaDataType → dtype
DTYPES = {0: torch.float32, 1: torch.float64, 2: torch.float16, 14: torch.bfloat16}
RELU, BIAS, GELU = 2, 4, 32  # bits of a cublasLtEpilogue_t; 1 is none of them


def multiply(product: Product) -> None:
    """D = epilogue(alpha op(A) op(B) + beta C), for each of a batch.

    Raises:
        NotImplementedError: the product has an epilogue or dtype that the rehearsal lacks.
    """
    if product.epilogue & ~(1 | RELU | BIAS | GELU):
        raise NotImplementedError(f"the rehearsal has no epilogue {product.epilogue} of cuBLASLt")
    for index in range(product.batch):
        _multiply_one(product, index)


def _multiply_one(product: Product, index: int) -> None:
    m, n, k = product.m, product.n, product.k
    d = _matrix(product, "d", index, m, n)
    wide = torch.float64 if d.dtype == torch.float64 else torch.float32
    value = torch.zeros((m, n), dtype=wide)
    if k and product.alpha:
        a = _operand(product, "a", index, m, k).to(wide)
        b = _operand(product, "b", index, k, n).to(wide)
        value = product.alpha * (a @ b)
    if product.beta:  # otherwise C may be uninitialised
        value += product.beta * _matrix(product, "c", index, m, n).to(wide)
    if product.epilogue & BIAS:
        dtype = _dtype(product.type_bias)
        value += tensor_at(product.bias, dtype, (m, 1), (1, 1)).to(wide)
    if product.epilogue & RELU:
        value = value.relu()
    if product.epilogue & GELU:
        value = torch.nn.functional.gelu(value, approximate="tanh")
    d.copy_(value)


def _operand(product: Product, name: str, index: int, rows: int, columns: int) -> Tensor:
    if not getattr(product, f"transpose_{name}"):
        return _matrix(product, name, index, rows, columns)
    return _matrix(product, name, index, columns, rows).t()


def _matrix(product: Product, name: str, index: int, rows: int, columns: int) -> Tensor:
    """The matrix `name` of the product `index` as stored in memory, with contiguous columns."""
    dtype = _dtype(getattr(product, f"type_{name}"))
    address = getattr(product, name)
    if product.pointer_arrays:
        address = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[index]
    else:
        address += index * getattr(product, f"stride_{name}") * dtype.itemsize
    return tensor_at(address, dtype, (rows, columns), (1, getattr(product, f"ld_{name}")))


def _dtype(cuda: int) -> torch.dtype:
    if cuda not in DTYPES:
        raise NotImplementedError(f"the rehearsal multiplies no matrices of cudaDataType {cuda}")
    return DTYPES[cuda]
