"""Which instructions of a kernel a warp executes, and how often, read from its machine code.

A loop is what lies between a backward branch and its target. How often it runs is not in the code.
It is as often as a thread needs to move its share of the kernel's bytes: a compiler may unroll a
loop, which changes both the bytes of an iteration and the number of iterations. The last iteration
may be partly beyond the edge, and costs as much as the others. Code that a forward branch skips
counts as executed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)(?:[^;]*`\((\.L_\w+)\))?"
)
LABEL = re.compile(r"^(\.L_\w+):")
GLOBAL, SHARED = ("LDG", "STG"), ("LDS", "STS")


class Instruction(NamedTuple):
    name: str  # with its modifiers, such as LDG.E.128
    target: str  # the label that a branch jumps to; else empty

    @property
    def operation(self) -> str:
        """The name without modifiers."""
        return self.name.partition(".")[0]

    @property
    def bytes(self) -> int:
        """Bytes that a thread loads from or stores to global memory."""
        return self.accessed if self.operation in GLOBAL else 0

    @property
    def accessed(self) -> int:
        """Bytes that a thread loads from or stores to global or shared memory."""
        if self.operation not in GLOBAL + SHARED:
            return 0
        parts = self.name.split(".")
        small = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
        return next((small[part] for part in parts if part in small), 4)


class Executed(NamedTuple):
    """What a warp executes."""

    instructions: dict[str, int]  # by operation
    bytes: int  # of global memory that a thread moves, if all its accesses are in bounds
    accessed: int  # the same of global and shared memory


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions up to the last exit, and the position of each label.

    Raises:
        ValueError: there is no instruction.
    """
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := INSTRUCTION.match(line):
            found.append(Instruction(match[1], match[2] or ""))
    exits = [i for i, one in enumerate(found) if one.operation == "EXIT"]
    if not exits:
        raise ValueError("expected a listing of nvdisasm that ends with EXIT")
    return found[: exits[-1] + 1], labels


def main_loop(code: list[Instruction], labels: dict[str, int]) -> range:
    """The positions of the loop that moves the most bytes in an iteration; empty if none moves any.

    Of nested loops it is the outer one.
    """
    loops = [
        range(labels[one.target], i + 1)
        for i, one in enumerate(code)
        if one.operation == "BRA" and labels.get(one.target, len(code)) <= i
    ]
    moved = {loop: sum(code[i].bytes for i in loop) for loop in loops}
    return max((loop for loop in loops if moved[loop]), key=moved.__getitem__, default=range(0))


def executed(listing: str, bytes_per_thread: float) -> Executed:
    """What a warp executes of a kernel whose threads move so many bytes each, on average.

    Args:
        listing: the kernel's machine code, as nvdisasm prints it.
        bytes_per_thread: what a thread loads from and stores to global memory. Without a loop
            that moves data, it does not matter.

    Raises:
        ValueError: there is no instruction.
    """
    code, labels = parse(listing)
    loop = main_loop(code, labels)
    outside = sum(one.bytes for i, one in enumerate(code) if i not in loop)
    inside = sum(code[i].bytes for i in loop)
    trips = max(1, math.ceil((bytes_per_thread - outside) / inside)) if inside else 1
    times = [trips if i in loop else 1 for i in range(len(code))]
    counts: Counter[str] = Counter()
    for one, often in zip(code, times, strict=True):
        if one.operation != "NOP":
            counts[one.operation] += often
    accessed = sum(often * one.accessed for one, often in zip(code, times, strict=True))
    return Executed(dict(counts), outside + trips * inside, accessed)
