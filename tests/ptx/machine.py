"""Runs all threads of several blocks at once.

When threads diverge, the group with the smallest program counter runs first, until it branches or
reaches other waiting threads. So diverged paths reconverge where they join, as on a GPU.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from tests.ptx.lanes import WARP, Lanes
from tests.ptx.memory import GlobalMemory
from tests.ptx.program import Parameter, Program, Step
from tests.ptx.shared import SharedMemory
from tests.ptx.traffic import Traffic
from tests.ptx.types import Mask
from tests.ptx.units import Units

# Threads that run at once. More need more memory; fewer need more numpy calls.
LANES = 4096


def execute(
    program: Program,
    grid: tuple[int, ...],
    arguments: Sequence[int | float | bytes],
    memory: GlobalMemory,
    shared_bytes: int = 0,
    units: Units = Units.NEAREST,
) -> Traffic:
    """Launch a kernel with blocks of `program.block` threads (see `Program.with_block`).

    Args:
        grid: the number of blocks, in one to three dimensions.
        arguments: one for each parameter: an address, a number, or the parameter's bytes.
        memory: what the kernel may access. Stores write into its arrays.
        shared_bytes: dynamic shared memory of each block.
        units: which results approximate instructions give (see approximate.py).

    Raises:
        Fault: see errors.py. The message names the instruction and the thread.
        ValueError: the arguments do not fit the parameters.
    """
    if len(arguments) != len(program.parameters):
        raise ValueError(f"expected {len(program.parameters)} arguments, got {len(arguments)}")
    parameters = {
        parameter.name: packed(parameter, value)
        for parameter, value in zip(program.parameters, arguments, strict=True)
    }
    x, y, z = (*grid, 1, 1)[:3]
    blocks = math.prod((x, y, z))
    together = max(1, LANES // program.threads)
    traffic = Traffic()
    with np.errstate(all="ignore"):
        for first in range(0, blocks, together):
            ids = np.arange(first, min(first + together, blocks))
            shared = SharedMemory(
                len(ids), program.threads, program.shared_bytes + shared_bytes, program.granule
            )
            lanes = Lanes(program, ids, (x, y, z), parameters, memory, shared, units, traffic)
            _run(program.steps, lanes)
    return traffic


def packed(parameter: Parameter, value: int | float | bytes) -> bytes:
    """An argument as the parameter's bytes.

    Raises:
        ValueError: it does not fit.
    """
    if isinstance(value, bytes):
        if len(value) != parameter.size:
            raise ValueError(f"expected {parameter.size} bytes for {parameter}, got {len(value)}")
        return value
    if parameter.type in ("f32", "f64", "f16"):
        return struct.pack({"f16": "<e", "f32": "<f", "f64": "<d"}[parameter.type], value)
    if not isinstance(value, int):
        raise ValueError(f"expected an integer for {parameter}, got {value}")
    bits = 8 * parameter.size
    if not -(2 ** (bits - 1)) <= value < 2**bits:
        raise ValueError(f"{value} does not fit {parameter}")
    return (value % 2**bits).to_bytes(parameter.size, "little")


def _run(steps: Sequence[Step], lanes: Lanes) -> None:
    groups: dict[int, Mask | None] = {0: None}  # instruction → lanes waiting there, None for all
    while groups:
        start = min(groups)
        active = groups.pop(start)
        _run_group(steps, lanes, start, active, groups)


def _run_group(
    steps: Sequence[Step],
    lanes: Lanes,
    at: int,
    active: Mask | None,
    groups: dict[int, Mask | None],
) -> None:
    """Run threads from an instruction until they branch, exit, or meet waiting threads."""
    first, meeting = at, min(groups, default=-1)
    while True:
        step = steps[at]
        lanes.instruction = step.instruction
        chosen = active
        if step.guard is not None:
            holds = np.broadcast_to(step.guard(lanes, active), lanes.size)
            chosen = holds if active is None else holds & active
            if chosen.all():
                chosen = None
        at += 1
        if step.run is None:
            break
        if chosen is None or chosen.any():
            step.run(lanes, chosen)
            lanes.unset = None
        if at == meeting:
            _count(lanes, active, at - first)
            _join(groups, at, active, lanes)
            return
    _count(lanes, active, at - first)
    leaving = lanes.everyone if chosen is None else chosen
    staying = (lanes.everyone if active is None else active) & ~leaving
    if step.target is not None:
        _join(groups, step.target, leaving, lanes)
    elif leaving.any():
        lanes.exited = leaving if lanes.exited is None else lanes.exited | leaving
    _join(groups, at, staying, lanes)


def _join(groups: dict[int, Mask | None], at: int, more: Mask | None, lanes: Lanes) -> None:
    if more is not None and not more.any():
        return
    there = groups.get(at)
    if more is not None and there is not None:
        more = more | there
    groups[at] = None if more is None or more.all() else more


def _count(lanes: Lanes, active: Mask | None, instructions: int) -> None:
    warps = lanes.size // WARP
    if active is not None:
        by_warp = active.reshape(-1, WARP)
        live = by_warp if lanes.exited is None else by_warp | lanes.exited.reshape(-1, WARP)
        warps = int(by_warp.any(1).sum())
        lanes.traffic.divergent += instructions * int((by_warp.any(1) & ~live.all(1)).sum())
    lanes.traffic.instructions += instructions * warps
