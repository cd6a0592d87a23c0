"""Traps, and fences, which have no effect because instructions run in order."""

from __future__ import annotations

from collections.abc import Callable

from tests.ptx.errors import Trap
from tests.ptx.form import Form, Run
from tests.ptx.lanes import Lanes
from tests.ptx.types import Mask


def decode_trap(form: Form) -> Run:
    form.done(0)

    def run(lanes: Lanes, active: Mask | None) -> None:
        lanes.fault(Trap, lanes.everyone if active is None else active, "reaches it")

    return run


def decode_fence(form: Form) -> Run:
    """A fence orders global memory. It does not order shared memory without a barrier."""
    form.one_of(("acq_rel", "sc"), "sc")
    form.one_of(("cta", "cluster", "gpu", "sys", "gl"))
    form.done(0)
    return lambda lanes, active: None


DECODERS: dict[str, Callable[[Form], Run]] = {
    "trap": decode_trap,
    "fence": decode_fence,
    "membar": decode_fence,
}
