"""Errors in the text of a PTX program, and errors when it runs."""

from __future__ import annotations


class PtxError(Exception):
    """Base of all errors of this package."""


class UnsupportedPtx(PtxError):
    """An instruction, a modifier or an operand that this package does not support."""


class Fault(PtxError):
    """Base of all errors of executed instructions."""


class OutOfBounds(Fault):
    """An access outside of the registered regions, of shared memory, or of a parameter."""


class Misaligned(Fault):
    """An access at an address that is not a multiple of its size."""


class UnsetRegister(Fault):
    """A register was read that the thread had never written."""


class UnwrittenShared(Fault):
    """Shared memory was read before any thread had written it."""


class SharedRace(Fault):
    """Two threads used a byte of shared memory, one wrote it, and no barrier separated them."""


class EarlyRead(Fault):
    """Shared memory was used while a cp.async to it was under way."""


class DivergentBarrier(Fault):
    """Some threads of a block, or of a warp, wait at a barrier that others do not reach."""


class InactiveLane(Fault):
    """Only a part of a warp executed an instruction that needs the whole warp."""


class Trap(Fault):
    """The program executed `trap`, as a failed device assertion does."""
