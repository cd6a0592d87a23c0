"""How a batch of events lies in memory, as the kernels and the twin read it.

A tensor (B, *event) is read in place if its event can be viewed as one dimension of D positions, or
as C channels (the event's first dimension) of N positions each. Contiguous events, halves of a
tensor, channels-last tensors and broadcast ones all can. Any other tensor is copied first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merged_stride(x: Tensor, first: int) -> int | None:
    """The stride of dimensions `first`, … viewed as one; None if that needs a copy."""
    stride: int | None = None
    step = 1
    for size, distance in zip(reversed(x.shape[first:]), reversed(x.stride()[first:]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = distance
        elif distance != step:
            return None
        step = distance * size
    return 1 if stride is None else stride


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor (B, C, …) holds the channels of a position side by side."""
    return x.dim() > 2 and x.stride(1) == 1 and x.shape[1] > 1 and math.prod(x.shape[2:]) > 1


def readable(x: Tensor) -> Tensor:
    """x (B, *event), or a copy if its channels and positions cannot be viewed as two dimensions."""
    return x if merged_stride(x, min(2, x.dim())) is not None else x.contiguous()


def empty_like(x: Tensor, *samples: int, dtype: torch.dtype | None = None) -> Tensor:
    """A dense tensor (*samples, *x.shape); its channels come last in memory if those of x do."""
    if not is_channels_last(x):
        return x.new_empty((*samples, *x.shape), dtype=dtype)
    rows, channels, *positions = x.shape
    empty = x.new_empty((*samples, rows, *positions, channels), dtype=dtype)
    return empty.movedim(-1, len(samples) + 1)
