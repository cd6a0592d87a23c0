"""The checks that public ops make of their arguments; each error names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_latent(op: str, mu: Tensor, logvar: Tensor) -> None:
    for name, value in (("mu", mu), ("logvar", logvar)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}"
            )
        if value.dim() != 2:
            raise ValueError(f"{op}: {name} must have shape (B, D), got {tuple(value.shape)}")
    if mu.shape[1] == 0:
        raise ValueError(f"{op}: mu must have at least one column, got {tuple(mu.shape)}")
    if mu.shape != logvar.shape:
        raise ValueError(
            f"{op}: logvar must have mu's shape {tuple(mu.shape)}, got {tuple(logvar.shape)}"
        )
    if mu.dtype != logvar.dtype:
        raise TypeError(f"{op}: logvar must have mu's dtype {mu.dtype}, got {logvar.dtype}")
    if mu.device != logvar.device:
        raise ValueError(f"{op}: logvar must be on mu's device {mu.device}, got {logvar.device}")


def check_pixels(op: str, logits: Tensor, x: Tensor) -> None:
    for name, value in (("logits", logits), ("x", x)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if logits.dtype not in FLOATS:
        raise TypeError(
            f"{op}: logits must be float32, bfloat16, float16 or float64, got {logits.dtype}"
        )
    if x.dtype not in (torch.uint8, torch.bool, *FLOATS):
        raise TypeError(
            f"{op}: x must be uint8, bool, float32, bfloat16, float16 or float64, got {x.dtype}"
        )
    if logits.dim() != 3:
        raise ValueError(f"{op}: logits must have shape (S, B, P), got {tuple(logits.shape)}")
    if logits.shape[0] == 0 or logits.shape[2] == 0:
        raise ValueError(
            f"{op}: logits must have at least one sample and pixel, got {tuple(logits.shape)}"
        )
    if x.shape != logits.shape[1:]:
        raise ValueError(
            f"{op}: x must have shape (B, P) = {tuple(logits.shape[1:])}, got {tuple(x.shape)}"
        )
    if x.device != logits.device:
        raise ValueError(f"{op}: x must be on logits' device {logits.device}, got {x.device}")


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


def check_count(op: str, name: str, value: int, least: int = 0, below: int = 2**63) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if value >= below:
        raise ValueError(f"{op}: {name} must be below {below}, got {value}")


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")
