"""The state of a running program. Each thread of the running blocks is a lane of numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tests.ptx.copies_under_way import Copies
from tests.ptx.errors import DivergentBarrier, Fault, InactiveLane, UnsetRegister
from tests.ptx.memory import GlobalMemory
from tests.ptx.traffic import Traffic
from tests.ptx.types import STORAGE, Array, Mask
from tests.ptx.units import Units

if TYPE_CHECKING:
    from tests.ptx.form import Instruction
    from tests.ptx.program import Program
    from tests.ptx.shared import SharedMemory

WARP = 32


class Lanes:
    """Lane b·T + t is thread t of the b-th running block, where each block has T threads."""

    def __init__(
        self,
        program: Program,
        block_ids: Array,
        grid: tuple[int, int, int],
        parameters: dict[str, bytes],
        memory: GlobalMemory,
        shared: SharedMemory,
        units: Units,
        traffic: Traffic,
    ) -> None:
        self.program = program
        self.threads = program.threads
        self.blocks = len(block_ids)
        self.size = self.blocks * self.threads
        self.block_ids, self.grid = block_ids, grid
        self.parameters, self.memory, self.shared = parameters, memory, shared
        self.units, self.traffic = units, traffic
        self.values: list[Any] = [None] * len(program.registers)
        # True if all lanes wrote the register, else a mask of those that did.
        self.written: list[Any] = [False] * len(program.registers)
        self.unset: Mask | None = None  # lanes with an unset operand of the current instruction
        self.origin: dict[int, str] = {}  # which unset register a register was computed from
        self._unset_from = ""
        self.copies = Copies(self.size)
        self.everyone = np.ones(self.size, bool)
        self.exited: Mask | None = None
        self.instruction: Instruction
        self.thread = np.tile(np.arange(self.threads, dtype=np.uint32), self.blocks)
        self.lane = self.thread % np.uint32(WARP)
        self.special = self._special(program.block)

    def _special(self, shape: tuple[int, int, int]) -> dict[str, Array]:
        def split(index: Array, sizes: tuple[int, int, int]) -> tuple[Array, Array, Array]:
            x, y, _ = sizes
            return index % x, index // x % y, index // (x * y)

        every = np.ones(self.size, np.uint32)
        block = np.repeat(self.block_ids, self.threads)
        special = {"%laneid": self.lane, "%warpid": self.thread // np.uint32(WARP)}
        for number, axis in enumerate("xyz"):
            special[f"%tid.{axis}"] = split(self.thread, shape)[number].astype(np.uint32)
            special[f"%ctaid.{axis}"] = split(block, self.grid)[number].astype(np.uint32)
            special[f"%ntid.{axis}"] = every * np.uint32(shape[number])
            special[f"%nctaid.{axis}"] = every * np.uint32(self.grid[number])
        return special

    def write(self, slot: int, active: Mask | None, value: Any) -> None:
        """Write a value of the register's storage type in the active lanes."""
        if active is None and self.unset is None:
            self.values[slot] = value if value.ndim else np.full(self.size, value)
            self.written[slot] = True
            return
        old, written = self.values[slot], self.written[slot]
        if old is None:
            old, written = np.zeros(self.size, value.dtype), np.zeros(self.size, bool)
        here = self.everyone if active is None else active
        self.values[slot] = np.where(here, value, old)
        if self.unset is not None:
            written = (written | here) & ~(here & self.unset)
            self.origin[slot] = self._unset_from
        elif written is not True:
            written = written | here
        self.written[slot] = True if written is True or written.all() else written

    def note_unset(self, slot: int, active: Mask | None, strict: bool) -> None:
        """Note that some lanes read a register that is unset, or was computed from an unset one.

        With `strict`, that is an error. Otherwise the result is unset too: compilers let lanes
        compute with arbitrary values if their result is never used.
        """
        if self.values[slot] is None:
            width = self.program.widths[slot]
            self.values[slot] = np.zeros(self.size, STORAGE[width])
            self.written[slot] = np.zeros(self.size, bool)
        missing = ~self.written[slot]
        if active is not None:
            missing &= active
        if not missing.any():
            return
        name = self.program.registers[slot]
        origin = self.origin.get(slot) or f"{name}, which it never set"
        if strict:
            through = "" if origin.startswith(f"{name},") else f"{name}, computed from "
            self.fault(UnsetRegister, missing, f"uses {through}{origin}")
        self.unset = missing if self.unset is None else self.unset | missing
        self._unset_from = origin

    def indices(self, active: Mask | None) -> Array | None:
        """The active lanes, or None for all."""
        return None if active is None else np.flatnonzero(active)

    def whole_warps(self, active: Mask | None) -> None:
        """Refuse a warp-wide instruction that only a part of a warp executes."""
        if active is not None:
            by_warp: Mask = active.reshape(-1, WARP)
            some, every = (np.asarray(find(1)) for find in (by_warp.any, by_warp.all))
            torn = (some & ~every)[:, None]
            if torn.any():
                missing = (torn & ~by_warp).ravel()
                self.fault(InactiveLane, missing, "does not take part with the rest of its warp")

    def whole_blocks(self, active: Mask | None) -> Array | None:
        """The blocks that wait at a barrier, None for all.

        Refuses a block of which some threads neither wait nor have exited.
        """
        if active is None:
            return None
        live = active if self.exited is None else active | self.exited
        by_block = active.reshape(self.blocks, -1)
        waiting = by_block.any(axis=1, keepdims=True)
        missing = (waiting & ~live.reshape(self.blocks, -1)).ravel()
        if missing.any():
            self.fault(DivergentBarrier, missing, "does not reach the barrier with its block")
        return np.flatnonzero(waiting)

    def at(self, index: int) -> str:
        """The text of an instruction for messages, by its number."""
        return str(self.program.steps[index].instruction)

    def fault(self, kind: type[Fault], lanes: Mask | int, what: str) -> NoReturn:
        """Raise an error that names the current instruction, the first of `lanes`, and `what`."""
        first = lanes if isinstance(lanes, int) else int(np.argmax(lanes))
        place = ", ".join(str(int(self.special[f"%ctaid.{axis}"][first])) for axis in "xyz")
        who = f"thread {int(self.thread[first])} of block ({place})"
        raise kind(f"{self.instruction}: {who} {what}")
