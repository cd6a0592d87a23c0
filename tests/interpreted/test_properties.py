"""Properties of the Triton kernels, interpreted on the CPU, over shapes, memory layouts, dtypes and
extreme values, with the cases and assertions of tests/kernels/test_properties.py.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.interpreted.watch import watch
from tests.kernels import properties
from tests.kernels.drawn import (
    LatentCase,
    PixelCase,
    apart,
    latent_cases,
    pixel_cases,
    repeatable,
)
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import interpreting, kl_standard_normal, latent
from vaez_kernels.cases import FOLDERS

pytestmark = [
    pytest.mark.skipif(
        not interpreting(),
        reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py",
    ),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # NumPy's, on extremes
]


# One op of each folder, the one with most flags.
LAST_OPS = [list(module.OPS)[-1] for module in FOLDERS.values() if module.LEAVES]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    launchers = [
        (module.kernel, name) for module in (latent, likelihood) for name in ("forward", "backward")
    ]
    return watch(monkeypatch, *launchers)


@pytest.mark.parametrize("op", LAST_OPS)
@repeatable(2)
@given(st.data())
def test_the_memory_layout_does_not_matter(op: str, data: st.DataObject) -> None:
    properties.the_memory_layout_does_not_matter(op, lambda dims: data.draw(apart(dims)))


@repeatable(12)
@given(latent_cases())
def test_latent_values_and_gradients_are_the_references(
    launches: list[str], case: LatentCase
) -> None:
    launches.clear()
    properties.latent_is_the_reference(case, truncates=True)
    assert launches == ["forward", "backward"]


@repeatable(20)
@given(latent_cases(extreme=True))
def test_latent_nan_and_infinity_appear_where_the_formula_says(case: LatentCase) -> None:
    properties.latent_propagates(case, truncates=True)


@repeatable(25)
@given(pixel_cases())
def test_likelihood_and_gradients_are_the_references(launches: list[str], case: PixelCase) -> None:
    launches.clear()
    properties.pixels_are_the_reference(case, truncates=True)
    assert launches == ["forward", "backward"]


@repeatable(40)
@given(pixel_cases(extreme=True))
def test_likelihoods_nan_and_infinity_appear_where_the_formula_says(case: PixelCase) -> None:
    properties.pixels_propagate(case, truncates=True)


@repeatable(8)
@given(st.data())
def test_rows_of_z_do_not_depend_on_which_others_are_drawn(data: st.DataObject) -> None:
    case = data.draw(latent_cases(extreme=True))
    first = data.draw(st.integers(0, len(case.mu) - 1))
    last = data.draw(st.integers(first + 1, len(case.mu)))
    properties.rows_of_z_need_no_others(case, slice(first, last))


@repeatable(8)
@given(st.data())
def test_rows_never_meet(data: st.DataObject) -> None:
    case = data.draw(latent_cases(extreme=True))
    properties.rows_never_meet(case, data.draw(st.integers(0, len(case.mu) - 1)))


@repeatable(15)
@given(st.data())
def test_the_likelihoods_rows_may_be_permuted_repeated_and_left_out(data: st.DataObject) -> None:
    case = data.draw(pixel_cases(extreme=True))
    rows = st.lists(st.integers(0, len(case.x) - 1), min_size=1, max_size=12)
    properties.pixel_rows_may_be_permuted(case, data.draw(rows), bitwise=True)


def test_the_kls_gradient_goes_to_minus_a_half_and_not_to_zero_or_nan() -> None:
    # Tested explicitly, because the few cases above seldom reach this op at infinity.
    logvar = torch.tensor([[-1e3, -1e8, -torch.inf, torch.inf]], requires_grad=True)
    kl_standard_normal(torch.zeros_like(logvar), logvar).sum().backward()
    assert logvar.grad is not None
    assert logvar.grad.tolist() == [[-0.5, -0.5, -0.5, torch.inf]]
