"""Executes the PTX that Triton emits, on numpy. README.md lists its checks and its limits."""

from tests.ptx.errors import Fault, PtxError, UnsupportedPtx
from tests.ptx.machine import execute
from tests.ptx.memory import GlobalMemory
from tests.ptx.program import Program, parse
from tests.ptx.traffic import Traffic
from tests.ptx.units import Units

__all__ = [
    "Fault",
    "GlobalMemory",
    "Program",
    "PtxError",
    "Traffic",
    "Units",
    "UnsupportedPtx",
    "execute",
    "parse",
]
