"""The mixture's Triton kernels, interpreted on the CPU, against the reference and the fallback.

tests/kernels/test_interpreter.py runs this in a separate process; tests/kernels/mixture/mixtures.py
derives the tolerances.
"""

from __future__ import annotations

from typing import Any

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


def test_scores_are_relative_to_the_largest_normaliser_of_all_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the last of 38 tiles lie components with normalisers around 10,240, which float32 knows to
    # 2⁻¹¹. That is ten times the bound of the responsibilities.
    monkeypatch.setattr(module.kernel, "BLOCK_N", 16)
    generator = torch.Generator().manual_seed(0)
    mu, logvar = torch.zeros(600, 256), torch.zeros(600, 256)
    logvar[-8:] = -80.0 + 0.05 * torch.randn(8, 256, generator=generator)
    mu[-8:, 0] = 4e-18 * torch.randn(8, generator=generator)
    z = torch.zeros(2, 256)
    z[:, 0] = torch.tensor([2e-18, -4e-18])
    check(Mixture(z.requires_grad_(), mu, logvar))


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
    z, mu, inverse_sigma, top, total = tensors(5)
    log_normaliser, highest = (x.double() for x in tensors(2))
    args = (z, mu, inverse_sigma, log_normaliser, highest, None, top, total)
    sizes = (FAR, Z_STRIDE, N_STRIDE, 3, 3)
    kernel = module.kernel.mixture_forward_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, *sizes, D=3, **CONSTANTS)
    assert touched(seen, "load", 4) == scores_loads(z, mu, inverse_sigma)
    of_tile = addresses(log_normaliser, range(1), 128, 1, 256)
    assert touched(seen, "load", 8) == [addresses(highest, range(1), 3, 1, 0), of_tile]
    last = range(2**31, FAR)
    assert touched(seen, "store", 4) == [addresses(x, last, 1, 1, 2 * FAR) for x in (top, total)]


@pytest.mark.parametrize("program", [0, 2**27])  # the first block of draws, and the last
def test_what_draws_leave_out_is_read_at_their_place(
    program: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, mu, inverse_sigma, top, total = tensors(5)
    log_normaliser, highest = (x.double() for x in tensors(2))
    leave_out = torch.zeros(1, dtype=torch.int64)
    args = (z, mu, inverse_sigma, log_normaliser, highest, leave_out, top, total)
    sizes = (FAR, Z_STRIDE, 128, 1, 1)
    kernel = module.kernel.mixture_forward_kernel
    constants = CONSTANTS | {"LEAVE_OUT": True}
    seen = far_launch(monkeypatch, kernel, program, *args, *sizes, D=3, **constants)
    rows = range(16 * program, min(16 * program + 16, FAR))
    assert touched(seen, "load", 8)[-1] == addresses(leave_out, rows, 1, 1, 0)


def test_backward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    z, mu, inverse_sigma, top, out, weights = tensors(6)
    log_normaliser, highest = (x.double() for x in tensors(2))
    rows_of_z, rows_of_mu, precision = tensors(3)
    of_scores = (z, mu, inverse_sigma, log_normaliser, highest, None, top)
    args = (*of_scores, rows_of_z, rows_of_mu, precision, weights, out)
    sizes = (FAR, Z_STRIDE, N_STRIDE, 3, 3)
    kernel = module.kernel.mixture_backward_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, *sizes, D=3, BLOCK_D=4, **CONSTANTS)
    of_weights = addresses(weights, range(1), 16 * 128, 1, PROGRAM * 16 * 128)
    loads = touched(seen, "load", 4)
    assert loads[:9] == scores_loads(z, mu, inverse_sigma)
    assert loads[9] == addresses(top, range(2**31, FAR), 1, 1, 0)
    assert loads[10] == addresses(rows_of_z, BLOCK, 4, 4, 0)
    assert set().union(*loads[11::3]) == of_weights
    assert loads[12::3] == [
        addresses(rows_of_mu, range(256 + n, 257 + n), 4, 4, 0) for n in range(128)
    ]
    assert len(loads) == 11 + 3 * 128
    stores = touched(seen, "store", 4)
    assert stores == [of_weights, addresses(out, BLOCK, 4, 4, 2 * M * 4)]


def test_draws_and_components_beyond_2_to_the_31_are_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, outputs, rows_of = tensors(3), tensors(3), tensors(3)
    log_normaliser, highest = (x.double() for x in tensors(2))
    tiles = 2**24 + 1  # the last has one component, at 2³¹
    sizes = (FAR, 2**31 + 1, tiles, 5, 1, 6, 2, 7, 3, M, 128 * tiles, 3, 4)
    constants = {"BACKWARD": True, "BLOCK_N": 128, "COLUMNS": 8}
    args = (*inputs, *outputs, log_normaliser, highest, *rows_of, *sizes)
    kernel = module.prepare.mixture_prepare_kernel
    component, tile = range(2**31, 2**31 + 1), range(2**31, 2**31 + 128)
    seen = far_launch(monkeypatch, kernel, 2**24, *args, **constants)
    for x, row, column, load in zip(
        inputs[1:], (6, 7), (2, 3), touched(seen, "load", 4), strict=True
    ):
        assert load == set().union(*(addresses(x, component, 1, row, column * d) for d in range(3)))
    stores = touched(seen, "store", 4)
    for x, store in zip((outputs[1], outputs[2]), stores[:2], strict=True):
        of_d = (addresses(x, tile, 1, 1, d * 128 * tiles) for d in range(3))
        assert store == set().union(*of_d)
    assert stores[2:] == [addresses(x, tile, 4, 4, 0) for x in rows_of[1:]]
    assert touched(seen, "store", 8) == [
        addresses(log_normaliser, tile, 1, 1, 0), addresses(highest, range(1), 1, 1, 2**24),
    ]  # fmt: skip

    seen = far_launch(monkeypatch, kernel, tiles + 2**24, *args, **constants)
    (load,) = touched(seen, "load", 4)
    assert load == addresses(inputs[0], range(2**31, FAR), 3, 5, 0)
    (transposed, rows) = touched(seen, "store", 4)
    assert transposed == set().union(*(addresses(outputs[0], BLOCK, 1, 1, d * M) for d in range(3)))
    assert rows == addresses(rows_of[0], BLOCK, 4, 4, 0)


def test_what_programs_found_is_added_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    tops, totals, log_q, top, total, sums, grad, grad_z = tensors(8)
    (highest,) = (x.double() for x in tensors(1))
    args: tuple[Any, ...] = (highest, tops, totals, log_q, top, total, FAR, 3, 2, 5)
    constants = {"D": 3, "SPLITS": 4, "DRAWS": 16, "HALF_LOG_TWO_PI": 0.9}
    kernel: Any = module.combine.mixture_log_prob_kernel
    seen = far_launch(monkeypatch, kernel, 2**27, *args, **constants)
    last = range(2**31, FAR)
    splits = [set().union(*(addresses(x, last, 1, 1, n * FAR) for n in (0, 1))) for x in args[1:3]]
    assert touched(seen, "load", 4) == splits
    assert touched(seen, "store", 4) == [addresses(x, last, 1, 1, 0) for x in (top, total, log_q)]

    row, constants = 2**31 - 3, {"D": 3, "SPLITS": 4, "BLOCK_D": 4}
    args = (sums, total, grad, grad_z, 5, M, 2)
    kernel = module.combine.mixture_gradient_kernel
    seen = far_launch(monkeypatch, kernel, row, *args, **constants)
    one = range(row, row + 1)
    of_splits = (addresses(sums, one, 3, 4, n * M * 4) for n in (0, 1))
    assert touched(seen, "load", 4) == [
        set().union(*of_splits), addresses(grad, one, 1, 5, 0), addresses(total, one, 1, 1, 0),
    ]  # fmt: skip
    assert touched(seen, "store", 4) == [addresses(grad_z, one, 3, 3, 0)]


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
