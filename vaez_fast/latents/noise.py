"""Noise arguments without counting steps: from a module that counts, or from a torch.Generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaez_kernels import PURPOSES, noise_key

# Numbers of a generator never coincide with those of a seed.
_OF_GENERATOR = PURPOSES.index("generator") << 32


class Noise(nn.Module):
    """The noise of a plain training loop: each `next()` is the argument for one more step.

    The counter is a buffer. It follows the module that owns it to its device and is saved in its
    state. It advances on the device, so a captured CUDA graph draws fresh numbers in each replay.

    Args:
        seed, purpose, step, device: as for `noise_key`; `step` is what the first `next()` returns.

    Raises:
        TypeError, ValueError: as `noise_key`.
    """

    key: Tensor

    def __init__(
        self,
        seed: int,
        purpose: str = "train",
        step: int = 0,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("key", noise_key(seed, purpose, step, device=device))

    def next(self) -> Tensor:
        """The `noise` argument of this step, (2,) int64; the counter is then at the next step.

        It is a copy: backward may still read it after the counter has moved on. Call it outside of
        what `torch.utils.checkpoint` recomputes, and pass the key in. A recomputation would call it
        again, and backward would use other noise than the loss did.
        """
        key = self.key.clone()
        self.key[1] += 1
        return key


def generator_key(
    generator: torch.Generator | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """A `noise` argument that is drawn from a generator, which advances by two numbers.

    The same state of the generator gives the same key, but not the numbers of `torch.randn`.

    Args:
        generator: None for PyTorch's own generator of `device`, which `torch.manual_seed` seeds.
        device: of the ops that take the key; by default that of the generator, or the CPU.

    Returns:
        (2,) int64 of the purpose "generator": 64 random bits are its seed and its step.

    Raises:
        TypeError: `generator` is not a torch.Generator.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    where = device if generator is None else generator.device
    key = torch.randint(2**32, (2,), generator=generator, device=where)
    key[0] += _OF_GENERATOR
    return key.to(device)
