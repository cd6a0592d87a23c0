"""The checks that public ops make of their arguments; each error names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_transforms(op: str) -> None:
    """Refuses torch.func: its transforms would end in messages of PyTorch's about its own parts."""
    # Under torch.compile a call is traced, and what is checked is the traced op's own matter.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{op}: torch.func's transforms (grad, vmap, jacrev, …) cannot go through it; use "
            "torch.autograd.grad, and the dimension of rows or samples where vmap would add one"
        )


def check_latent(op: str, mu: Tensor, logvar: Tensor, rows: str = "B") -> None:
    check_transforms(op)
    for name, value in (("mu", mu), ("logvar", logvar)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}"
            )
        if value.dim() != 2:
            raise ValueError(f"{op}: {name} must have shape ({rows}, D), got {tuple(value.shape)}")
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
    check_transforms(op)
    for name, value in (("logits", logits), ("x", x)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if logits.dtype not in FLOATS:
        raise TypeError(
            f"{op}: logits must be float32, bfloat16, float16 or float64, got {logits.dtype}"
        )
    check_targets(op, x)
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


def check_linear(op: str, hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> None:
    check_transforms(op)
    named = (("hidden", hidden), ("weight", weight), ("bias", bias), ("x", x))
    for name, value in named:
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    for name, value in named[:3]:
        if value.dtype not in FLOATS:
            raise TypeError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}"
            )
    check_targets(op, x)
    if weight.dtype != hidden.dtype:
        raise TypeError(f"{op}: weight must have hidden's dtype {hidden.dtype}, got {weight.dtype}")
    if hidden.dim() != 3:
        raise ValueError(f"{op}: hidden must have shape (S, B, H), got {tuple(hidden.shape)}")
    if hidden.shape[0] == 0 or hidden.shape[2] == 0:
        raise ValueError(
            f"{op}: hidden must have at least one sample and unit, got {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[2] or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight must have shape (P, H) with P ≥ 1 and H = {hidden.shape[2]}, "
            f"got {tuple(weight.shape)}"
        )
    pixels = weight.shape[0]
    if tuple(bias.shape) != (pixels,):
        raise ValueError(f"{op}: bias must have shape (P,) = ({pixels},), got {tuple(bias.shape)}")
    if x.shape != (hidden.shape[1], pixels):
        raise ValueError(
            f"{op}: x must have shape (B, P) = {(hidden.shape[1], pixels)}, got {tuple(x.shape)}"
        )
    for name, value in named[1:]:
        if value.device != hidden.device:
            raise ValueError(
                f"{op}: {name} must be on hidden's device {hidden.device}, got {value.device}"
            )


def check_targets(op: str, x: Tensor) -> None:
    if x.dtype not in (torch.uint8, torch.bool, *FLOATS):
        raise TypeError(
            f"{op}: x must be uint8, bool, float32, bfloat16, float16 or float64, got {x.dtype}"
        )


def check_mixture(op: str, z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None) -> None:
    check_latent(op, mu, logvar, rows="N")
    components, columns = mu.shape
    if not isinstance(z, Tensor):
        raise TypeError(f"{op}: z must be a tensor, got {type(z).__name__}")
    if z.dtype != mu.dtype:
        raise TypeError(f"{op}: z must have mu's dtype {mu.dtype}, got {z.dtype}")
    if z.dim() != 2 or z.shape[1] != columns:
        raise ValueError(
            f"{op}: z must have shape (M, D) with D = {columns} as mu has, got {tuple(z.shape)}"
        )
    if z.device != mu.device:
        raise ValueError(f"{op}: z must be on mu's device {mu.device}, got {z.device}")
    if components == 0:
        raise ValueError(f"{op}: mu must have at least one component, got {tuple(mu.shape)}")
    if torch.is_grad_enabled():
        for name, value in (("mu", mu), ("logvar", logvar)):
            if value.requires_grad:
                raise ValueError(
                    f"{op}: {name} must not require a gradient: none flows to the components; "
                    f"pass {name}.detach()"
                )
    if leave_out is None:
        return
    if not isinstance(leave_out, Tensor):
        raise TypeError(f"{op}: leave_out must be a tensor, got {type(leave_out).__name__}")
    if leave_out.dtype != torch.int64:
        raise TypeError(f"{op}: leave_out must be int64, got {leave_out.dtype}")
    if leave_out.shape != z.shape[:1]:
        raise ValueError(
            f"{op}: leave_out must have shape (M,) = {tuple(z.shape[:1])}, "
            f"got {tuple(leave_out.shape)}"
        )
    if leave_out.device != mu.device:
        raise ValueError(
            f"{op}: leave_out must be on mu's device {mu.device}, got {leave_out.device}"
        )
    if components < 2:
        raise ValueError(f"{op}: leave_out needs at least two components, got {components}")


def check_indices(op: str, name: str, index: Tensor, below: int) -> None:
    """Reads the values: on a CUDA device this would wait for all work before it."""
    outside = index[(index < 0) | (index >= below)]
    if len(outside) > 0:
        raise ValueError(f"{op}: {name} must be in [0, {below}), got {int(outside[0])}")


def check_targets_of(op: str, x: Tensor, mu: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    check_targets(op, x)
    if x.dim() != 2 or x.shape[0] != mu.shape[0] or x.shape[1] == 0:
        raise ValueError(
            f"{op}: x must have shape (B, P) with B = {mu.shape[0]} and P ≥ 1, got {tuple(x.shape)}"
        )
    if x.device != mu.device:
        raise ValueError(f"{op}: x must be on mu's device {mu.device}, got {x.device}")


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
    # Steps 2³² apart would draw the same numbers. Reading the step takes half a microsecond on a
    # CPU; a GPU would have to be waited for, and a traced tensor has no value.
    if type(noise) is Tensor and noise.is_cpu and not torch.compiler.is_compiling():
        step = noise.tolist()[1]
        if not 0 <= step < 2**32:
            raise ValueError(f"{op}: noise must hold a step of 0 ≤ step < 2³², got {step}")


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
