"""Hypothesis strategies for inputs of the ops: shapes, memory layouts, dtypes, extreme values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels import helpers
from tests.kernels.bernoulli import pixels
from tests.kernels.helpers import MODES, Numbers
from vaez_kernels import noise_key

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LOGVAR_REACH, MU_REACH, LOGIT_REACH = 80.0, 1e4, 2.0**100


def repeatable(examples: int) -> settings:
    """Settings for the same examples in every run, without files on disk or time limits."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        # pytest sets up fixtures once for all examples, as these tests need.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


class Layout(NamedTuple):
    """The memory layout of a tensor; see `place`."""

    order: tuple[int, ...]
    step: int
    gap: int
    start: int
    broadcast: frozenset[int]


def place(values: Tensor, layout: Layout) -> Tensor:
    """`values` in memory with the given layout.

    Dimensions are in the layout's order, elements of the last one are `step` apart, and each block
    is followed by a `gap`. Broadcast dimensions keep their first entry. Memory in between is NaN.
    """
    shape = values.shape
    for dim in layout.broadcast:
        values = values.narrow(dim, 0, 1)
    strides, size = [0] * values.dim(), layout.step
    for dim in reversed(layout.order):
        strides[dim] = size
        size = size * values.shape[dim] + layout.gap
    memory = torch.zeros(size + layout.start, dtype=values.dtype)
    if values.is_floating_point():
        memory.fill_(torch.nan)
    placed = memory.as_strided(values.shape, strides, layout.start)
    return placed.copy_(values).expand(shape).detach().requires_grad_(values.is_floating_point())


def layouts(dims: int) -> st.SearchStrategy[Layout]:
    return st.builds(
        Layout,
        st.permutations(range(dims)).map(tuple),
        st.integers(1, 3),
        st.integers(0, 5),
        st.integers(0, 5),
        st.frozensets(st.integers(0, dims - 1), max_size=1),
    )


def apart(dims: int) -> st.SearchStrategy[Layout]:
    """Layouts with gaps between rows, the simplest first, and without broadcast dimensions."""
    order = st.permutations(range(dims)).map(tuple)
    every = st.just(frozenset[int]())
    return st.builds(Layout, order, st.integers(1, 3), st.integers(1, 5), st.integers(0, 5), every)


# An element's index, modulo the number of elements, and the special value that it gets.
Specials = list[tuple[int, float]]


def specials(reach: float) -> st.SearchStrategy[Specials]:
    known = st.sampled_from((0.0, -0.0, 1e-40, -1e-45, 2.0**-126, torch.inf, -torch.inf, torch.nan))
    value = known | st.floats(-reach, reach, width=32)
    return st.lists(st.tuples(st.integers(0, 4000), value), max_size=6)


def sprinkle(values: Tensor, specials: Specials) -> Tensor:
    values = values.clone()
    for index, value in specials:
        values.view(-1)[index % values.numel()] = value
    return values


class LatentCase(NamedTuple):
    mode: str
    mu: Tensor
    logvar: Tensor
    noise: Tensor
    samples: int
    offsets: dict[str, int]

    def run(self) -> Numbers:
        mode, mu, logvar, noise, samples, offsets = self
        upstream = helpers.upstream_of(mu, samples)
        return helpers.measured(mode, mu, logvar, noise, samples, upstream, helpers.call, **offsets)


@st.composite
def latent_cases(
    draw: Any,
    extreme: bool = False,
    modes: tuple[str, ...] = tuple(MODES),
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    compilable: bool = False,
) -> LatentCase:
    """compilable: only the few kinds that the fallback compiles separately, without sizes of 1."""
    least = 2 if compilable else 1
    mode, dtype = draw(st.sampled_from(modes)), draw(st.sampled_from(dtypes))
    samples, rows = draw(st.integers(least, 10)), draw(st.integers(least, 9))
    columns = draw(st.integers(least, 37))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    mu, logvar = torch.randn((2, rows, columns), generator=generator)
    if extreme:
        mu = mu * draw(st.sampled_from((0.0, 1e-38, 1.0, MU_REACH / 10)))
        logvar = logvar * draw(st.sampled_from((0.0, 1e-38, 1.0, LOGVAR_REACH / 4)))
        logvar = logvar.clamp(-LOGVAR_REACH, LOGVAR_REACH)
        mu = sprinkle(mu, draw(specials(MU_REACH)))
        logvar = sprinkle(logvar, draw(specials(LOGVAR_REACH)))
    dense = st.just(Layout((0, 1), 1, 0, 0, frozenset()))
    layout = dense if compilable else layouts(2)
    mu, logvar = (place(x.to(dtype), draw(layout)) for x in (mu, logvar))
    offsets = {"row_offset": draw(st.integers(0, 2**40)), "sample_offset": draw(st.integers(0, 99))}
    key = noise_key(draw(st.integers(0, 2**32 - 1)), "train", draw(st.integers(0, 2**32 - 1)))
    return LatentCase(mode, mu, logvar, key, samples, offsets)


class PixelCase(NamedTuple):
    logits: Tensor
    x: Tensor


@st.composite
def pixel_cases(
    draw: Any,
    extreme: bool = False,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    targets: tuple[torch.dtype, ...] = pixels.TARGETS,
    compilable: bool = False,
) -> PixelCase:
    least = 2 if compilable else 1
    dtype, target = draw(st.sampled_from(dtypes)), draw(st.sampled_from(targets))
    samples, rows = draw(st.integers(least, 10)), draw(st.integers(least, 9))
    columns = draw(st.integers(least, 37))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = 4.0 * torch.randn((samples, rows, columns), generator=generator)
    x = torch.rand((rows, columns), generator=generator)
    if extreme:
        logits = logits * draw(st.sampled_from((0.0, 1e-38, 1.0, 1e3, LOGIT_REACH / 100)))
        logits = sprinkle(logits, draw(specials(LOGIT_REACH)))
    if not target.is_floating_point:
        x = (x < 0.3).float()
    elif extreme:
        x = sprinkle(x, draw(specials(1.0).map(_targets)))
    dense = [Layout(tuple(range(dims)), 1, 0, 0, frozenset()) for dims in (3, 2)]
    kinds = [st.just(layout) for layout in dense] if compilable else [layouts(3), layouts(2)]
    return PixelCase(place(logits.to(dtype), draw(kinds[0])), place(x.to(target), draw(kinds[1])))


def _targets(specials: Specials) -> Specials:
    # Without infinities, which would need bounds beyond [0, 1].
    return [(i, abs(x)) for i, x in specials if abs(x) != torch.inf]
