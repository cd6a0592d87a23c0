"""The fallback's mixture with more components or draws than fit in one pass.

Each pass adds to the earlier ones. mixtures.py derives the tolerances.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels.helpers import assert_within
from tests.kernels.mixture.mixtures import Mixture, bounds, check, lone, measured, mixture
from vaez_kernels import compiler
from vaez_kernels import mixture as module

needs_compiler = pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")
# M, N, D: three passes of components, the last one partial; two passes of components and of draws.
COMPILED = [(9, 17000, 4), (1030, 1500, 2)]
EAGER = (17, 2100, 128)  # three passes of components, three of draws
LEFT_OUT = ["none", "own", "other"]


def passes(case: Mixture, compiled: bool) -> int:
    plan = module.twin.Plan.of(case.z, case.mu, compiled)
    return -(-len(case.mu) // (plan.tiles * plan.components))


@pytest.mark.parametrize("leave_out", LEFT_OUT)
@pytest.mark.usefixtures("eager")
def test_eager_passes_find_each_draws_own_component(leave_out: str) -> None:
    case = lone(*EAGER, leave_out=leave_out)
    assert passes(case, compiled=False) == 3
    check(case)


@needs_compiler
@pytest.mark.parametrize("leave_out", LEFT_OUT)
@pytest.mark.parametrize("shape", COMPILED)
def test_compiled_passes_find_each_draws_own_component(
    shape: tuple[int, int, int], leave_out: str
) -> None:
    case = lone(*shape, leave_out=leave_out)
    assert passes(case, compiled=True) > 1
    check(case)


def test_the_component_at_a_passs_edge_is_left_out_alone(eager: None) -> None:
    # The last component of a pass or the first of the next is left out.
    case = lone(*EAGER)
    at_once = 1024
    assert passes(case, compiled=False) == -(-len(case.mu) // at_once)
    edge = torch.arange(-2, 2) + at_once
    z = case.mu[edge].repeat(2, 1).requires_grad_()
    # Or a component at the same position in another pass.
    same_place = (edge + at_once) % (2 * at_once)
    for left in (edge.repeat(2), edge.flip(0).repeat(2), same_place.repeat(2)):
        check(case._replace(z=z, leave_out=left))


@pytest.mark.usefixtures("eager")
def test_eager_passes_add_up_where_every_component_counts() -> None:
    # Components are so wide that responsibilities are nearly equal: every pass contributes to value
    # and gradient.
    case = mixture(*EAGER)
    check(case._replace(logvar=torch.full_like(case.logvar, 5.0)))


@needs_compiler
@pytest.mark.parametrize("shape", COMPILED)
def test_compiled_passes_add_up_where_every_component_counts(shape: tuple[int, int, int]) -> None:
    check(mixture(*shape))


@pytest.mark.usefixtures("eager")
def test_the_order_of_the_components_does_not_matter() -> None:
    # The largest score is in the first pass or in the last one.
    case = lone(*EAGER)
    there = measured(case)
    back = measured(case._replace(mu=case.mu.flip(0), logvar=case.logvar.flip(0)))
    for name, one, two, bound in zip(there._fields, there, back, bounds(case), strict=True):
        assert_within(name, two, one, 2.0 * bound)
