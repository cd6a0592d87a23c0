"""Every kernel's PTX, executed: values, gradients and bytes.

The interpreter's tests show that the kernels' source computes the ops. These tests show that the
code that Triton compiles from it for a GPU does too.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

import pytest
import triton

import vaez_kernels
from tests.executed.cases import OUTPUTS, all_cases
from tests.executed.route import KERNELS, Execution, execution, names_of
from tests.kernels.helpers import assert_within
from vaez_kernels import launch

CASES = {str(case): case for case in all_cases() if case.quick}
TARGETS = [(name, target) for name, case in CASES.items() for target in case.targets]


@functools.cache
def done(name: str, target: str) -> Execution:
    """The execution of a case, cached for all tests."""
    return execution(CASES[name], target)


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_values_and_gradients_are_the_references(name: str, target: str) -> None:
    """This holds for all errors of approximate instructions that are documented."""
    outputs, runs = done(name, target)
    launched = {output for run in runs for output in OUTPUTS.get(run.kernel, ())}
    for units, found in outputs.items():
        for one in found:
            assert_within(f"{one.name}, units {units.value}", *one[1:])
        # PyTorch computes the last layer's gradient with respect to its targets.
        if launched:
            assert {one.name.split()[-1] for one in found} - {"grad_x"} <= launched


FLOORED = [(name, target) for name, target in TARGETS if CASES[name].floors]


@pytest.mark.parametrize(("name", "target"), FLOORED)
def test_every_byte_moves_once(name: str, target: str) -> None:
    """tests/kernels/floors.py derives the least bytes, and which bytes may be loaded again."""
    floors, again = CASES[name].floors, CASES[name].again
    runs = done(name, target).runs
    assert set(names_of(runs)) == set(floors)
    for kernel, run in zip(names_of(runs), runs, strict=True):
        floor = floors[kernel]
        assert run.moved.stored == floor.stored, kernel
        assert 0 <= run.moved.loaded - floor.loaded <= again.get(kernel, 0), kernel


ALIGNED = [  # rows whose size is a multiple of 16 bytes
    (name, target)
    for name, target in FLOORED
    for case in [CASES[name]]
    if case.op in ("noise", "latent") and case.shape[2] * case.dtype.itemsize % 16 == 0
]


@pytest.mark.parametrize(("name", "target"), ALIGNED)
def test_aligned_rows_move_in_128_bit_accesses(name: str, target: str) -> None:
    _, rows, columns = CASES[name].shape
    tiles = -(-columns // launch.USUAL.elements)
    for run in done(name, target).runs:
        for widths in (run.moved.loads, run.moved.stores):
            # A row's KL, or its gradient, is one number of four bytes for each tile of the row.
            rest = widths.total() - widths[16]
            assert rest in (0, 4 * rows * tiles), f"{run.kernel}: {dict(widths)}"


def test_no_kernel_is_left_out() -> None:
    found = pkgutil.walk_packages(vaez_kernels.__path__, "vaez_kernels.")
    written = {
        name
        for module in [importlib.import_module(module.name) for module in found]
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel")
    }
    executed = {run.kernel for name, target in TARGETS for run in done(name, target).runs}
    assert written == {name for _, name in KERNELS} == executed
