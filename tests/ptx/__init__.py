"""Executes the PTX that Triton emits, on numpy: README.md says what it checks and what it lacks."""

from .errors import Fault, PtxError, UnsupportedPtx
from .machine import execute
from .memory import GlobalMemory
from .program import Program, parse
from .traffic import Traffic
from .units import Units

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
