"""Which tests of tests/cuda do not run in a rehearsal, or not with all of their parameters, and why.

A plugin of pytest: it takes them out of what was collected.
"""

from __future__ import annotations

import pytest

LEFT_OUT = {
    "test_numbers::test_ten_million_normals_stay_within_their_promise_and_look_normal": (
        "executing the kernel for so many takes minutes"
    ),
}
# They find it out themselves, and give this reason.
SKIPPED = {
    "test_numbers::test_elements_beyond_2_to_the_31_are_the_streams": (
        "needs 12 GiB of free GPU memory"
    ),
    "test_launches::test_an_op_runs_where_its_tensors_are_and_not_on_the_current_device": (
        "needs two CUDA devices"
    ),
    "test_launches::test_no_access_is_out_of_bounds": "compute-sanitizer is not installed",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left = [], []
    for item in items:
        name = f"{item.path.stem}::{item.name}"
        out = name.split("[")[0] in LEFT_OUT
        (left if out else kept).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
