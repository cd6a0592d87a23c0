"""The mixture's Triton kernels, interpreted on the CPU, against the reference and the fallback.

tests/kernels/test_interpreter.py runs this in a separate process; tests/kernels/mixture/mixtures.py
derives the tolerances.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.watch import accesses, addresses, far_launch, tensors, touched, watch
from tests.kernels.helpers import assert_within
from tests.kernels.mixture.mixtures import (
    LAYOUTS,
    Mixture,
    bounds,
    check,
    lone,
    long_chain,
    measured,
    mixture,
)
from vaez_kernels import interpreting, mixture_log_prob, reference, use_backend
from vaez_kernels import mixture as module
from vaez_kernels.mixture.case import mixture_log_prob_moved

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

# M, N, D: a part of a block, one block, several blocks of each, and D of more than one segment.
SHAPES = [(1, 1, 1), (7, 5, 3), (16, 128, 4), (17, 129, 20), (3, 300, 37)]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(monkeypatch, (module.kernel, "forward"), (module.kernel, "backward"))


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_are_the_references(
    shape: tuple[int, int, int], leave_out: bool, launches: list[str]
) -> None:
    check(mixture(*shape, leave_out=leave_out and shape[1] > 1))
    assert launches == ["forward", "backward"]


def test_many_dimensions_are_not_summed_in_one_chain() -> None:
    case = long_chain()
    z, mu, logvar, _ = case
    wanted = reference.mixture_log_prob(z.detach(), mu, logvar)
    actual = mixture_log_prob(z.detach(), mu, logvar)
    assert_within("log_prob", actual, wanted, bounds(case).log_prob)


def test_more_dimensions_than_a_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.kernel, "LARGEST_BLOCK_D", 8)
    check(mixture(3, 129, 21))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_is_the_references(dtype: torch.dtype) -> None:
    # The interpreter truncates float32 to bfloat16, while a GPU rounds: one ulp instead of half.
    check(mixture(5, 40, 6, dtype, leave_out=True), truncates=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str) -> None:
    check(mixture(5, 40, 6, layout=layout))


def test_kernels_and_fallback_agree() -> None:
    case = mixture(17, 150, 5, leave_out=True)
    kernels = measured(case)
    with use_backend("torch"):
        fallback = measured(case)
    for name, one, two, bound in zip(kernels._fields, kernels, fallback, bounds(case), strict=True):
        # Each differs from the reference by at most the bound.
        assert_within(name, one, two, 2.0 * bound)


@pytest.mark.parametrize("programs", [1, 3, 1 << 20])
def test_the_number_of_programs_reorders_sums_alone(
    programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = mixture(17, 300, 2, leave_out=True)
    one = measured(case)
    monkeypatch.setattr(module.kernel, "PROGRAMS", programs)
    for name, a, b, bound in zip(one._fields, one, measured(case), bounds(case), strict=True):
        assert_within(name, b, a, 2.0 * bound)


# Numbers of programs for 17 draws. They split the three tiles of components as 3, 2 + 1, 1 + 1 + 1.
@pytest.mark.parametrize("programs", [1, 4, 6])
@pytest.mark.parametrize("leave_out", ["none", "own", "other"])
def test_each_draws_own_component_is_found_in_whichever_tile(
    leave_out: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.kernel, "PROGRAMS", programs)
    case = lone(17, 300, 2, leave_out=leave_out)
    assert module.kernel.splits_of(17, 3) == max(1, programs // 2)
    check(case)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy's, on infinity
@pytest.mark.parametrize("name", ["z", "mu", "logvar"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_nan_and_infinity_propagate_as_the_formula_says(name: str, value: float) -> None:
    case = mixture(3, 130, 2)
    with torch.no_grad():
        getattr(case, name)[2, 1] = value
    wanted = reference.mixture_log_prob(*(x.detach() for x in case[:3])).float()
    actual = mixture_log_prob(*(x.detach() for x in case[:3]))
    # The tolerance is far within the derived bound for a log-density below 100.
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_a_nan_stays_in_its_draw() -> None:
    case = mixture(9, 33, 3)
    clean = measured(case)
    with torch.no_grad():
        case.z[2, 1] = torch.nan
    dirty = measured(case)
    spoilt = torch.arange(9) == 2
    assert torch.equal(dirty.log_prob.isnan(), spoilt)
    assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
    assert torch.equal(dirty.grad_z[~spoilt], clean.grad_z[~spoilt])


def test_a_component_left_out_spoils_nothing() -> None:
    z, mu, logvar, _ = mixture(4, 20, 3)
    mu[3, 1] = torch.nan
    out = mixture_log_prob(z, mu, logvar, torch.tensor([3, 3, 2, 3]))
    assert out.isnan().tolist() == [False, False, True, False]


def test_an_index_that_names_no_component_leaves_none_out() -> None:
    # The public function checks indices on a CPU. On a CUDA device it does not.
    z, mu, logvar, _ = mixture(3, 20, 3)
    outside = torch.tensor([-1, 20, 1 << 40])
    out = torch.ops.vaez.mixture_forward(z.detach(), mu, logvar, outside)[0]
    whole = mixture_log_prob(z.detach(), mu, logvar)
    shifted = whole + torch.log(torch.tensor(20.0)) - torch.log(torch.tensor(19.0))
    limit = bounds(Mixture(z, mu, logvar)).log_prob
    assert_within("log_prob", out, shifted, 2.0 * limit)


def test_no_draws_launch_nothing() -> None:
    empty = measured(mixture(0, 5, 3))
    assert empty.log_prob.shape == (0,)
    assert empty.grad_z.shape == (0, 3)


def test_backward_outside_the_backend_block_follows_its_forward(launches: list[str]) -> None:
    case = mixture(5, 7, 3)
    with use_backend("torch"):
        out = mixture_log_prob(*case)
    out.sum().backward()
    assert launches == []


# The third of three splits of the last 9 of 2³¹ + 9 draws. The number of draws alone exceeds 2³¹.
FAR = 2**31 + 9
PROGRAM = 3 * 2**27 + 2
CONSTANTS = {"LEAVE_OUT": False, "SEGMENT": 2, "BLOCK_M": 16, "BLOCK_N": 128}
M = FAR + 7  # rounded up to whole blocks
Z_STRIDE, N_STRIDE = M, 2**31 + 128
BLOCK = range(2**31, M)


def scores_loads(z: torch.Tensor, mu: torch.Tensor, inverse_sigma: torch.Tensor) -> list[set[int]]:
    # Of the third tile of components, with three dimensions.
    sets = []
    for d in range(3):
        sets.append(addresses(z, BLOCK, 1, 1, d * Z_STRIDE))
        sets += [addresses(x, range(1), 128, 1, d * N_STRIDE + 256) for x in (mu, inverse_sigma)]
    return sets


def test_forward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    z, mu, inverse_sigma, log_normaliser, top, total = tensors(6)
    args = (z, mu, inverse_sigma, log_normaliser, None, top, total)
    sizes = (FAR, Z_STRIDE, N_STRIDE, 3, 3)
    kernel = module.kernel.mixture_forward_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, *sizes, D=3, **CONSTANTS)
    of_tile = addresses(log_normaliser, range(1), 128, 1, 256)
    assert touched(seen, "load", 4) == [*scores_loads(z, mu, inverse_sigma), of_tile]
    last = range(2**31, FAR)
    assert touched(seen, "store", 4) == [addresses(x, last, 1, 1, 2 * FAR) for x in (top, total)]


def test_backward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    z, mu, inverse_sigma, log_normaliser, top, out, weights = tensors(7)
    rows_of_z, rows_of_mu, precision = tensors(3)
    of_scores = (z, mu, inverse_sigma, log_normaliser, None, top)
    args = (*of_scores, rows_of_z, rows_of_mu, precision, weights, out)
    sizes = (M, Z_STRIDE, N_STRIDE, 3, 3)
    kernel = module.kernel.mixture_backward_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, *sizes, D=3, BLOCK_D=4, **CONSTANTS)
    of_weights = addresses(weights, range(1), 16 * 128, 1, PROGRAM * 16 * 128)
    loads = touched(seen, "load", 4)
    assert loads[:9] == scores_loads(z, mu, inverse_sigma)
    assert loads[10] == addresses(top, BLOCK, 1, 1, 0)
    assert loads[11] == addresses(rows_of_z, BLOCK, 4, 4, 0)
    assert set().union(*loads[12::3]) == of_weights
    assert loads[13::3] == [
        addresses(rows_of_mu, range(256 + n, 257 + n), 4, 4, 0) for n in range(128)
    ]
    assert len(loads) == 12 + 3 * 128
    stores = touched(seen, "store", 4)
    assert stores == [of_weights, addresses(out, BLOCK, 4, 4, 2 * M * 4)]


@pytest.mark.parametrize("shape", [(17, 300, 5), (3, 130, 21)])
def test_the_bytes_that_move_are_those_of_the_benchmarks(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.kernel, "LARGEST_BLOCK_D", 16)
    monkeypatch.setattr(module.kernel, "PROGRAMS", 3)
    case = mixture(*shape)
    with accesses() as forward:
        out = mixture_log_prob(*case)
    with accesses() as backward:
        out.sum().backward()
    moved = [sum(access.addresses.size * access.width for access in s) for s in (forward, backward)]
    assert moved[0] == mixture_log_prob_moved(shape, backward=False)
    assert sum(moved) == mixture_log_prob_moved(shape, backward=True)
