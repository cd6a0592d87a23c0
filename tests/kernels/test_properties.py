"""Properties of the ops on the fallback, over shapes, memory layouts, dtypes and extreme values.

drawn.py generates the cases. properties.py has the properties and their bounds.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels import properties
from tests.kernels.drawn import (
    LatentCase,
    PixelCase,
    apart,
    latent_cases,
    pixel_cases,
    repeatable,
)
from tests.kernels.every_op import CASES

# Few kinds are compiled: one mode, one pair of dtypes, no size of 1, only contiguous tensors.
COMPILED_MODE = ("rsample_kl/sticking-the-landing",)
COMPILED_DTYPE = (torch.float32,)


@pytest.mark.usefixtures("eager")
class TestEager:
    @pytest.mark.parametrize("case", CASES)
    @repeatable(10)
    @given(st.data())
    def test_the_memory_layout_does_not_matter(self, case: str, data: st.DataObject) -> None:
        properties.the_memory_layout_does_not_matter(case, lambda dims: data.draw(apart(dims)))

    @repeatable(100)
    @given(latent_cases())
    def test_latent_values_and_gradients_are_the_references(self, case: LatentCase) -> None:
        properties.latent_is_the_reference(case)

    @repeatable(300)
    @given(latent_cases(extreme=True))
    def test_latent_nan_and_infinity_appear_where_the_formula_says(self, case: LatentCase) -> None:
        properties.latent_propagates(case)

    @repeatable(60)
    @given(pixel_cases())
    def test_likelihood_and_gradients_are_the_references(self, case: PixelCase) -> None:
        properties.pixels_are_the_reference(case)

    @repeatable(200)
    @given(pixel_cases(extreme=True))
    def test_likelihoods_nan_and_infinity_appear_where_the_formula_says(
        self, case: PixelCase
    ) -> None:
        properties.pixels_propagate(case)

    @repeatable(60)
    @given(st.data())
    def test_rows_of_z_do_not_depend_on_which_others_are_drawn(self, data: st.DataObject) -> None:
        case = data.draw(latent_cases(extreme=True))
        first = data.draw(st.integers(0, len(case.mu) - 1))
        last = data.draw(st.integers(first + 1, len(case.mu)))
        properties.rows_of_z_need_no_others(case, slice(first, last))

    @repeatable(60)
    @given(st.data())
    def test_rows_never_meet(self, data: st.DataObject) -> None:
        case = data.draw(latent_cases(extreme=True))
        properties.rows_never_meet(case, data.draw(st.integers(0, len(case.mu) - 1)))

    @repeatable(60)
    @given(st.data())
    def test_the_likelihoods_rows_may_be_permuted_repeated_and_left_out(
        self, data: st.DataObject
    ) -> None:
        case = data.draw(pixel_cases(extreme=True))
        rows = st.lists(st.integers(0, len(case.x) - 1), min_size=1, max_size=12)
        properties.pixel_rows_may_be_permuted(case, data.draw(rows), bitwise=False)

    @repeatable(40)
    @given(latent_cases(extreme=True))
    def test_a_repeated_latent_call_gives_the_same_bits(self, case: LatentCase) -> None:
        properties.latent_repeats(case)

    @repeatable(40)
    @given(pixel_cases(extreme=True))
    def test_a_repeated_likelihood_call_gives_the_same_bits(self, case: PixelCase) -> None:
        properties.pixels_repeat(case)


@pytest.mark.usefixtures("compilations")
class TestCompiled:
    @repeatable(60)
    @given(latent_cases(True, COMPILED_MODE, COMPILED_DTYPE, compilable=True))
    def test_latent_nan_and_infinity_appear_where_the_formula_says(self, case: LatentCase) -> None:
        properties.latent_propagates(case)
        properties.latent_repeats(case)

    @repeatable(60)
    @given(pixel_cases(True, COMPILED_DTYPE, COMPILED_DTYPE, compilable=True))
    def test_likelihoods_nan_and_infinity_appear_where_the_formula_says(
        self, case: PixelCase
    ) -> None:
        properties.pixels_propagate(case)
        properties.pixels_repeat(case)
