"""The Philox stream: which number belongs to (key, step, sample, row, column).

Definition, in real numbers: the words x₀…x₃ are Philox4x32-10 (Salmon et al. 2011) of the key's low
and high word and the counter (low and high word of r·⌈D/4⌉ + ⌊d/4⌋, sample, step). The uniform of a
word is u(x) = (x + ½)·2⁻³². The normals follow Box and Muller: n₀, n₁ = √(−2 ln u(x₀))·(cos, sin)
2πu(x₁), and n₂, n₃ likewise from x₂, x₃. r is the global row. Column d takes number d mod 4.

Every backend uses the same single-precision polynomials. So the fallback (eager or compiled) and
the interpreted kernel agree bit for bit, and a GPU agrees to a few units in the last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_noise
from ..define import Op
from . import kernel, twin

# The place of a purpose is a part of its keys, so new ones come last.
PURPOSES = ("train", "binarize", "permute", "evaluate", "generate", "generator")


def noise_key(
    seed: int, purpose: str, step: int = 0, *, device: torch.device | str | None = None
) -> Tensor:
    """The `noise` argument of every sampling op.

    Args:
        seed: 0 ≤ seed < 2³².
        purpose: one of "train", "binarize", "permute", "evaluate", "generate" and "generator" (for
            keys drawn from a torch.Generator). Different purposes never share a number.
        step: 0 ≤ step < 2³², the training step, epoch or another counter.
        device: the tensor's device, which must be the device of the op that uses it.

    Returns:
        (2,) int64: key (seed in the low word, purpose in the high word) and step.

    Raises:
        TypeError, ValueError: seed, purpose or step is outside these ranges.
    """
    check_count("noise_key", "seed", seed, below=2**32)
    check_choice("noise_key", "purpose", purpose, PURPOSES)
    check_count("noise_key", "step", step, below=2**32)
    key = PURPOSES.index(purpose) << 32 | seed
    return torch.tensor((key, step), dtype=torch.int64, device=device)


# The fallback is opaque to compilers: inlined into a larger graph, it would not be vectorised.
_noise = Op(
    "noise",
    kernel,
    twin,
    forward=(kernel.noise_kernel,),
    opaque=twin.like_the_result,
)


def draw(noise: Tensor, shape: tuple[int, int, int], row_offset: int, sample_offset: int) -> Tensor:
    """`normal` without argument checks, for other ops."""
    numbers: Tensor = _noise(noise, *shape, row_offset, sample_offset, True)
    return numbers


def check_offsets(op: str, num_samples: int, row_offset: int, sample_offset: int) -> None:
    samples = "S" if op in ("normal", "uniform") else "num_samples"
    check_count(op, samples, num_samples, below=2**32 + 1)
    check_count(op, "row_offset", row_offset, below=2**48)
    check_count(op, "sample_offset", sample_offset, below=2**32 - num_samples + 1)


def _checked_draw(
    op: str, noise: Tensor, shape: tuple[int, int, int], row_offset: int, sample_offset: int
) -> Tensor:
    check_noise(op, noise)
    for name, size in zip("SBD", shape, strict=True):
        check_count(op, name, size)
    check_offsets(op, shape[0], row_offset, sample_offset)
    numbers: Tensor = _noise(noise, *shape, row_offset, sample_offset, op == "normal")
    return numbers


def normal(
    noise: Tensor, S: int, B: int, D: int, *, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """Standard normal numbers of the stream.

    Number (s, b, d) depends only on the key, the step, s + sample_offset, b + row_offset, d and D.
    It does not depend on S, B, the device or the backend. Numbers are within 1e-6·max(1, |n|) of
    the module's definition, and none exceeds 6.77 in size.

    Args:
        noise: (2,) int64, from `noise_key`; the result is on its device.
        S, B, D: numbers of samples, rows and columns.
        row_offset: the global index of row 0.
        sample_offset: the global index of sample 0.

    Returns:
        (S, B, D) float32, contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or range.
    """
    return _checked_draw("normal", noise, (S, B, D), row_offset, sample_offset)


def uniform(
    noise: Tensor, S: int, B: int, D: int, *, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """Numbers of the stream, uniform on (0, 1): (x + ½)·2⁻³², below 1 even after rounding.

    Arguments, result and errors as for `normal`. Both functions use the same counter words, so use
    each pair of key and step for only one of them.
    """
    return _checked_draw("uniform", noise, (S, B, D), row_offset, sample_offset)


__all__ = ["PURPOSES", "noise_key", "normal", "uniform"]
