"""`make test-oldest` installs the lowest versions that pyproject.toml declares."""

from __future__ import annotations

import pytest

from tests.project.lowest import PYPROJECT, requirements

DECLARED = PYPROJECT.read_text("utf-8")


def test_torch_and_triton_are_pinned_at_the_lowest_version_that_is_declared() -> None:
    moved = DECLARED.replace('"torch>=2.11"', '"torch>=3.1"')
    assert moved != DECLARED
    assert requirements(moved)[0] == "torch==3.1.*"
    (triton,) = (line for line in requirements(DECLARED) if line.startswith("triton"))
    assert triton == "triton==3.6.*; sys_platform == 'linux' and platform_machine == 'x86_64'"


def test_nothing_is_installed_that_a_cuda_machine_lacks() -> None:
    lines = "\n".join(requirements(DECLARED))
    for name in ("mlxtend", "pythae", "pdoc", "scikit-learn", "scipy", "torchmetrics", "tqdm"):
        assert name in DECLARED
        assert name not in lines


def test_a_package_without_a_lowest_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must declare torch>=VERSION, found 'torch'"):
        requirements(DECLARED.replace('"torch>=2.11"', '"torch"'))
