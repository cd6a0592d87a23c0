"""CPU views of device memory, which is host memory here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def tensor_at(
    address: int, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """A CPU tensor of the memory at an address. Strides are in elements."""
    if 0 in shape:
        return torch.empty_strided(shape, strides, dtype=dtype)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(tuple(shape), tuple(strides))


def on_host(x: Tensor) -> Tensor:
    """A CPU tensor in the same memory as a CUDA tensor. Other tensors are returned unchanged."""
    return tensor_at(x.data_ptr(), x.dtype, x.shape, x.stride()) if x.is_cuda else x
