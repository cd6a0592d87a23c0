"""The likelihood's Triton kernels, interpreted on the CPU, against the reference and the fallback.

tests/kernels/test_interpreter.py runs this in a separate process; pixels.py derives the tolerances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interpreted.watch import watch
from tests.kernels.bernoulli.pixels import (
    LAYOUTS,
    TARGETS,
    UNIT,
    bounds,
    check,
    expected,
    measured,
    pixels,
)
from tests.kernels.helpers import assert_within
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import bernoulli_log_prob, interpreting, launch, use_backend

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

SHAPES = [  # S, B, P
    (1, 1, 1),
    (3, 7, 3),
    (8, 129, 3),
    (9, 7, 19),
    (1, 129, 19),
    (3, 7, 784),
    (9, 1, 784),
    (8, 7, 1000),
    (17, 2, 1027),
    (2, 3, 9001),  # three programs a row
]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(monkeypatch, (likelihood.kernel, "forward"), (likelihood.kernel, "backward"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [torch.uint8, torch.float32])
def test_value_and_gradients_are_the_references(
    shape: tuple[int, int, int], targets: torch.dtype, launches: list[str]
) -> None:
    check(*pixels(*shape, targets=targets))
    assert launches == ["forward", "backward"]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_pair_of_dtypes_is_the_references(dtype: torch.dtype, targets: torch.dtype) -> None:
    # The interpreter truncates float32 to bfloat16, while a GPU rounds: one ulp instead of half.
    check(*pixels(9, 7, 19, dtype, targets), truncates=True)


@pytest.mark.parametrize(("rows", "columns"), [(8, 196_608), (1, 786_432)])
def test_few_rows_of_many_pixels_occupy_every_multiprocessor(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = []
    monkeypatch.setattr(launch, "start_kernel", lambda kernel, grid, *_: grids.append(grid))
    logits = torch.zeros(1, rows, columns).requires_grad_()
    out = bernoulli_log_prob(logits, torch.zeros(rows, columns, dtype=torch.uint8))
    torch.autograd.grad(out, logits, torch.ones_like(out))
    assert len(grids) == 2
    assert min(math.prod(grid) for grid in grids) >= 132  # of an H100


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("targets", [torch.uint8, torch.float32])
def test_memory_layout_does_not_matter(layout: str, targets: torch.dtype) -> None:
    check(*pixels(3, 9, 20, targets=targets, layout=layout))


def test_targets_and_samples_that_are_broadcast_are_not_copied() -> None:
    for layout in ("contiguous", "one-sample", "rows-first", "part"):
        logits, x = pixels(3, 9, 20, layout=layout)
        assert likelihood.kernel.readable(logits) is logits
        assert layout == "one-sample" or likelihood.kernel.readable(x) is x


@pytest.mark.parametrize("shape", [(1, 1, 784), (9, 5, 20)])
def test_kernels_and_fallback_agree(shape: tuple[int, int, int]) -> None:
    logits, x = pixels(*shape, targets=torch.float32)
    kernels = measured(logits, x)
    with use_backend("torch"):
        fallback = measured(logits, x)
    names = ("log_prob", "grad_logits", "grad_x")
    for name, one, two, bound in zip(names, kernels, fallback, bounds(logits, x), strict=True):
        assert one is not None
        assert two is not None
        assert bound is not None
        # Each differs from the reference by at most the bound.
        assert_within(name, one, two, 2.0 * bound)


@pytest.mark.parametrize(("elements", "samples"), [(8, 1), (64, 2), (1024, 4), (256, 8)])
def test_results_do_not_depend_on_the_launch_parameters(
    elements: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, x = pixels(5, 3, 21, targets=torch.float32)
    one = measured(logits, x)
    monkeypatch.setattr(likelihood.kernel, "SAMPLES_PER_PROGRAM", samples)
    with launch.use_tile(launch.Tile(elements, 4)):
        other = measured(logits, x)
    assert torch.equal(one.grad_logits, other.grad_logits)
    assert one.grad_x is not None
    assert other.grad_x is not None
    # Lanes group the samples of a target into other partial sums, which are within the bound from
    # the reference. Tiles group the pixels of a row into other partial sums, which are off by up to
    # 4 ulp because all terms are negative.
    limit = bounds(logits, x).grad_x
    assert limit is not None
    assert_within("grad_x", other.grad_x, one.grad_x, 2.0 * limit)
    assert_within("log_prob", other.log_prob, one.log_prob, 8 * UNIT * one.log_prob.abs())


@pytest.mark.parametrize("shape", [(3, 7, 20), (9, 2, 784)])
def test_one_input_alone_may_require_a_gradient(
    shape: tuple[int, int, int], launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, x = pixels(*shape, targets=torch.float32)
    both = measured(logits, x)
    sizes: list[tuple[int, ...]] = []
    launch: Callable[..., tuple[Tensor, Tensor]] = likelihood.kernel.backward

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        grads = launch(*args)
        sizes.append(tuple(grad.numel() for grad in grads))
        return grads

    monkeypatch.setattr(likelihood.kernel, "backward", watched)
    alone = measured(logits, x.detach())
    assert torch.equal(alone.grad_logits, both.grad_logits)
    assert alone.grad_x is None
    upstream = torch.ones(shape[:2])
    (grad,) = torch.autograd.grad(bernoulli_log_prob(logits.detach(), x), x, upstream)
    (wanted,) = torch.autograd.grad(bernoulli_log_prob(logits, x), x, upstream)
    assert torch.equal(grad, wanted)
    assert sizes[:2] == [(logits.numel(), 0), (0, x.numel())]


def test_no_rows_launch_nothing() -> None:
    empty = measured(*pixels(9, 0, 20, targets=torch.float32))
    assert empty.log_prob.shape == (9, 0)
    assert empty.grad_logits.shape == (9, 0, 20)
    assert empty.grad_x is not None
    assert empty.grad_x.shape == (0, 20)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy's, on infinity
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0, torch.nan])
def test_nan_and_infinity_propagate_as_the_formula_says(target: float) -> None:
    values = torch.tensor([0.0, 1.0, 200.0, -200.0, torch.inf, -torch.inf, torch.nan])
    logits = values[None, :, None].repeat(2, 1, 3).requires_grad_()
    x = torch.full((len(values), 3), target, requires_grad=True)
    for value, want in zip(measured(logits, x), expected(logits, x), strict=True):
        assert value is not None
        assert want is not None
        # Sums of three terms up to 200, each off by a few u, times |g| below 3.
        torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_nan_stays_in_its_row() -> None:
    logits, x = pixels(9, 7, 20)
    clean = measured(logits, x)
    with torch.no_grad():
        logits[1, 2, 5] = torch.nan
    dirty = measured(logits, x)
    spoilt = torch.zeros(9, 7, dtype=torch.bool)
    spoilt[1, 2] = True
    assert torch.equal(dirty.log_prob.isnan(), spoilt)
    assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
    assert dirty.grad_logits.isnan().sum() == 1
    assert torch.equal(dirty.grad_logits[~spoilt], clean.grad_logits[~spoilt])


def test_backward_outside_the_backend_block_follows_its_forward(launches: list[str]) -> None:
    logits, x = pixels(3, 7, 20)
    with use_backend("torch"):
        out = bernoulli_log_prob(logits, x)
    out.sum().backward()
    assert launches == []
