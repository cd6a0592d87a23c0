"""The fused last layer on the CPU: the fallback, eager and compiled, against the reference.

tests/kernels/linear_bernoulli/last_layer.py derives the tolerances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from bench.timing.clock import peak_memory
from tests.kernels.bernoulli.pixels import FLOAT_TARGETS, TARGETS, UNIT
from tests.kernels.helpers import assert_within
from tests.kernels.linear_bernoulli.last_layer import (
    LAYOUTS,
    Inputs,
    bounds,
    check,
    expected,
    inputs,
    measured,
    upstream_of,
)
from vaez_kernels import bernoulli_log_prob, linear_bernoulli_log_prob, reference, use_backend
from vaez_kernels import linear_bernoulli as op
from vaez_kernels.compiler import has_cpu_compiler

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
needs_compiler = pytest.mark.skipif(not has_cpu_compiler(), reason="no C++ compiler here")
# S, B, H, P: tiles of whole samples and of a part of the images; partial products of 64 pixels.
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 19, 20),
    (8, 1, 5, 1027),
    (1, 33, 200, 15),
    (9, 5, 16, 784),
    (2, 3, 300, 1100),
]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile tiles for every size; returns those that were requested."""
    if not has_cpu_compiler():
        pytest.skip("no C++ compiler: tiles only run eager")
    asked = []

    def counted(*variant: Any) -> Any:
        asked.append(variant)
        return compiled(*variant)

    compiled = op.twin.compiled_tile
    monkeypatch.setattr(op.twin, "compiled_tile", counted)
    monkeypatch.setattr(op.twin, "COMPILE_FROM", 1)
    return asked


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.usefixtures("eager")
def test_value_and_gradients_are_the_references(
    shape: tuple[int, int, int, int], precision: str
) -> None:
    check(inputs(shape, targets=torch.float32), precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_compiled_tile_serves_any_number_of_samples_and_images(
    precision: str, compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(op.twin.TILE, "cpu", 64 * 84)  # tiles of several shapes, some partial
    for samples, images in ((3, 7), (1, 1), (1, 129), (70, 1), (9, 20), (41, 23)):
        check(inputs((samples, images, 19, 84)), precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer = (dtype, torch.uint8, 84, 19)
    assert set(compilations) == {
        (op.twin.tile_forward, (), *layer),
        (op.twin.tile_backward, (True, True), *layer),
    }


@pytest.mark.usefixtures("compilations")
def test_a_compiled_tile_takes_float_targets_and_one_gradient_alone() -> None:
    given = inputs((3, 7, 20, 85), targets=torch.float32)
    upstream = upstream_of(given)
    frozen = Inputs(given.hidden, given.weight.detach(), given.bias.detach(), given.x.detach())
    torch.set_default_dtype(torch.float64)  # must not affect the dtypes of a tile
    try:
        log_prob = linear_bernoulli_log_prob(*frozen)
        (grad,) = torch.autograd.grad(log_prob, frozen.hidden, upstream)
    finally:
        torch.set_default_dtype(torch.float32)
    wanted, limits = expected(given), bounds(given)
    assert_within("log_prob", log_prob, wanted.log_prob, limits.log_prob)
    assert_within("grad_hidden", grad, wanted.grad_hidden, limits.grad_hidden)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("eager")
def test_every_pair_of_dtypes_is_the_references(dtype: torch.dtype, targets: torch.dtype) -> None:
    check(inputs((3, 5, 20, 84), dtype, targets))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("eager")
def test_memory_layout_does_not_matter(layout: str) -> None:
    check(inputs((3, 9, 20, 84), targets=torch.float32, layout=layout))


@pytest.mark.usefixtures("eager")
def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs((5, 50, 20, 84))
    whole = measured(given)
    monkeypatch.setitem(op.twin.TILE, "cpu", 16 * 84)
    tiled = measured(given)
    for name, one, two, bound in zip(whole._fields, whole, tiled, bounds(given), strict=True):
        if one is not None and two is not None and bound is not None:
            # Each differs from the reference by at most the bound.
            assert_within(name, one, two, 2.0 * bound)


@pytest.mark.parametrize("route", ["eager", "compilations"])
@pytest.mark.parametrize("size", [0.0, 1e-3, 2.0, 100.0])
@pytest.mark.parametrize("pixels", [784, 3200])
def test_no_product_of_factors_overflows(
    pixels: int, size: float, route: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(route)
    # For logits of 0 every factor is 2, the largest possible value. With 3,200 pixels, each of
    # sixteen lanes has 200 factors, whose product would overflow float32 unless it is split.
    bias = torch.full((pixels,), size)
    bias[::2] *= -1
    for lit in (0, 1):
        x = torch.full((2, pixels), lit, dtype=torch.uint8)
        out = linear_bernoulli_log_prob(torch.zeros(3, 2, 1), torch.zeros(pixels, 1), bias, x)
        wanted = reference.bernoulli_log_prob(bias.expand(3, 2, -1), x)
        # Five roundings per pixel in its product, and those of the sums (last_layer.py).
        limit = 5 * UNIT * pixels + (pixels / 8 + 8) * UNIT * wanted.abs()
        assert_within("log_prob", out, wanted, limit)


def test_it_is_the_likelihood_of_the_layers_logits() -> None:
    hidden, weight, bias, x = inputs((3, 9, 20, 784))
    two_ops = bernoulli_log_prob(hidden @ weight.t() + bias, x)
    limit = bounds(Inputs(hidden, weight, bias, x)).log_prob
    assert_within(
        "log_prob", linear_bernoulli_log_prob(hidden, weight, bias, x), two_ops, 2 * limit
    )


def test_float64_stays_float64() -> None:
    given = Inputs(*(t.detach().double().requires_grad_() for t in inputs((3, 7, 19, 84))))
    assert all(n is not None and n.dtype == torch.float64 for n in measured(given))
    assert torch.autograd.gradcheck(
        linear_bernoulli_log_prob,
        [t.detach()[..., :5].contiguous().requires_grad_() for t in given[:1]]
        + [given.weight.detach()[:6, :5].contiguous().requires_grad_()]
        + [given.bias.detach()[:6].requires_grad_(), given.x.detach()[:, :6].requires_grad_()],
    )


@needs_compiler
def test_logits_are_never_in_memory_as_a_whole() -> None:
    samples, images, width, pixels = 16, 512, 32, 784
    given = inputs((samples, images, width, pixels))
    logits = 4 * samples * images * pixels
    cpu = torch.device("cpu")
    forward = peak_memory(lambda: linear_bernoulli_log_prob(*given), cpu)
    both = peak_memory(lambda: measured(given), cpu)
    # A tile of 1,024 rows, its residual in backward, and gradients as large as the hidden units.
    tile = 4 * op.twin.TILE["cpu"]
    assert forward is not None
    assert both is not None
    assert forward < 1.5 * tile < logits / 4
    assert both < 3 * tile + 3 * given.hidden.numel() * 4 < logits


@pytest.mark.usefixtures("eager")
class TestNaNAndInfinity:
    def test_they_stay_in_their_row(self) -> None:
        given = inputs((3, 7, 20, 84))
        clean = measured(given)
        with torch.no_grad():
            given.hidden[1, 2, 5] = torch.nan
        dirty = measured(given)
        spoilt = torch.zeros(3, 7, dtype=torch.bool)
        spoilt[1, 2] = True
        assert torch.equal(dirty.log_prob.isnan(), spoilt)
        assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
        assert torch.equal(dirty.grad_hidden.isnan().all(2), spoilt)
        assert dirty.grad_weight.isnan().all()

    def test_an_infinite_logit_is_what_the_likelihood_says(self) -> None:
        hidden, weight = torch.ones(1, 1, 1), torch.zeros(20, 1)
        for value, x in ((torch.inf, 0), (torch.inf, 1), (-torch.inf, 0), (-torch.inf, 1)):
            bias = torch.zeros(20)
            bias[3] = value
            targets = torch.full((1, 20), x, dtype=torch.uint8)
            torch.testing.assert_close(
                linear_bernoulli_log_prob(hidden, weight, bias, targets),
                bernoulli_log_prob(bias.expand(1, 1, 20), targets),
                equal_nan=True,
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images_give_empty_results_and_gradients(dtype: torch.dtype) -> None:
    empty = measured(inputs((3, 0, 20, 84), dtype, torch.float32))
    assert (empty.log_prob.shape, empty.log_prob.dtype) == ((3, 0), torch.float32)
    assert (empty.grad_hidden.shape, empty.grad_hidden.dtype) == ((3, 0, 20), dtype)
    assert not empty.grad_weight.any()
    assert not empty.grad_bias.any()
    assert empty.grad_x is not None
    assert empty.grad_x.shape == (0, 84)


@pytest.mark.usefixtures("eager")
def test_no_gradient_is_computed_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    tile = op.twin.tile_backward

    def counted(*args: Any) -> Any:
        asked.append(args[-2:])
        return tile(*args)

    monkeypatch.setattr(op.twin, "tile_backward", counted)
    given = inputs((3, 7, 20, 84), targets=torch.float32)
    every = measured(given)
    wanted = (every.grad_hidden, every.grad_weight, every.grad_bias, every.grad_x)
    for i in range(4):
        alone = Inputs(*(t if i == j else t.detach() for j, t in enumerate(given)))
        (grad,) = torch.autograd.grad(
            linear_bernoulli_log_prob(*alone), given[i], upstream_of(given)
        )
        want = wanted[i]
        assert want is not None
        assert torch.equal(grad, want)
    # The gradients of hidden, of weight and of bias. The gradient of x needs no tile.
    assert asked[1:] == [(True, False), (False, True), (False, True)]


def _dispatched(*args: Any) -> Tensor:
    return torch.ops.vaez.linear_bernoulli_forward(*args)


@pytest.mark.parametrize("call", [linear_bernoulli_log_prob, _dispatched])
def test_a_second_derivative_is_refused_and_not_taken_for_zero(
    call: Callable[..., Tensor],
) -> None:
    given = inputs((2, 3, 5, 8))
    loss = call(*given, "float32").sum()
    (first,) = torch.autograd.grad(loss, given.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + first.square().sum()).backward()


@pytest.mark.usefixtures("eager")
def test_the_dispatched_op_returns_what_the_public_one_does() -> None:
    given = inputs((3, 7, 20, 84), targets=torch.float32)
    for one, two in zip(measured(given), measured(given, op=_dispatched), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_autocast_and_the_call_leave_the_inputs_alone() -> None:
    given = inputs((3, 7, 20, 84))
    before = [t.detach().clone() for t in given]
    plain = measured(given)
    with torch.autocast("cpu", torch.bfloat16):
        cast = measured(given)
    for one, two in zip(plain, cast, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


H, W, B, X = torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.zeros(5), torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("args", "error", "names"),
    [
        (([0.0], W, B, X), TypeError, "hidden must be a tensor, got list"),
        ((H, W, None, X), TypeError, "bias must be a tensor, got NoneType"),
        ((H.int(), W, B, X), TypeError, "hidden must be float32, bfloat16"),
        ((H, W, B.long(), X), TypeError, "bias must be float32, bfloat16"),
        ((H, W.half(), B, X), TypeError, "weight must have hidden's dtype torch.float32"),
        ((H, W, B, X.int()), TypeError, "x must be uint8, bool, float32"),
        ((H[0], W, B, X), ValueError, r"hidden must have shape \(S, B, H\), got \(3, 4\)"),
        ((H[:0], W, B, X), ValueError, "hidden must have at least one sample and unit"),
        ((H, W[:, :3], B, X), ValueError, r"weight must have shape \(P, H\) with P ≥ 1 and H = 4"),
        ((H, W[:0], B[:0], X), ValueError, r"weight must have shape \(P, H\) with P ≥ 1"),
        ((H, W, B[:4], X), ValueError, r"bias must have shape \(P,\) = \(5,\), got \(4,\)"),
        ((H, W, B, X[:2]), ValueError, r"x must have shape \(B, P\) = \(3, 5\), got \(2, 5\)"),
        ((H, W.to("meta"), B, X), ValueError, "weight must be on hidden's device cpu, got meta"),
        ((H, W, B.to("meta"), X), ValueError, "bias must be on hidden's device cpu, got meta"),
        ((H, W, B, X.to("meta")), ValueError, "x must be on hidden's device cpu, got meta"),
        ((H, W, B, X, "float16"), ValueError, "precision must be one of float32, tf32, bfloat16"),
    ],
)
def test_the_argument_that_is_refused_is_named(
    args: tuple[Any, ...], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"linear_bernoulli_log_prob: {names}"):
        linear_bernoulli_log_prob(*args)


def test_kernels_are_refused_where_they_cannot_run() -> None:
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was forced"):
        linear_bernoulli_log_prob(H, W, B, X)


class TestRegistration:
    """opcheck: schema, autograd registration, fake tensors, ahead-of-time tracing."""

    @pytest.mark.parametrize("targets", [torch.uint8, *FLOAT_TARGETS[:2]])
    def test_the_forward_op_is_sound(self, targets: torch.dtype) -> None:
        given = inputs((2, 3, 5, 8), targets=targets, layout="part")
        torch.library.opcheck(torch.ops.vaez.linear_bernoulli_forward, (*given, "float32"))

    @pytest.mark.parametrize(
        "needs",
        [(True, True, True, True), (True, False, False, False), (False, True, True, False)],
    )
    def test_the_backward_op_is_sound(self, needs: tuple[bool, ...]) -> None:
        given = inputs((2, 3, 5, 8), targets=torch.float32)
        args = (upstream_of(given), *(t.detach() for t in given), "bfloat16", *needs)
        torch.library.opcheck(torch.ops.vaez.linear_bernoulli_backward, args)


@needs_compiler
@pytest.mark.usefixtures("eager")
def test_one_graph_serves_every_batch_size_gradients_included() -> None:
    torch._dynamo.reset()  # dynamo counts graphs per code object, across tests
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(
        linear_bernoulli_log_prob, backend=counter, fullgraph=True, dynamic=True
    )
    for images in (5, 33, 129):
        check(inputs((3, images, 20, 84)), op=compiled)
    assert counter.frame_count == 1
