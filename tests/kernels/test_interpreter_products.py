"""Runs the interpreted tests that test_interpreter.py leaves out."""

from __future__ import annotations

from tests.kernels.test_interpreter import PRODUCTS, run_interpreted


def test_the_kernels_of_products_and_mixtures_pass_their_tests_in_the_interpreter() -> None:
    run_interpreted(*PRODUCTS)
