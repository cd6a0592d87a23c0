"""What bounds a kernel's time: its instructions, its bytes, or the latency of memory."""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.bounds.builds import Binary
from bench.bounds.gpus import ACCESSED, ISSUE, UNITS, Gpu
from bench.bounds.machine_code import executed

WARP = 32


class Bound(NamedTuple):
    """Seconds that a launch takes by three estimates, of which the largest counts.

    - bandwidth: the kernel's bytes at the speed of a copy.
    - issue: the busiest multiprocessor issues its warps' instructions, or its busiest unit
      executes them.
    - latency: programs that do not fit at once run in waves. Each wave waits for memory once, and
      the last one also issues the instructions of a warp, one a clock.
    """

    bandwidth: float
    issue: float
    latency: float
    unit: str  # that bounds `issue`: "all instructions", "memory accesses" or one of UNITS
    instructions: int  # that a warp executes
    resident: int  # warps of a multiprocessor

    @property
    def seconds(self) -> float:
        """The estimate: the largest of the three."""
        return max(self.bandwidth, self.issue, self.latency)

    @property
    def by(self) -> str:
        """The name of the largest."""
        return max(("bandwidth", "issue", "latency"), key=lambda name: getattr(self, name))


def bound(binary: Binary, gpu: Gpu, programs: int, num_warps: int, moved: int) -> Bound:
    """The bounds of a launch.

    Args:
        binary: the compiled kernel.
        gpu: the GPU that it was compiled for.
        programs: blocks of threads.
        num_warps: of a program.
        moved: bytes that the launch moves.

    Raises:
        ValueError: the binary has no machine code, or does not fit on the GPU.
    """
    found = executed(binary.listing, moved / (programs * num_warps * WARP))
    instructions = sum(found.instructions.values())
    clocks = {"all instructions": instructions * WARP / ISSUE}
    for unit, (lanes, operations) in UNITS.items():
        count = sum(found.instructions.get(operation, 0) for operation in operations)
        clocks[unit] = count * WARP / lanes
    clocks["memory accesses"] = found.accessed * WARP / ACCESSED
    unit = max(clocks, key=clocks.__getitem__)
    busiest = math.ceil(programs / gpu.multiprocessors) * num_warps
    fit = resident(binary, gpu, num_warps)
    waves = math.ceil(programs / (gpu.multiprocessors * fit))
    return Bound(
        bandwidth=moved / gpu.bytes_per_second,
        issue=busiest * clocks[unit] / gpu.hertz,
        latency=(waves * gpu.latency_clocks + instructions) / gpu.hertz,
        unit=unit,
        instructions=instructions,
        resident=fit * num_warps,
    )


def resident(binary: Binary, gpu: Gpu, num_warps: int) -> int:
    """How many programs fit on a multiprocessor at once.

    Registers are given to warps in units of 256, warps get them four at a time, and a program's
    shared memory costs 1 KiB more (CUDA's occupancy calculator).

    Raises:
        ValueError: not even one fits.
    """
    registers = 256 * math.ceil(binary.registers * WARP / 256)  # of a warp
    fit = min(
        gpu.registers // registers // 4 * 4 // num_warps,
        gpu.warps // num_warps,
        gpu.programs,
        (gpu.shared + 1024) // (binary.shared + 1024),
    )
    if fit == 0:
        raise ValueError(
            f"expected a kernel of which a program fits on a multiprocessor of {gpu.name}, got "
            f"{registers * num_warps} registers and {binary.shared} bytes of shared memory"
        )
    return fit
