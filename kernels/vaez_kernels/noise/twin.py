"""The noise stream in PyTorch: compiled on a CPU, elsewhere eager in chunks."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler import compiled_once, compiled_without_guards, example, has_cpu_compiler
from ..scalar import cosine, log_tail, sine

WORD = 0xFFFFFFFF
# Near u = 1, rounding x + ½ to single precision would lose the digits of the radius. So words from
# √½·2³² upwards are reflected, and the logarithm is computed from 1 − u.
NEAR_ONE = 3037000500
LARGEST_UNIFORM = 1 - 2.0**-24


class Arguments(NamedTuple):
    noise: Tensor  # (2,) int64
    samples: int
    rows: int
    columns: int
    row_offset: int
    sample_offset: int
    normal: bool


def uniform_of(x: Tensor) -> Tensor:
    return ((x.to(torch.float32) + 0.5) * 2.0**-32).clamp(max=LARGEST_UNIFORM)


def radius_of(x: Tensor) -> Tensor:
    near_one = x >= NEAR_ONE
    u = (torch.where(near_one, x ^ WORD, x).to(torch.float32) + 0.5) * 2.0**-32
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    f = torch.where(near_one, -u, mantissa - 1.0)
    e = torch.where(near_one, 0.0, exponent.to(torch.float32))
    f2 = f * f
    log_u = f * f2 * log_tail(f) - 0.5 * f2 + f + e * 0.6931471805599453
    # torch.sqrt of float32 (MKL) is 1 ulp off for 15 % of values; through float64 it is right.
    return torch.sqrt((-2.0 * log_u).double()).float()


def cos_sin_of(x: Tensor) -> tuple[Tensor, Tensor]:
    shifted = (x + 0x20000000) & WORD
    quadrant = shifted >> 30
    a = ((shifted & 0x3FFFFFFF) - 0x20000000).to(torch.float32) * 1.4629180792671596e-09
    c, s = cosine(a), sine(a)
    odd = (quadrant & 1) != 0
    x_axis, y_axis = torch.where(odd, s, c), torch.where(odd, c, s)
    x_axis = torch.where(((quadrant + 1) & 2) != 0, -x_axis, x_axis)
    return x_axis, torch.where((quadrant & 2) != 0, -y_axis, y_axis)


def philox4x32(
    key: tuple[Any, Any], counter: tuple[Any, Any, Any, Any]
) -> tuple[Any, Any, Any, Any]:
    """Ten rounds on int64 words in [0, 2³²). Products may overflow, but their bits are right.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    # The keys of all rounds in one tensor: compiled code would allocate a buffer for each, which
    # takes 9 of the 23 µs of a small call.
    rounds = torch.arange(10, device=counter[0].device)
    keys0, keys1 = (key[0] + 0x9E3779B9 * rounds) & WORD, (key[1] + 0xBB67AE85 * rounds) & WORD
    c0, c1, c2, c3 = counter
    for i in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32) & WORD ^ c1 ^ keys0[i],
            p1 & WORD,
            (p0 >> 32) & WORD ^ c3 ^ keys1[i],
            p0 & WORD,
        )
    return c0, c1, c2, c3


def quads(noise: Tensor, layout: Tensor, count: int, normal: bool) -> Tensor:
    """`count` quads of numbers of the stream, (count, 4); `layout` is one of `layout_of`."""
    index = torch.arange(count, device=noise.device) + layout[0]
    # A float64 division (exact while index < 2⁵⁰) is vectorised; an int64 division is not.
    sample = ((index.double() + 0.5) * (1.0 / layout[1].double())).long()
    quad = index - sample * layout[1] + layout[2]
    key, step = noise[0], noise[1]
    x0, x1, x2, x3 = philox4x32(
        (key & WORD, (key >> 32) & WORD),
        (quad & WORD, (quad >> 32) & WORD, sample + layout[3], (step & WORD).expand_as(quad)),
    )
    if not normal:
        return torch.stack([uniform_of(x) for x in (x0, x1, x2, x3)], -1)
    r0, r1 = radius_of(x0), radius_of(x2)
    (c0, s0), (c1, s1) = cos_sin_of(x1), cos_sin_of(x3)
    return torch.stack((r0 * c0, r0 * s0, r1 * c1, r1 * s1), -1)


# Quads per chunk in eager code: temporaries fit in a CPU's cache, and in less than 1 GiB on a GPU.
EAGER_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}


def forward(a: Arguments) -> tuple[Tensor]:
    noise, samples, rows, columns, row_offset, sample_offset, normal = a
    if samples * rows * columns == 0:
        return like_the_result(a)
    of_row = -(-columns // 4)
    count = samples * rows * of_row
    layout = partial(layout_of, noise.device, rows, columns, row_offset, sample_offset)
    code = compiled_quads(normal) if noise.is_cpu and has_cpu_compiler() else None
    if code is not None:
        # A size of 1 would need its own compilation. With at least 2, one serves all shapes.
        out = code(noise.contiguous(), layout(0), of_size(max(count, 2)))
        if columns % 4 == 0 and count > 1:
            return (out.view(samples, rows, columns),)
        out = out[:count]
    else:
        out = torch.empty((count, 4), dtype=torch.float32, device=noise.device)
        chunk = EAGER_CHUNK.get(noise.device.type, count)
        for first in range(0, count, chunk):
            part = out[first : first + chunk]
            part.copy_(quads(noise, layout(first), len(part), normal))
    return (out.reshape(samples, rows, of_row * 4)[..., :columns].contiguous(),)


def like_the_result(a: Arguments) -> tuple[Tensor]:
    """An empty tensor of the result's shape, dtype and device."""
    shape = (a.samples, a.rows, a.columns)
    return (torch.empty(shape, dtype=torch.float32, device=a.noise.device),)


@functools.lru_cache(64)  # a training run needs the same tensor in every step
def layout_of(
    device: torch.device,
    rows: int,
    columns: int,
    row_offset: int,
    sample_offset: int,
    first: int = 0,
) -> Tensor:
    """(4,) int64: index of the first quad, quads per sample, row_offset·⌈D/4⌉, sample_offset."""
    of_row = -(-columns // 4)
    return torch.tensor((first, rows * of_row, row_offset * of_row, sample_offset), device=device)


@functools.lru_cache(64)
def of_size(size: int) -> Tensor:
    """(size, 0): an empty tensor that tells compiled code a size."""
    return torch.empty((size, 0), device="cpu")


# Without realize_opcount_threshold=1 inductor inlines each round into its users and never finishes.
# With the default max_fusion_size it splits the loop (a million take 8–12 ms, not 1).
INDUCTOR = (("realize_opcount_threshold", 1), ("max_fusion_size", 100_000))


@compiled_once
def compiled_quads(normal: bool) -> Any:
    def drawn(noise: Tensor, layout: Tensor, sized: Tensor) -> Tensor:
        return quads(noise, layout, sized.shape[0], normal)  # len would make the size constant

    examples = (example(2, dtype=torch.int64), example(4, dtype=torch.int64), of_size(100_003))
    return compiled_without_guards(drawn, *examples, **dict(INDUCTOR))
