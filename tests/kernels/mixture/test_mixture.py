"""The mixture's density: value and gradient against the float64 reference.

mixtures.py derives the tolerances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from bench.timing.clock import peak_memory
from tests.kernels.helpers import assert_within
from tests.kernels.mixture.mixtures import (
    LAYOUTS,
    Mixture,
    bounds,
    check,
    expected,
    long_chain,
    measured,
    mixture,
)
from vaez_kernels import compiler, mixture_log_prob, reference, use_backend
from vaez_kernels import mixture as module

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (7, 5, 3), (33, 129, 20), (5, 1000, 128), (9, 17, 257)]  # M, N, D
needs_compiler = pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the fallback for every size."""
    if not compiler.has_cpu_compiler():
        pytest.skip("no C++ compiler: the fallback only runs eager")

    def refuse(*_: Tensor) -> None:
        raise AssertionError("the eager fallback was called")

    # Compile before the functions are replaced.
    module.twin.compiled_forward()
    module.twin.compiled_backward()
    monkeypatch.setattr(module.twin, "forward_tiles", refuse)
    monkeypatch.setattr(module.twin, "backward_tiles", refuse)
    monkeypatch.setattr(module.twin, "COMPILE_FROM", 1)


@pytest.fixture(params=["eager", "compilations"])
def route(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("route")
def test_value_and_gradient_are_the_references(
    shape: tuple[int, int, int], leave_out: bool
) -> None:
    if leave_out and shape[1] == 1:
        pytest.skip("one component, which cannot be left out")
    check(mixture(*shape, leave_out=leave_out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("route")
def test_every_dtype_is_the_references(dtype: torch.dtype) -> None:
    check(mixture(33, 129, 20, dtype, leave_out=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("route")
def test_memory_layout_does_not_matter(layout: str) -> None:
    check(mixture(9, 33, 20, layout=layout))


def test_sizes_on_both_sides_of_the_compilers_threshold_agree_with_the_reference() -> None:
    for components in (127, 128):
        assert module.twin.COMPILE_FROM == 64 * 128 * 32
        check(mixture(64, components, 32))


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("reach", [0.0, 8.0])
@needs_compiler
def test_128_dimensions_keep_their_promise(reach: float, far: bool) -> None:
    """Within 1e-4 + 3e-7·|log q|, for one σ or all from e⁻⁴ to 1, z in the mixture or beyond it."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn((250, 128), generator=generator)
    logvar = -reach * torch.rand((250, 128), generator=generator)
    eps = torch.randn((100, 128), generator=generator)
    z = 10.0 * eps if far else mu[:100] + torch.exp(0.5 * logvar[:100]) * eps
    wanted = reference.mixture_log_prob(z, mu, logvar)
    actual = mixture_log_prob(z, mu, logvar)
    assert_within("log_prob", actual, wanted, 1e-4 + 3e-7 * wanted.abs())


@pytest.mark.usefixtures("route")
def test_many_dimensions_are_not_summed_in_one_chain() -> None:
    check(long_chain())


def test_one_component_is_its_gaussian() -> None:
    z, mu, logvar, _ = mixture(7, 1, 3)
    gaussian = torch.distributions.Normal(mu.double(), torch.exp(0.5 * logvar.double()))
    case = Mixture(z, mu, logvar)
    wanted = gaussian.log_prob(z.detach().double()).sum(1)
    assert_within("log_prob", measured(case).log_prob, wanted, bounds(case).log_prob)


@pytest.mark.usefixtures("route")
def test_leaving_a_component_out_is_a_mixture_of_the_others() -> None:
    z, mu, logvar, _ = mixture(9, 300, 20)
    z = z.detach()
    left_out = mixture_log_prob(z, mu, logvar, torch.full((9,), 257))
    others = torch.arange(300) != 257
    limit = bounds(Mixture(z, mu, logvar, torch.full((9,), 257))).log_prob
    rest = mixture_log_prob(z, mu[others], logvar[others])
    assert_within("log_prob", left_out, rest, 2.0 * limit)


def test_a_draws_density_does_not_depend_on_the_others() -> None:
    z, mu, logvar, _ = mixture(40, 129, 20)
    whole = mixture_log_prob(z.detach(), mu, logvar)
    alone = torch.cat([mixture_log_prob(row[None], mu, logvar) for row in z.detach()])
    # The size decides between eager and compiled code, which may group sums over D differently.
    assert_within("log_prob", alone, whole, 2.0 * bounds(Mixture(z, mu, logvar)).log_prob)


@pytest.mark.usefixtures("route")
def test_results_are_repeatable_bit_for_bit() -> None:
    case = mixture(33, 1000, 20)
    for one, two in zip(measured(case), measured(case), strict=True):
        assert torch.equal(one, two)


def test_float64_stays_float64() -> None:
    case = mixture(33, 129, 20, torch.float64, leave_out=True)
    actual, wanted = measured(case), expected(case)
    assert actual.log_prob.dtype == actual.grad_z.dtype == torch.float64
    # A few hundred float64 additions of scores up to 200.
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leave_out", [False, True])
def test_the_gradient_is_the_derivative(leave_out: bool) -> None:
    z, mu, logvar, left = mixture(3, 4, 2, torch.float64, leave_out=leave_out)
    assert torch.autograd.gradcheck(lambda z: mixture_log_prob(z, mu, logvar, left), (z,))


def test_a_gradient_leads_to_a_single_component() -> None:
    # With one component the score is −½(z − mu)²/σ², and its derivative is (mu − z)/σ².
    z = torch.tensor([[3.0, -1.0]], requires_grad=True)
    mu, logvar = torch.tensor([[1.0, 1.0]]), torch.full((1, 2), math.log(4.0))
    mixture_log_prob(z, mu, logvar).backward()
    assert z.grad is not None
    assert_within("grad_z", z.grad, torch.tensor([[-0.5, 0.5]]), 1e-6)


@pytest.mark.usefixtures("route")
class TestNaNAndInfinity:
    @pytest.mark.parametrize("name", ["z", "mu", "logvar"])
    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
    def test_they_propagate_as_the_formula_says(self, name: str, value: float) -> None:
        case = mixture(4, 20, 5)
        with torch.no_grad():
            getattr(case, name)[2, 3] = value
        wanted = reference.mixture_log_prob(*(x.detach() for x in case[:3])).float()
        # Much tighter than `bounds` for a log-density below 100.
        actual = mixture_log_prob(*(x.detach() for x in case[:3]))
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_a_nan_stays_in_its_draw(self) -> None:
        case = mixture(9, 33, 20)
        clean = measured(case)
        with torch.no_grad():
            case.z[2, 5] = torch.nan
        dirty = measured(case)
        spoilt = torch.arange(9) == 2
        assert torch.equal(dirty.log_prob.isnan(), spoilt)
        assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
        assert torch.equal(dirty.grad_z[~spoilt], clean.grad_z[~spoilt])
        assert dirty.grad_z[spoilt].isnan().all()

    def test_a_component_left_out_spoils_nothing(self) -> None:
        z, mu, logvar, _ = mixture(4, 20, 5)
        mu[3, 1] = torch.nan
        out = mixture_log_prob(z, mu, logvar, torch.tensor([3, 3, 2, 3]))
        assert out.isnan().tolist() == [False, False, True, False]

    def test_far_from_every_component_nothing_underflows(self) -> None:
        case = mixture(4, 20, 5)
        far = Mixture((1000.0 * case.z.detach()).requires_grad_(), *case[1:])
        check(far)
        assert measured(far).log_prob.max() < -1e4


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_draws_give_an_empty_result_and_gradient(dtype: torch.dtype) -> None:
    for leave_out in (False, True):
        empty = measured(mixture(0, 5, 3, dtype, leave_out=leave_out))
        assert (empty.log_prob.shape, empty.log_prob.dtype) == ((0,), torch.float32)
        assert (empty.grad_z.shape, empty.grad_z.dtype) == ((0, 3), dtype)


@needs_compiler
def test_neither_scores_nor_differences_are_kept() -> None:
    z, mu, logvar, _ = mixture(2000, 8000, 20)
    z = z.detach()
    peak = peak_memory(lambda: mixture_log_prob(z, mu, logvar), z.device)
    assert peak is not None
    # All scores would take 64 MB, and all differences 1,280 MB.
    assert peak < 24e6  # 17.3


def _dispatched(*case: Any) -> Tensor:
    out: Tensor = torch.ops.vaez.mixture_forward(*case)[0]
    return out


@pytest.mark.parametrize("op", [mixture_log_prob, _dispatched])
@pytest.mark.parametrize("loss_of", [Tensor.sum, lambda out: out.square().sum()])
def test_a_second_derivative_is_refused_and_not_taken_for_zero(
    op: Callable[..., Tensor], loss_of: Callable[[Tensor], Tensor]
) -> None:
    case = mixture(2, 3, 5)
    loss = loss_of(op(*case))
    (first,) = torch.autograd.grad(loss, case.z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + first.square().sum()).backward()


def test_the_dispatched_op_returns_what_the_public_one_does() -> None:
    case = mixture(7, 20, 5, leave_out=True)
    for one, two in zip(measured(case), measured(case, _dispatched), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_autocast_and_the_call_leave_the_inputs_alone() -> None:
    case = mixture(7, 20, 5)
    before = [x.detach().clone() for x in case[:3]]
    plain = measured(case)
    with torch.autocast("cpu", torch.bfloat16):
        cast = measured(case)
    for one, two in zip(plain, cast, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    for now, then in zip(case[:3], before, strict=True):
        assert torch.equal(now, then)


Z, MU, LEFT = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (([0.0], MU, MU), TypeError, "z must be a tensor, got list"),
        ((Z, MU.int(), MU.int()), TypeError, "mu must be float32, bfloat16, float16 or float64"),
        ((Z.half(), MU, MU), TypeError, r"z must have mu's dtype torch.float32, got torch.float16"),
        ((Z, MU, MU.half()), TypeError, "logvar must have mu's dtype"),
        ((Z.half(), MU.half(), MU.bfloat16()), TypeError, "logvar must have mu's dtype"),
        ((Z[0], MU, MU), ValueError, r"z must have shape \(M, D\) with D = 4 as mu has"),
        ((Z[:, :3], MU, MU), ValueError, r"z must have shape \(M, D\) with D = 4"),
        ((Z, MU[0], MU[0]), ValueError, r"mu must have shape \(N, D\), got \(4,\)"),
        ((Z, MU, MU[:2]), ValueError, r"logvar must have mu's shape \(3, 4\)"),
        ((Z[:, :0], MU[:, :0], MU[:, :0]), ValueError, "mu must have at least one column"),
        ((Z, MU[:0], MU[:0]), ValueError, r"mu must have at least one component, got \(0, 4\)"),
        ((Z.to("meta"), MU, MU), ValueError, "z must be on mu's device cpu"),
        ((Z, MU, MU, [0, 0]), TypeError, "leave_out must be a tensor, got list"),
        ((Z, MU, MU, LEFT.int()), TypeError, "leave_out must be int64, got torch.int32"),
        ((Z, MU, MU, LEFT[:1]), ValueError, r"leave_out must have shape \(M,\) = \(2,\), got"),
        ((Z, MU, MU, LEFT.to("meta")), ValueError, "leave_out must be on mu's device cpu"),
        ((Z, MU, MU, LEFT + 3), ValueError, r"leave_out must be in \[0, 3\), got 3"),
        ((Z, MU, MU, LEFT - 1), ValueError, r"leave_out must be in \[0, 3\), got -1"),
        ((Z, MU[:1], MU[:1], LEFT), ValueError, "leave_out needs at least two components, got 1"),
        (
            (Z, MU.clone().requires_grad_(), MU),
            ValueError,
            r"mu must not require a gradient: none flows to the components; pass mu.detach\(\)",
        ),
        ((Z, MU, MU.clone().requires_grad_()), ValueError, r"logvar must not .* logvar.detach\(\)"),
    ],
)
def test_the_argument_that_is_refused_is_named(
    arguments: tuple[Any, ...], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=f"mixture_log_prob: {names}"):
        mixture_log_prob(*arguments)


def test_components_that_require_a_gradient_pass_where_none_is_taken() -> None:
    with torch.no_grad():
        out = mixture_log_prob(Z, MU.clone().requires_grad_(), MU)
    assert torch.equal(out, mixture_log_prob(Z, MU, MU))


def test_kernels_are_refused_where_they_cannot_run() -> None:
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was forced"):
        mixture_log_prob(Z, MU, MU)


class TestRegistration:
    """opcheck: schema, autograd registration, fake tensors, ahead-of-time tracing."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("leave_out", [False, True])
    def test_the_forward_ops_are_sound(self, dtype: torch.dtype, leave_out: bool) -> None:
        case = mixture(3, 4, 5, dtype, "part", leave_out)
        torch.library.opcheck(torch.ops.vaez.mixture_forward, case)
        plain = (case.z.detach(), *case[1:])
        torch.library.opcheck(torch.ops.vaez.mixture_forward_twin, plain)

    @pytest.mark.parametrize("name", ["mixture_backward", "mixture_backward_twin"])
    def test_the_backward_ops_are_sound(self, name: str) -> None:
        z, *components = mixture(3, 4, 5, leave_out=True)
        _, top, total = torch.ops.vaez.mixture_forward(z.detach(), *components)
        args = (torch.ones(3), z.detach(), *components, top, total, True)
        torch.library.opcheck(getattr(torch.ops.vaez, name), args)


@needs_compiler
@pytest.mark.parametrize("leave_out", [False, True])
def test_one_graph_serves_all_sizes_gradients_included(leave_out: bool) -> None:
    torch._dynamo.reset()  # dynamo counts graphs per code object, across tests
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(mixture_log_prob, backend=counter, fullgraph=True, dynamic=True)
    for draws, components in ((5, 7), (33, 129), (129, 300)):
        check(mixture(draws, components, 20, leave_out=leave_out), op=compiled)
    assert counter.frame_count == 1
