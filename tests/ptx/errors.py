"""What can be wrong with a PTX program: with its text, or with what it does."""

from __future__ import annotations


class PtxError(Exception):
    """Base of all errors of this package."""


class UnsupportedPtx(PtxError):
    """An instruction, a modifier or an operand that this package does not execute."""


class Fault(PtxError):
    """Base of all errors of executed instructions."""


class OutOfBounds(Fault):
    """An access outside of the registered regions, of shared memory, or of a parameter."""


class Misaligned(Fault):
    """An access at an address that is no multiple of its size."""


class UnsetRegister(Fault):
    """A register was read that the thread had never written."""


class UnwrittenShared(Fault):
    """Shared memory was read that nobody had written."""


class SharedRace(Fault):
    """Two threads used a byte of shared memory, one wrote it, and no barrier stood between."""


class EarlyRead(Fault):
    """Shared memory was used while a cp.async to it was under way."""


class DivergentBarrier(Fault):
    """Some threads of a block, or of a warp, wait at a barrier that others do not reach."""


class InactiveLane(Fault):
    """An instruction of a whole warp was executed by a part of it."""


class Trap(Fault):
    """The program executed `trap`, as a failed device assertion does."""
