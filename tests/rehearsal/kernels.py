"""Executes the PTX of kernels launched through the driver: ours and inductor's."""

from __future__ import annotations

import bisect
import ctypes
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch

from tests.ptx.machine import execute
from tests.ptx.memory import GlobalMemory
from tests.ptx.program import Program, parse
from tests.rehearsal.stand_in import Launch

POINTER = "u64"


class Block(NamedTuple):
    """A piece of memory that PyTorch gave to one tensor."""

    address: int
    size: int  # as requested, without the allocator's padding


def prepared(launch: Launch) -> Callable[[], object]:
    """The computation of a launch, to be called once or at every replay of a graph.

    The kernel may touch only the tensors that its pointers point into. Its arguments are read now.

    Raises:
        ValueError: the PTX is of another kernel, or requires blocks of another size.
    """
    if not launch.ptx:
        raise NotImplementedError(f"the rehearsal has no PTX of the kernel {launch.name}")
    program = _parsed(launch.ptx)
    if program.name != launch.name:
        raise ValueError(f"expected the kernel {launch.name} in its PTX, got {program.name}")
    program = program.with_block(launch.block)
    arguments = list(_arguments(program, launch.parameters))
    memory = GlobalMemory()
    for piece in _blocks_of(program, arguments):
        data = (ctypes.c_uint8 * piece.size).from_address(piece.address)
        memory.add(piece.address, np.ctypeslib.as_array(data))
    return partial(execute, program, launch.grid, arguments, memory, launch.shared_bytes)


# A failed assertion calls __assertfail, the only function in our kernels, and then traps.
PRINTS_ASSERTION = (
    r"^\.extern \.func __assertfail\b.*?\.noreturn;$",
    r"\{ // callseq \d+, \d+$(?:(?!callseq).)*?\bcall\.uni __assertfail,.*?\} // callseq \d+$",
)


@cache
def _parsed(ptx: bytes) -> Program:
    text = ptx.decode()
    for pattern in PRINTS_ASSERTION:  # keeps the line numbers, which messages name
        text = re.sub(pattern, lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return parse(text)


def _arguments(program: Program, parameters: int) -> Iterator[bytes]:
    pointers = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
    for index, parameter in enumerate(program.parameters):
        yield ctypes.string_at(pointers[index], parameter.size)


def _blocks_of(program: Program, arguments: list[bytes]) -> set[Block]:
    """The blocks that the arguments point into. Other 64-bit integers point to no block."""
    blocks = sorted(_allocated())
    found = set()
    for parameter, argument in zip(program.parameters, arguments, strict=True):
        if parameter.type == POINTER:
            address = int.from_bytes(argument, "little")
            index = bisect.bisect(blocks, (address, float("inf"))) - 1
            if index >= 0 and address < blocks[index].address + blocks[index].size:
                found.add(blocks[index])
    return found


def _allocated() -> Iterator[Block]:
    for segment in torch.cuda.memory_snapshot():
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                yield Block(block["address"], block["requested_size"])
