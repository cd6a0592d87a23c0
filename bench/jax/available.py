"""Whether JAX is here, and works where the suite runs."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def why_not(device: torch.device) -> str | None:
    """Why JAX has no rows here, or None."""
    if find_spec("jax") is None:
        return "jax is not installed"
    import jax

    found = jax.default_backend()
    if (found == "gpu") != (device.type == "cuda"):
        return f"jax works on another device here: its backend is {found}"
    return None
