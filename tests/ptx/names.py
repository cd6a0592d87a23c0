"""Registers and shared variables by name."""

from __future__ import annotations

import re

from tests.ptx.errors import UnsupportedPtx
from tests.ptx.types import TYPES


class Names:
    """Registers and variables by name; inner scopes hide outer ones."""

    def __init__(self) -> None:
        self.widths: list[int] = []  # of each register, in bits
        self.names: list[str] = []
        self.variables: dict[str, int] = {}  # address in shared memory
        self.granule = 16  # bytes of the smallest access to shared memory
        self._scopes: list[dict[str, int]] = [{}]

    def open(self) -> None:
        self._scopes.append({})

    def close(self) -> None:
        self._scopes.pop()

    def declare(self, text: str) -> None:
        """`.reg .b32 %r<8>, %x;` makes the registers %r0 to %r7, and %x."""
        found = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text)
        if not found or found[1] not in TYPES:
            raise UnsupportedPtx(f"cannot declare: {text}")
        for word in found[2].split(","):
            name = re.fullmatch(r"\s*([\w$%]+)(?:<(\d+)>)?\s*", word)
            if not name:
                raise UnsupportedPtx(f"cannot declare: {text}")
            several = [f"{name[1]}{k}" for k in range(int(name[2]))] if name[2] else [name[1]]
            for one in several:
                self._scopes[-1][one] = len(self.widths)
                self.widths.append(TYPES[found[1]].bits)
                self.names.append(one)

    def register(self, name: str) -> int | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return None
