"""Device-side assertions, which PTX has as a call of the only function that it may call, and a trap."""

from __future__ import annotations

import re

import numpy as np

from .errors import Trap
from .form import Form, Run
from .lanes import Lanes
from .types import Mask

CALLS = (
    r"^\.extern \.func __assertfail\b.*?\.noreturn;$",
    r"\{ // callseq \d+, \d+$(?:(?!callseq).)*?\bcall\.uni __assertfail,.*?\} // callseq \d+$",
)


def without_calls(ptx: str) -> str:
    """PTX without the calls that print an assertion's message: the trap after them is left."""
    for pattern in CALLS:  # as many lines as before, for messages
        ptx = re.sub(pattern, lambda found: "\n" * found[0].count("\n"), ptx, flags=re.M | re.S)
    return ptx


def decode_trap(form: Form) -> Run:
    form.done(0)

    def run(lanes: Lanes, active: Mask | None) -> None:
        lanes.fault(Trap, np.ones(lanes.size, bool) if active is None else active, "traps")

    return run


DECODERS = {"trap": decode_trap}
