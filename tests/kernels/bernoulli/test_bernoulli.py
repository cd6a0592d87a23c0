"""The Bernoulli likelihood: value and gradients against the float64 reference.

pixels.py derives the tolerances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.kernels.bernoulli.pixels import (
    LAYOUTS,
    PIXEL,
    TARGETS,
    UNIT,
    check,
    expected,
    measured,
    pixels,
    upstream_of,
)
from tests.kernels.helpers import assert_within
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import bernoulli_log_prob, compiler, use_backend

# The cache itself, even while a fixture counts its calls.
COMPILED = compiler.compiled
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_compiler = pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")


@pytest.fixture(params=["eager", "compilations"])
def route(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


@pytest.mark.parametrize("columns", [1, 3, 19, 784, 1000])
@pytest.mark.parametrize("rows", [1, 7, 129])
@pytest.mark.parametrize("samples", [1, 3, 8, 9])
@pytest.mark.usefixtures("eager")
def test_eager_value_and_gradients_are_the_references(
    samples: int, rows: int, columns: int
) -> None:
    check(*pixels(samples, rows, columns))


@pytest.mark.parametrize("shape", [(1, 7, 19), (3, 129, 784), (9, 1, 1000)])
def test_compiled_value_and_gradients_are_the_references(
    shape: tuple[int, int, int], compilations: list[Any]
) -> None:
    check(*pixels(*shape))
    assert compilations == [likelihood.twin.forward_formula, likelihood.twin.backward_formula]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("eager")
def test_every_pair_of_dtypes_is_the_references(dtype: torch.dtype, targets: torch.dtype) -> None:
    for shape in ((1, 7, 784), (9, 7, 19), (3, 1, 3)):
        check(*pixels(*shape, dtype, targets))


@pytest.mark.usefixtures("compilations")
def test_the_compiled_twin_takes_other_dtypes() -> None:
    check(*pixels(3, 7, 784, torch.bfloat16, torch.bool))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("targets", [torch.uint8, torch.float32])
@pytest.mark.usefixtures("eager")
def test_memory_layout_does_not_matter(layout: str, targets: torch.dtype) -> None:
    check(*pixels(3, 33, 100, targets=targets, layout=layout))
    check(*pixels(2, 5, 7, targets=targets, layout=layout))


@pytest.mark.usefixtures("compilations")
def test_few_compilations_serve_all_layouts_sizes_and_callers() -> None:
    COMPILED.kept.clear()
    for layout in LAYOUTS:
        logits, x = pixels(3, 33, 20, layout=layout)
        check(logits, x)
        tracked = bernoulli_log_prob(logits, x)
        assert torch.equal(bernoulli_log_prob(logits.detach(), x), tracked)
        with torch.no_grad():
            assert torch.equal(bernoulli_log_prob(logits, x), tracked)
    # Sizes that equal each other, sizes that equal those of the compiled examples, and large sizes.
    for shape in ((5, 5, 20), (4, 9, 9), (6, 6, 6), (2, 129, 784), (3, 509, 3), (2, 61, 787)):
        check(*pixels(*shape))
    # Forward and backward, each for contiguous targets and for targets with rows apart.
    assert len(COMPILED.kept) == 4
    for shape in ((5, 1, 20), (5, 1, 784), (64, 1, 19)):
        check(*pixels(*shape))
    assert len(COMPILED.kept) == 6


@pytest.mark.usefixtures("route")
def test_each_logits_term_keeps_its_digits_on_all_its_range() -> None:
    # With x = [l > 0] only −ln(1 + e^−|l|) remains. Its relative error is at most 1.7e-7 for the
    # polynomial and (2 + 1.25·|l|)u for the exponential.
    size = torch.cat((torch.linspace(0.0, 2.0, 4001), torch.linspace(2.0, 80.0, 4001)))
    logits = torch.cat((size, -size))[None, :, None]
    x = (logits[0] > 0).to(torch.uint8)
    # The reference computes the difference of l and softplus(l), which loses digits.
    wanted = -torch.log1p(torch.exp(-logits[..., 0].abs().double()))
    relative = 1.7e-7 + (2 + 1.25 * logits[..., 0].abs().double()) * UNIT
    # x·l − max(l, 0) is exactly 0 in any order of float32 operations.
    assert_within("log_prob", bernoulli_log_prob(logits, x), wanted, relative * wanted.abs())
    assert_within("log_prob", bernoulli_log_prob(logits, x), wanted, PIXEL)


def test_float64_stays_float64() -> None:
    for targets in TARGETS:
        logits, x = pixels(3, 7, 784, torch.float64, targets)
        actual, wanted = measured(logits, x), expected(logits, x)
        assert actual.log_prob.dtype == actual.grad_logits.dtype == torch.float64
        # Float64 roundings of sums of 784 terms below 20. A target's gradient is also rounded to
        # the target's dtype.
        torch.testing.assert_close(actual[:2], wanted[:2], rtol=1e-13, atol=1e-12)
        if actual.grad_x is not None and wanted.grad_x is not None:
            assert actual.grad_x.dtype == targets
            ulp = torch.finfo(targets).eps
            torch.testing.assert_close(actual.grad_x.double(), wanted.grad_x, rtol=ulp, atol=1e-6)


@pytest.mark.parametrize("targets", [torch.uint8, torch.float64])
def test_gradients_are_derivatives(targets: torch.dtype) -> None:
    assert torch.autograd.gradcheck(
        bernoulli_log_prob, pixels(3, 2, 5, torch.float64, targets), check_undefined_grad=False
    )


def test_the_gradient_at_zero_is_half_exactly() -> None:
    logits = torch.zeros(1, 2, 600, requires_grad=True)
    x = torch.tensor([0, 1], dtype=torch.uint8)[:, None].expand(-1, 600)
    bernoulli_log_prob(logits, x).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, (x - 0.5)[None])


@pytest.mark.usefixtures("route")
class TestNaNAndInfinity:
    VALUES = (0.0, 1.0, 200.0, -200.0, torch.inf, -torch.inf, torch.nan)

    def test_they_propagate_as_the_formula_says(self) -> None:
        for target in (0.0, 0.25, 1.0, torch.nan):
            logits = torch.tensor(self.VALUES)[None, :, None].repeat(2, 1, 3).requires_grad_()
            x = torch.full((len(self.VALUES), 3), target, requires_grad=True)
            for value, want in zip(measured(logits, x), expected(logits, x), strict=True):
                assert value is not None
                assert want is not None
                # Sums of three terms up to 200, each with an error of a few u, times |g| below 3.
                torch.testing.assert_close(
                    value.double(), want, rtol=1e-6, atol=1e-6, equal_nan=True
                )

    def test_a_nan_stays_in_its_row(self) -> None:
        logits, x = pixels(3, 7, 784)
        clean = measured(logits, x)
        with torch.no_grad():
            logits[1, 2, 5] = torch.nan
        dirty = measured(logits, x)
        spoilt = torch.zeros(3, 7, dtype=torch.bool)
        spoilt[1, 2] = True
        assert torch.equal(dirty.log_prob.isnan(), spoilt)
        assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
        assert dirty.grad_logits[1, 2, 5].isnan()
        assert dirty.grad_logits.isnan().sum() == 1
        assert torch.equal(dirty.grad_logits[~spoilt], clean.grad_logits[~spoilt])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targets", [torch.uint8, torch.float32])
def test_no_rows_give_empty_results_and_gradients(dtype: torch.dtype, targets: torch.dtype) -> None:
    empty = measured(*pixels(3, 0, 20, dtype, targets))
    assert (empty.log_prob.shape, empty.log_prob.dtype) == ((3, 0), torch.float32)
    assert (empty.grad_logits.shape, empty.grad_logits.dtype) == ((3, 0, 20), dtype)
    assert empty.grad_x is None or empty.grad_x.shape == (0, 20)


class TestGradientsWanted:
    @pytest.mark.usefixtures("route")
    def test_one_input_alone_may_require_a_gradient(self) -> None:
        logits, x = pixels(3, 7, 784, targets=torch.float32)
        both = measured(logits, x)
        (grad,) = torch.autograd.grad(
            bernoulli_log_prob(logits, x.detach()), logits, upstream_of(logits)
        )
        assert torch.equal(grad, both.grad_logits)
        (grad,) = torch.autograd.grad(
            bernoulli_log_prob(logits.detach(), x), x, upstream_of(logits)
        )
        assert both.grad_x is not None
        assert torch.equal(grad, both.grad_x)

    def test_no_gradient_is_computed_that_nobody_wants(
        self, eager: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        run = likelihood.twin.backward

        def counted(*args: Any) -> Any:
            out = run(*args)
            asked.append((args[-1], tuple(grad.numel() > 0 for grad in out)))
            return out

        monkeypatch.setattr(likelihood.twin, "backward", counted)
        logits, x = pixels(3, 7, 784, targets=torch.float32)
        bernoulli_log_prob(logits, x.detach()).sum().backward()
        bernoulli_log_prob(logits.detach(), x).sum().backward()
        assert asked == [((True, False),) * 2, ((False, True),) * 2]


def _dispatched(logits: Tensor, x: Tensor) -> Tensor:
    return torch.ops.vaez.bernoulli_forward(logits, x)


@pytest.mark.parametrize("op", [bernoulli_log_prob, _dispatched])
@pytest.mark.parametrize("targets", [torch.uint8, torch.float32])
@pytest.mark.parametrize("loss_of", [Tensor.sum, lambda out: out.square().sum()])
def test_a_second_derivative_is_refused_and_not_taken_for_zero(
    op: Callable[[Tensor, Tensor], Tensor],
    targets: torch.dtype,
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    # The gradient of a sum is constant, so only the op itself can raise.
    logits, x = pixels(2, 3, 5, targets=targets)
    loss = loss_of(op(logits, x))
    inputs = [tensor for tensor in (logits, x) if tensor.requires_grad]
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    penalised = loss + sum(grad.square().sum() for grad in first)
    with pytest.raises(RuntimeError, match=r"second derivative"):
        penalised.backward()


@pytest.mark.usefixtures("eager")
def test_the_dispatched_op_returns_what_the_public_one_does() -> None:
    logits, x = pixels(3, 7, 20, targets=torch.float32)
    direct, other = measured(logits, x), measured(logits, x, _dispatched)
    for one, two in zip(direct, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_autocast_and_the_call_leave_the_inputs_alone() -> None:
    logits, x = pixels(3, 7, 784)
    before = logits.detach().clone(), x.clone()
    plain = measured(logits, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = measured(logits, x)
    for one, two in zip(plain, cast, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert torch.equal(logits, before[0])
    assert torch.equal(x, before[1])


L, X = torch.zeros(2, 3, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("logits", "x", "error", "names"),
    [
        ([0.0], X, TypeError, "logits must be a tensor, got list"),
        (L, None, TypeError, "x must be a tensor, got NoneType"),
        (L.int(), X, TypeError, "logits must be float32, bfloat16, float16 or float64"),
        (L, X.int(), TypeError, "x must be uint8, bool, float32"),
        (L[0], X, ValueError, r"logits must have shape \(S, B, P\), got \(3, 4\)"),
        (L[..., :0], X[:, :0], ValueError, "logits must have at least one sample and pixel"),
        (L[:0], X, ValueError, "logits must have at least one sample and pixel"),
        (L, X[:1], ValueError, r"x must have shape \(B, P\) = \(3, 4\), got \(1, 4\)"),
        (L, X[None], ValueError, r"x must have shape \(B, P\)"),
        (L, X.to("meta"), ValueError, "x must be on logits' device cpu"),
    ],
)
def test_the_argument_that_is_refused_is_named(
    logits: Any, x: Any, error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"bernoulli_log_prob: {names}"):
        bernoulli_log_prob(logits, x)


def test_kernels_are_refused_where_they_cannot_run() -> None:
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was forced"):
        bernoulli_log_prob(L, X)


class TestRegistration:
    """opcheck: schema, autograd registration, fake tensors, ahead-of-time tracing."""

    @pytest.mark.parametrize(
        ("dtype", "targets"),
        [(torch.float32, targets) for targets in TARGETS] + [(torch.bfloat16, torch.uint8)],
    )
    def test_the_forward_op_is_sound(self, dtype: torch.dtype, targets: torch.dtype) -> None:
        args = pixels(2, 3, 5, dtype, targets, "part")
        torch.library.opcheck(torch.ops.vaez.bernoulli_forward, args)

    @pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
    def test_the_backward_op_is_sound(self, needs: tuple[bool, bool]) -> None:
        logits, x = (t.detach() for t in pixels(2, 3, 5, targets=torch.float32))
        args = (upstream_of(logits), logits, x, *needs)
        torch.library.opcheck(torch.ops.vaez.bernoulli_backward, args)


@needs_compiler
def test_one_graph_serves_every_batch_size_gradients_included() -> None:
    torch._dynamo.reset()  # dynamo counts graphs per code object, across tests
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(bernoulli_log_prob, backend=counter, fullgraph=True, dynamic=True)
    for rows in (5, 33, 129):
        check(*pixels(3, rows, 784), op=compiled)
    assert counter.frame_count == 1


@needs_compiler
def test_low_precision_in_a_compiled_function() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(bernoulli_log_prob, fullgraph=True, dynamic=True)
    check(*pixels(3, 33, 20, torch.bfloat16, torch.bfloat16, "part"), op=compiled)
