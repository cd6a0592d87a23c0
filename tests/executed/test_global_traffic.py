"""Bytes of global memory: which repeated loads are counted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.executed.global_traffic import counted
from tests.ptx.snippets import run

ONE = "ld.global.b32 %r2, [%d0];"
ODD = "and.b32 %r3, %r0, 1; setp.eq.u32 %p1, %r3, 1;"


@pytest.mark.parametrize(
    ("lines", "loaded"),
    [
        (ONE, {4: 4}),  # 32 lanes, one address
        (ONE + ONE, {4: 4}),
        (f"{ONE} st.global.b32 [%d0+8], 1; {ONE}", {4: 8}),
        (f"{ODD} @%p1 {ONE} @%p1 {ONE}", {4: 4}),
        (f"{ODD} @%p1 {ONE} @!%p1 {ONE}", {4: 8}),
        (f"{ONE} ld.global.b64 %d2, [%d0];", {4: 4, 8: 8}),
    ],
)
def test_a_load_counts_once_for_the_same_lanes_width_and_addresses(
    lines: str, loaded: dict[int, int]
) -> None:
    with counted(()) as moved:
        # Only one lane stores, because two lanes would race.
        run(lines.replace("st.", "setp.eq.u32 %p2, %r0, 0; @%p2 st."), np.zeros(4, np.uint32))
    assert moved.loads == loaded
