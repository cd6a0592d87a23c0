"""What the likelihoods share: checks of shapes and dtypes, which read no value of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vaez_kernels.checks import check_device, check_float, check_tensor


def check_parameter(op: str, name: str, value: Tensor, x: Tensor, own: tuple[str, ...] = ()) -> int:
    """Check a parameter of shape (B, *event) or (S, B, *event), x being (B, *event).

    `own` names dimensions of any size ≥ 1 that follow the event.

    Returns:
        The number of leading dimensions, 0 or 1.

    Raises:
        TypeError, ValueError: the type, dtype, shape or device is wrong.
    """
    check_float(op, name, value)
    end = value.dim() - len(own)
    rows, sizes = tuple(x.shape), tuple(value.shape)
    if end - len(rows) not in (0, 1) or sizes[end - len(rows) : end] != rows:
        tail = "".join(f", {dim}" for dim in own)
        wanted = f"(B, *event{tail}) or (S, B, *event{tail}) with (B, *event) = {rows}, x's shape"
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {sizes}")
    if 0 in sizes[end:]:
        raise ValueError(f"{op}: {name} must have {own[0]} of at least 1, got {sizes}")
    check_device(op, name, value, "x", x)
    return end - len(rows)


def check_broadcast(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Check a floating-point parameter that broadcasts to the shape of `like`."""
    check_float(op, name, value)
    ours, theirs = tuple(value.shape), tuple(like.shape)
    fits = len(ours) <= len(theirs)
    if not fits or any(a not in (1, b) for a, b in zip(ours[::-1], theirs[::-1], strict=False)):
        raise ValueError(
            f"{op}: {name} must broadcast to the shape {theirs} of {like_name}, got {ours}"
        )
    check_device(op, name, value, like_name, like)


def check_rows(op: str, x: Tensor, dtypes: tuple[torch.dtype, ...], wanted: str) -> None:
    """Check that x is a tensor of rows with one of the dtypes, which `wanted` names."""
    check_tensor(op, "x", x)
    if x.dtype not in dtypes:
        raise TypeError(f"{op}: x must be {wanted}, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have shape (B, *event), got ()")


def wide(*parameters: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if a parameter is, else float32."""
    dtype = torch.float32
    for parameter in parameters:
        dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def sum_last(value: Tensor, dims: int) -> Tensor:
    """The sum over the last `dims` dimensions; none for 0, where `Tensor.sum` would take all."""
    return value.sum(tuple(range(-dims, 0))) if dims else value


def softplus(value: Tensor) -> Tensor:
    """ln(1 + e^v) to the last digits for every v; PyTorch's own is v itself above 20."""
    return -F.logsigmoid(-value)
