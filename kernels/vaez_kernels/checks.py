"""Checks of the arguments of public ops; each error names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_transforms(op: str) -> None:
    """Refuse torch.func's transforms, which would fail with errors about PyTorch's internals."""
    # Under torch.compile the call is traced, and checks are left to the traced ops.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{op}: torch.func's transforms (grad, vmap, jacrev, …) cannot go through it, and "
            "it has no gradient; use the dimension of rows or samples where vmap would add one"
        )


def check_tensor(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def check_float(op: str, name: str, value: Tensor) -> None:
    """Check that a value is a tensor of a supported floating-point dtype."""
    check_tensor(op, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}"
        )


def check_targets(op: str, x: Tensor) -> None:
    check_tensor(op, "x", x)
    if x.dtype not in (torch.uint8, torch.bool, *FLOATS):
        raise TypeError(
            f"{op}: x must be uint8, bool, float32, bfloat16, float16 or float64, got {x.dtype}"
        )


def check_like(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Check that a tensor has the shape, dtype and device of `like`."""
    if like.shape != value.shape:
        raise ValueError(
            f"{op}: {name} must have {like_name}'s shape {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if like.dtype != value.dtype:
        raise TypeError(
            f"{op}: {name} must have {like_name}'s dtype {like.dtype}, got {value.dtype}"
        )
    check_device(op, name, value, like_name, like)


def check_device(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        owner = f"{like_name}'" if like_name.endswith("s") else f"{like_name}'s"
        raise ValueError(
            f"{op}: {name} must be on {owner} device {like.device}, got {value.device}"
        )


def check_no_gradient(op: str, name: str, value: Tensor, those: str) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name} must not require a gradient: none flows to {those}; pass {name}.detach()"
        )


def check_latent(op: str, mu: Tensor, logvar: Tensor, rows: str = "B") -> None:
    for name, value in (("mu", mu), ("logvar", logvar)):
        check_float(op, name, value)
        if value.dim() != 2:
            raise ValueError(f"{op}: {name} must have shape ({rows}, D), got {tuple(value.shape)}")
    if mu.shape[1] == 0:
        raise ValueError(f"{op}: mu must have at least one column, got {tuple(mu.shape)}")
    check_like(op, "logvar", logvar, "mu", mu)


def check_pixels(op: str, name: str, pixels: Tensor, x: Tensor) -> None:
    """Check the shapes of the argument `name` (S, B, P) and of the targets x (B, P)."""
    if pixels.dim() != 3:
        raise ValueError(f"{op}: {name} must have shape (S, B, P), got {tuple(pixels.shape)}")
    if pixels.shape[0] == 0 or pixels.shape[2] == 0:
        raise ValueError(
            f"{op}: {name} must have at least one sample and pixel, got {tuple(pixels.shape)}"
        )
    if x.shape != pixels.shape[1:]:
        raise ValueError(
            f"{op}: x must have shape (B, P) = {tuple(pixels.shape[1:])}, got {tuple(x.shape)}"
        )
    check_device(op, "x", x, name, pixels)


def check_targets_of(op: str, x: Tensor, mu: Tensor) -> None:
    check_targets(op, x)
    if x.dim() != 2 or x.shape[0] != mu.shape[0] or x.shape[1] == 0:
        raise ValueError(
            f"{op}: x must have shape (B, P) with B = {mu.shape[0]} and P ≥ 1, got {tuple(x.shape)}"
        )
    check_device(op, "x", x, "mu", mu)


def check_indices(op: str, name: str, index: Tensor, below: int) -> None:
    """Check the values, which are read: on a CUDA device this would wait for all earlier work."""
    outside = index[(index < 0) | (index >= below)]
    if len(outside) > 0:
        raise ValueError(f"{op}: {name} must be in [0, {below}), got {int(outside[0])}")


def check_noise(op: str, noise: Tensor, device: torch.device | None = None) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(
            f"{op}: noise must be a tensor made by noise_key(seed, purpose, step), "
            f"got {type(noise).__name__}"
        )
    if noise.dtype != torch.int64:
        raise TypeError(f"{op}: noise must be int64 (key, step), got {noise.dtype}")
    if tuple(noise.shape) != (2,):
        raise ValueError(f"{op}: noise must have shape (2,), got {tuple(noise.shape)}")
    if device is not None and noise.device != device:
        raise ValueError(f"{op}: noise must be on mu's device {device}, got {noise.device}")
    # Steps that differ by 2³² would draw the same numbers. Reading the step takes half a
    # microsecond on a CPU. On a GPU it would wait for the device, and a traced or batched tensor
    # has no value.
    traced = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
    if type(noise) is Tensor and noise.is_cpu and not traced:
        step = noise.tolist()[1]
        if not 0 <= step < 2**32:
            raise ValueError(f"{op}: noise must hold a step of 0 ≤ step < 2³², got {step}")


def check_count(op: str, name: str, value: int, least: int = 0, below: int = 2**63) -> None:
    if type(value) is int and least <= value < below:
        return  # most calls, in a fifth of the time
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if value >= below:
        raise ValueError(f"{op}: {name} must be below {below}, got {value}")


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")
