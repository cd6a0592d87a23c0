"""Arrays of NumPy as tensors of dtypes that PyTorch computes with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUMBERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)
# PyTorch has these, but cannot add them.
WIDER: dict[np.dtype, np.dtype] = {
    np.dtype(np.uint16): np.dtype(np.int32),
    np.dtype(np.uint32): np.dtype(np.int64),
}


def tensor_of(array: np.ndarray) -> Tensor:
    """A copy of an array in a tensor of the same dtype; uint16 becomes int32, and uint32 int64.

    Raises:
        TypeError: its dtype has no counterpart in `NUMBERS`: text, objects, complex, uint64.
    """
    native: np.dtype = array.dtype.newbyteorder("=")
    copy = np.array(array, dtype=WIDER.get(native, native), order="C")
    try:
        tensor = torch.from_numpy(copy)
    except TypeError:
        tensor = None
    if tensor is None or tensor.dtype not in NUMBERS:
        raise TypeError(f"expected real numbers, got {array.dtype}")
    return tensor
