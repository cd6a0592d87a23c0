"""The Philox stream: which number belongs to (key, step, sample, row, column).

The definition, in real numbers. Words x₀…x₃ = Philox4x32-10 (Salmon et al. 2011) with the key's low
and high word and the counter (low and high word of r·⌈D/4⌉ + ⌊d/4⌋, sample, step). A word's uniform
is u(x) = (x + ½)·2⁻³²; the normals are Box–Muller's, n₀, n₁ = √(−2 ln u(x₀))·(cos, sin) 2πu(x₁) and
n₂, n₃ likewise from x₂, x₃. Column d takes the number of index d mod 4.

Every backend computes it with the same single-precision polynomials, so the fallback (eager or
compiled) and the interpreted kernel agree bit for bit, and a GPU to a few units in the last place.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backend import is_plain, jit, launcher, tl, undecorated, uses_triton
from ..checks import check_choice, check_count, check_noise, check_transforms
from ..compiler import compiled_once, compiled_without_guards, example, has_cpu_compiler
from ..launch import launch
from ..registration import triton_op

PURPOSES = ("train", "binarize", "permute", "evaluate", "generate")

WORD = 0xFFFFFFFF
# Near u = 1, rounding x + ½ to single precision would lose the radius: words from √½·2³² on are
# reflected, and the logarithm is taken of 1 − u.
NEAR_ONE = 3037000500
LARGEST_UNIFORM = 1 - 2.0**-24


def noise_key(
    seed: int, purpose: str, step: int = 0, *, device: torch.device | str | None = None
) -> Tensor:
    """The `noise` argument of every sampling op.

    Args:
        seed: 0 ≤ seed < 2³².
        purpose: one of "train", "binarize", "permute", "evaluate", "generate"; no two of them
            share a number.
        step: 0 ≤ step < 2³², the training step, epoch or whatever else advances.
        device: where the tensor lives; the ops want it on their own.

    Returns:
        (2,) int64: key (seed in the low word, purpose in the high word) and step.

    Raises:
        TypeError, ValueError: a seed, purpose or step outside these ranges.
    """
    check_count("noise_key", "seed", seed, below=2**32)
    check_choice("noise_key", "purpose", purpose, PURPOSES)
    check_count("noise_key", "step", step, below=2**32)
    key = PURPOSES.index(purpose) << 32 | seed
    return torch.tensor((key, step), dtype=torch.int64, device=device)


# Polynomials of the Cephes library, single precision: one body for Triton and PyTorch (without type
# hints, since Triton's compiler would evaluate them).


@jit
def log_tail_jit(f):  # type: ignore[no-untyped-def]
    """(ln(1 + f) − f + f²/2) / f³ for √½ − 1 ≤ f ≤ √2 − 1."""
    p = 7.0376836292e-2
    p = p * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    return p * f + 3.3333331174e-1


@jit
def cosine_jit(a):  # type: ignore[no-untyped-def]
    """cos a for |a| ≤ π/4."""
    b = a * a
    tail = 4.166664568298827e-2 + b * (-1.388731625493765e-3 + b * 2.443315711809948e-5)
    return 1.0 - 0.5 * b + b * b * tail


@jit
def sine_jit(a):  # type: ignore[no-untyped-def]
    """sin a for |a| ≤ π/4."""
    b = a * a
    return a + a * b * (-1.6666654611e-1 + b * (8.3321608736e-3 + b * -1.9515295891e-4))


log_tail, cosine, sine = (undecorated(f) for f in (log_tail_jit, cosine_jit, sine_jit))


# The Triton kernel.


@jit
def uniform_jit(x):  # type: ignore[no-untyped-def]  # uint32 → float32
    u = (x.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return tl.minimum(u, 0.999999940395355224609375)


@jit
def radius_jit(x):  # type: ignore[no-untyped-def]  # uint32 → √(−2 ln u(x))
    near_one = x >= 3037000500
    u = (tl.where(near_one, x ^ 0xFFFFFFFF, x).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    f = tl.where(near_one, -u, mantissa - 1.0)
    e = tl.where(near_one, 0.0, exponent.to(tl.float32))
    f2 = f * f
    log_u = f * f2 * log_tail_jit(f) - 0.5 * f2 + f + e * 0.6931471805599453
    return tl.sqrt(-2.0 * log_u)


@jit
def cos_sin_jit(x):  # type: ignore[no-untyped-def]  # uint32 → cos, sin of 2πu(x)
    shifted = x + 0x20000000
    quadrant = shifted >> 30
    a = ((shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * 1.4629180792671596e-09
    c = cosine_jit(a)
    s = sine_jit(a)
    odd = (quadrant & 1) != 0
    x_axis = tl.where(odd, s, c)
    y_axis = tl.where(odd, c, s)
    x_axis = tl.where(((quadrant + 1) & 2) != 0, -x_axis, x_axis)
    return x_axis, tl.where((quadrant & 2) != 0, -y_axis, y_axis)


@jit
def words_jit(key, step, sample, quad):  # type: ignore[no-untyped-def]  # quad: int64 counter
    # Uncast int64 counters would select Philox4x64 without a word.
    low = quad.to(tl.uint32)
    high = (quad >> 32).to(tl.uint32)
    return tl.philox(key, low, high, sample.to(tl.uint32), step.to(tl.uint32))


@jit
def interleave_jit(a, b, c, d, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    # (rows, quads) four times → (rows, columns), in registers
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (BLOCK_ROWS, BLOCK_D))


@jit
def normal_jit(  # type: ignore[no-untyped-def]
    key, step, sample, quad, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # quad (BLOCK_ROWS, BLOCK_D / 4) → (BLOCK_ROWS, BLOCK_D)
    x0, x1, x2, x3 = words_jit(key, step, sample, quad)
    r0 = radius_jit(x0)
    r1 = radius_jit(x2)
    c0, s0 = cos_sin_jit(x1)
    c1, s1 = cos_sin_jit(x3)
    return interleave_jit(r0 * c0, r0 * s0, r1 * c1, r1 * s1, BLOCK_ROWS, BLOCK_D)


@jit
def noise_kernel(  # type: ignore[no-untyped-def]
    noise_ptr,  # (2,) int64
    out_ptr,  # (S, B, D) float32
    n_rows,
    row_offset,
    sample_offset,
    D: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    QUADS: tl.constexpr = (D + 3) // 4
    row_blocks = tl.cdiv(n_rows, BLOCK_ROWS)
    sample = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    key = tl.load(noise_ptr)
    step = tl.load(noise_ptr + 1)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        quads = start // 4 + tl.arange(0, BLOCK_D // 4)
        quad = (rows + row_offset)[:, None] * QUADS + quads[None, :]
        if NORMAL:
            out = normal_jit(key, step, sample + sample_offset, quad, BLOCK_ROWS, BLOCK_D)
        else:
            x0, x1, x2, x3 = words_jit(key, step, sample + sample_offset, quad)
            out = interleave_jit(
                uniform_jit(x0),
                uniform_jit(x1),
                uniform_jit(x2),
                uniform_jit(x3),
                BLOCK_ROWS,
                BLOCK_D,
            )
        mask = (rows < n_rows)[:, None] & (columns < D)[None, :]
        offsets = (sample * n_rows + rows)[:, None] * D + columns[None, :]
        tl.store(out_ptr + offsets, out, mask=mask)


def _launch(
    kernel: Any,
    noise: Tensor,
    shape: tuple[int, int, int],
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    samples, rows, columns = shape
    out = torch.empty(shape, dtype=torch.float32, device=noise.device)
    if out.numel() > 0:
        launch(
            kernel,
            "noise",
            columns,
            lambda block_rows: -(-rows // block_rows) * samples,
            (noise.contiguous(), out, rows, row_offset, sample_offset),
            {"D": columns, "NORMAL": normal},
        )
    return out


# The PyTorch twin.


def _uniform_of(x: Tensor) -> Tensor:
    return ((x.to(torch.float32) + 0.5) * 2.0**-32).clamp(max=LARGEST_UNIFORM)


def _radius_of(x: Tensor) -> Tensor:
    near_one = x >= NEAR_ONE
    u = (torch.where(near_one, x ^ WORD, x).to(torch.float32) + 0.5) * 2.0**-32
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    f = torch.where(near_one, -u, mantissa - 1.0)
    e = torch.where(near_one, 0.0, exponent.to(torch.float32))
    f2 = f * f
    log_u = f * f2 * log_tail(f) - 0.5 * f2 + f + e * 0.6931471805599453
    # torch.sqrt of float32 (MKL) is 1 ulp off in 15 % of values; through float64 it is right.
    return torch.sqrt((-2.0 * log_u).double()).float()


def _cos_sin_of(x: Tensor) -> tuple[Tensor, Tensor]:
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
    """Ten rounds; words are int64 tensors in [0, 2³²), whose products may wrap: the bits are right.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (p1 >> 32) & WORD ^ c1 ^ k0,
            p1 & WORD,
            (p0 >> 32) & WORD ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def _quads(noise: Tensor, layout: Tensor, count: int, normal: bool) -> Tensor:
    # layout (4,) int64: index of the first quad, quads a sample, row_offset·⌈D/4⌉, sample_offset
    # → (count, 4)
    index = torch.arange(count, device=noise.device) + layout[0]
    # A division in float64 (exact while index < 2⁵⁰) stays vectorised; one of int64 does not.
    sample = ((index.double() + 0.5) * (1.0 / layout[1].double())).long()
    quad = index - sample * layout[1] + layout[2]
    key, step = noise[0], noise[1]
    x0, x1, x2, x3 = philox4x32(
        (key & WORD, (key >> 32) & WORD),
        (quad & WORD, (quad >> 32) & WORD, sample + layout[3], (step & WORD).expand_as(quad)),
    )
    if not normal:
        return torch.stack([_uniform_of(x) for x in (x0, x1, x2, x3)], -1)
    r0, r1 = _radius_of(x0), _radius_of(x2)
    (c0, s0), (c1, s1) = _cos_sin_of(x1), _cos_sin_of(x3)
    return torch.stack((r0 * c0, r0 * s0, r1 * c1, r1 * s1), -1)


# Quads at once in eager code: temporaries stay in a CPU's cache, and below 1 GiB on a GPU.
EAGER_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 22}


def _twin(
    noise: Tensor,
    shape: tuple[int, int, int],
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    samples, rows, columns = shape
    if samples * rows * columns == 0:
        return torch.empty(shape, dtype=torch.float32, device=noise.device)
    quads = -(-columns // 4)
    count = samples * rows * quads
    layout = partial(_layout, noise.device, rows * quads, row_offset * quads, sample_offset)
    on_cpu = noise.device.type == "cpu"
    code = compiled_quads(normal) if on_cpu and has_cpu_compiler() else None
    if code is not None:
        # A size of 1 would be compiled apart; as it is, one compilation serves all shapes.
        sized = torch.empty(max(count, 2), dtype=torch.uint8, device="cpu")
        out = code(noise.contiguous(), layout(0), sized)[:count]
    else:
        out = torch.empty((count, 4), dtype=torch.float32, device=noise.device)
        chunk = EAGER_CHUNK.get(noise.device.type, count)
        for first in range(0, count, chunk):
            part = out[first : first + chunk]
            part.copy_(_quads(noise, layout(first), len(part), normal))
    return out.reshape(samples, rows, quads * 4)[..., :columns].contiguous()


@functools.lru_cache(64)  # a training run asks for the same one in every step
def _layout(
    device: torch.device, quads: int, first_quad: int, first_sample: int, first: int
) -> Tensor:
    return torch.tensor((first, quads, first_quad, first_sample), device=device)


@compiled_once
def compiled_quads(normal: bool) -> Any:
    # realize_opcount_threshold=1: without it inductor inlines each round into its users and does
    # not end; max_fusion_size: with the default the loop is split (8–12 ms a million, not 1).
    def quads(noise: Tensor, layout: Tensor, sized: Tensor) -> Tensor:
        return _quads(noise, layout, sized.shape[0], normal)  # len would fix it

    sized = example(100_003, dtype=torch.uint8)
    examples = (example(2, dtype=torch.int64), example(4, dtype=torch.int64), sized)
    return compiled_without_guards(
        quads, *examples, realize_opcount_threshold=1, max_fusion_size=100_000
    )


# Registration. The twin stays opaque: inlined into a larger graph it loses its vectorisation. By
# its schema, because what custom_op wraps around a function would cost as much as 16,384 normals.

torch.library.define(
    "vaez::noise_twin",
    "(Tensor noise, SymInt samples, SymInt rows, SymInt columns, SymInt row_offset, "
    "SymInt sample_offset, bool normal) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("vaez::noise_twin", "default")
def _(
    noise: Tensor,
    samples: int,
    rows: int,
    columns: int,
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    return _twin(noise, (samples, rows, columns), row_offset, sample_offset, normal)


@torch.library.register_fake("vaez::noise_twin")
def _(
    noise: Tensor,
    samples: int,
    rows: int,
    columns: int,
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    return torch.empty((samples, rows, columns), dtype=torch.float32, device=noise.device)


@triton_op("vaez::noise", noise_kernel)
def noise_op(
    noise: Tensor,
    samples: int,
    rows: int,
    columns: int,
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    if uses_triton(noise):
        shape = (samples, rows, columns)
        return _launch(launcher(noise_kernel), noise, shape, row_offset, sample_offset, normal)
    return torch.ops.vaez.noise_twin(
        noise, samples, rows, columns, row_offset, sample_offset, normal
    )


def draw(
    noise: Tensor,
    shape: tuple[int, int, int],
    row_offset: int,
    sample_offset: int,
    normal: bool,
) -> Tensor:
    """`noise_op`, past the dispatcher where nothing is traced."""
    if not is_plain(noise):
        return torch.ops.vaez.noise(noise, *shape, row_offset, sample_offset, normal)
    if uses_triton(noise):
        with torch.cuda.device_of(noise):
            return _launch(noise_kernel, noise, shape, row_offset, sample_offset, normal)
    return _twin(noise, shape, row_offset, sample_offset, normal)


# The public functions.


def check_offsets(op: str, num_samples: int, row_offset: int, sample_offset: int) -> None:
    samples = "S" if op in ("normal", "uniform") else "num_samples"
    check_count(op, samples, num_samples, below=2**32 + 1)
    check_count(op, "row_offset", row_offset, below=2**48)
    check_count(op, "sample_offset", sample_offset, below=2**32 - num_samples + 1)


def _checked_draw(
    op: str,
    noise: Tensor,
    shape: tuple[int, int, int],
    row_offset: int,
    sample_offset: int,
) -> Tensor:
    check_transforms(op)
    check_noise(op, noise)
    for name, size in zip("SBD", shape, strict=True):
        check_count(op, name, size)
    check_offsets(op, shape[0], row_offset, sample_offset)
    return draw(noise, shape, row_offset, sample_offset, op == "normal")


def normal(
    noise: Tensor, S: int, B: int, D: int, *, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """Standard normal numbers of the stream.

    Number (s, b, d) depends on the key, the step, s + sample_offset, b + row_offset, d and D alone:
    not on S, B, the device or the backend. Within 1e-6·max(1, |n|) of the definition above; the
    largest that can occur is 6.77.

    Args:
        noise: (2,) int64, from `noise_key`; its device is the result's.
        S, B, D: numbers of samples, rows and columns.
        row_offset: the global index of row 0.
        sample_offset: the global index of sample 0.

    Returns:
        (S, B, D) float32, contiguous.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range.
    """
    return _checked_draw("normal", noise, (S, B, D), row_offset, sample_offset)


def uniform(
    noise: Tensor, S: int, B: int, D: int, *, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """Numbers of the stream, uniform on (0, 1): (x + ½)·2⁻³², below 1 also after rounding.

    Arguments, result and errors as for `normal`. The two share words of the counter, so a key and
    step should serve one of them.
    """
    return _checked_draw("uniform", noise, (S, B, D), row_offset, sample_offset)


__all__ = ["PURPOSES", "noise_key", "normal", "uniform"]
