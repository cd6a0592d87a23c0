"""Figures of GPUs that bound a kernel's time.

Lanes are results a clock and multiprocessor, from the table "Throughput of Native Arithmetic
Instructions" of NVIDIA's CUDA C++ Programming Guide, compute capability 9.0. The units are the
pipelines of Nsight Compute's Profiling Guide: integers are multiplied by one that also adds and
multiplies floats, and other integer operations have one of their own.
"""

from __future__ import annotations

from typing import NamedTuple

# Instructions that a multiprocessor issues a clock, in lanes: four warps.
ISSUE = 128
# Operations with fewer lanes, by the unit that executes them.
UNITS: dict[str, tuple[int, tuple[str, ...]]] = {
    "integer products": (64, ("IMAD",)),
    "floats and integer products": (128, ("FFMA", "FMUL", "FADD", "IMAD")),
    "logic and comparisons": (
        64,
        (
            *("IADD3", "LOP3", "SHF", "LEA", "ISETP", "IMNMX", "VIADD", "VIMNMX", "IABS"),
            *("SEL", "PRMT", "FSETP", "FMNMX", "FSEL", "PLOP3", "SGXT", "BMSK"),
        ),
    ),
    "conversions": (64, ("I2F", "I2FP", "F2I", "F2F", "F2FP", "FRND", "I2I")),
    "special functions": (16, ("MUFU",)),
    "shuffles": (32, ("SHFL",)),
}
# Bytes a clock between a multiprocessor's registers and its cache or shared memory.
ACCESSED = 128


class Gpu(NamedTuple):
    """A GPU of compute capability 9.0."""

    name: str
    multiprocessors: int
    hertz: float  # the highest clock
    bytes_per_second: float  # of a copy, read plus written
    target: str = "sm_90"
    latency_clocks: int = 479  # of global memory, unloaded: Luo et al. 2024, arXiv 2402.13499
    registers: int = 65536  # of a multiprocessor
    warps: int = 64
    programs: int = 32
    shared: int = 227 << 10


GPUS = {
    "h100": Gpu("H100 SXM", 132, 1.98e9, 3.0e12),  # the copy was measured on one
    # Its memory is 4.8/3.35 times as fast, by the data sheets; nobody has measured its copy here.
    "h200": Gpu("H200", 132, 1.98e9, 4.3e12),
}
