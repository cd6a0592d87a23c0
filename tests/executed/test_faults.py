"""The executed tests detect small faults in the PTX that Triton emits."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from tests.executed.cases import KEY
from tests.executed.route import executed
from tests.kernels import helpers
from tests.kernels.bernoulli import pixels
from tests.kernels.helpers import Compared, latents
from tests.kernels.linear_bernoulli import last_layer
from tests.kernels.mixture import mixtures
from tests.ptx import launch
from tests.ptx.errors import Fault
from tests.ptx.program import parse
from vaez_kernels import latent, mixture
from vaez_kernels.error_bounds import worst

Compare = Callable[[], list[Compared]]
Edit = Callable[[str], str]

BARRIER = r"^\tbar\.(?:sync|warp\.sync)[^;]*;"
WAIT = r"cp\.async\.wait_group[^;]*;"
GUARD = r"@%p\d+ (?=[ls][dt]\.global)"


def latent_case(columns: int = 19) -> Compare:
    mode = "rsample_kl/analytic"
    return partial(helpers.compared, mode, *latents(7, columns), KEY, 2)


def largest_share(compare: Compare, edit: Edit, target: str) -> float:
    """The largest error of the outputs over its bound, with each kernel's PTX edited first."""
    with (
        patch.dict(launch._programs, clear=True),
        patch.object(launch, "parse", lambda ptx: parse(edit(ptx))),
        executed(target),
    ):
        return worst([one.share() for one in compare()])


def shown(
    compare: Compare, kernel: str, pattern: str, replacement: str = "", target: str = "sm_90"
) -> set[str]:
    """How faults show, one at each match of the pattern in the kernel's PTX.

    Each is an error's name, "bound" if an output exceeds its bound, or "" if the fault is missed.
    """
    seen: list[str] = []

    def keep(ptx: str) -> str:
        seen.append(ptx)
        return ptx

    assert largest_share(compare, keep, target) <= 1.0
    (ptx,) = (ptx for ptx in seen if f".entry {kernel}(" in ptx)
    places = list(re.finditer(pattern, ptx, re.M))
    assert places, f"nothing matches {pattern}"
    names = set()
    for place in places:
        changed = ptx[: place.start()] + place.expand(replacement) + ptx[place.end() :]
        edit = partial(_exchanged, ptx, changed)
        try:
            names.add("" if largest_share(compare, edit, target) <= 1.0 else "bound")
        except Fault as error:
            names.add(type(error).__name__)
    return names


def _exchanged(old: str, new: str, ptx: str) -> str:
    return new if ptx == old else ptx


@pytest.mark.parametrize("kernel", ["latent_forward_kernel", "latent_backward_kernel"])
def test_no_barrier_can_be_left_out(kernel: str) -> None:
    assert shown(latent_case(), kernel, BARRIER) == {"SharedRace"}


def test_barriers_around_weights_in_global_memory_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixture.kernel, "PROGRAMS", 1)  # two tiles of components in one program
    several_tiles = partial(mixtures.compared, mixtures.mixture(3, 200, 2))
    assert shown(several_tiles, "mixture_forward_kernel", BARRIER) == {"SharedRace"}
    found = shown(several_tiles, "mixture_backward_kernel", BARRIER)
    assert found == {"SharedRace", "GlobalRace"}


def test_no_wait_for_a_copy_can_be_left_out() -> None:
    given = last_layer.inputs((3, 7, 19, 20))
    compare = partial(last_layer.compared, given, "tf32", tensor_cores=True)
    kernel = "linear_bernoulli_residual_kernel"
    assert shown(compare, kernel, WAIT, target="sm_80") == {"EarlyRead"}


def test_no_mask_can_be_dropped() -> None:
    """With seven rows of 19 columns each access has a mask. Without it, lanes leave the row."""
    found = shown(latent_case(), "latent_forward_kernel", GUARD)
    assert found == {"OutOfBounds", "GlobalRace", "bound"}


@pytest.mark.parametrize("name", ["mu_line", "logvar_line", "grad_z_line", "out_line"])
def test_no_distance_between_rows_can_be_another(name: str) -> None:
    """Rows of 19 columns are 19 elements apart."""
    kernel: Any = latent.kernel.latent_backward_kernel
    argument = f"latent_backward_kernel_param_{kernel.arg_names.index(name)}"
    load = rf"ld\.param\.b32(\s+%r\d+), \[{argument}\];"
    found = shown(latent_case(), "latent_backward_kernel", load, r"mov.b32\1, 20;")
    assert found == {"OutOfBounds"}


def test_no_edge_can_be_one_further() -> None:
    edge = r"setp\.lt\.s32(\s+%p\d+, %r\d+, %r\d+;)"
    assert shown(latent_case(), "latent_forward_kernel", edge, r"setp.le.s32\1") == {"OutOfBounds"}


def test_no_shuffle_of_a_sum_can_reach_another_lane() -> None:
    compare = partial(pixels.compared, *pixels.pixels(1, 7, 784))
    reach = r"(shfl\.sync\.bfly\.b32 .*), 16, 31"
    assert shown(compare, "bernoulli_forward_kernel", reach, r"\1, 15, 31") == {"bound"}
