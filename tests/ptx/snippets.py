"""Turns a few lines of hand-written PTX into a kernel, to test single instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.ptx import GlobalMemory, Traffic, Units, execute, parse

HEAD = """
.version 8.7
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry kernel({parameters})
.reqntid {threads}
{{
    .reg .pred %p<40>;
    .reg .b16 %h<40>;
    .reg .b32 %r<80>;
    .reg .b64 %d<80>;
{body}
}}
"""
INPUTS = 1 << 20  # addresses, a mebibyte apart


def module(body: str, parameters: Sequence[str] = (), threads: int = 32) -> str:
    """PTX with one kernel, which has registers %p, %h (16 bits), %r (32) and %d (64).

    Args:
        parameters: the types of the parameters, which are named p0, p1 and so on.
    """
    declared = ", ".join(f".param .{type} p{k}" for k, type in enumerate(parameters))
    return HEAD.format(parameters=declared, threads=threads, body=body)


def run(
    body: str,
    *arrays: np.ndarray[Any, Any],
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    units: Units = Units.NEAREST,
) -> Traffic:
    """Execute `body`. %d0, %d1, … are the arrays' addresses, %r0 the thread, %r1 the block."""
    memory = GlobalMemory()
    addresses = [INPUTS * (k + 1) for k in range(len(arrays))]
    for k, (address, array) in enumerate(zip(addresses, arrays, strict=True)):
        memory.add(address, array.reshape(-1).view(np.uint8), f"array {k}")
    loads = "".join(f"    ld.param.u64 %d{k}, [p{k}];\n" for k in range(len(arrays)))
    start = f"{loads}    mov.u32 %r0, %tid.x;\n    mov.u32 %r1, %ctaid.x;\n"
    ptx = module(f"{start}{body}\n    ret;", ["u64"] * len(arrays), threads)
    return execute(parse(ptx), (blocks,), addresses, memory, shared, units)


def compute(
    body: str,
    *operands: np.ndarray[Any, Any],
    out: Any = None,
    units: Units = Units.NEAREST,
    shared: int = 0,
) -> np.ndarray[Any, Any]:
    """Run lines that compute {out} from {0}, {1} and so on, with one thread for each number.

    Args:
        operands: arrays of equal length, a multiple of 32; each becomes a register of its width.
        out: the result's dtype, by default the first operand's.
    """
    threads = len(operands[0])
    result = np.zeros(threads, operands[0].dtype if out is None else out)
    registers = [f"%{_letter(a)}{20 + k}" for k, a in enumerate((*operands, result))]
    code = []
    for k, (array, register) in enumerate(zip((*operands, result), registers, strict=True)):
        size = array.dtype.itemsize
        code.append(f"mul.wide.u32 %d{20 + 20 + k}, %r0, {size};")
        code.append(f"add.s64 %d{40 + k}, %d{40 + k}, %d{k};")
        if k < len(operands):
            code.append(f"ld.global.b{8 * size} {register}, [%d{40 + k}];")
    code.append(body.format(*registers[:-1], out=registers[-1]))
    last = len(operands)
    code.append(f"st.global.b{8 * result.dtype.itemsize} [%d{40 + last}], {registers[-1]};")
    copies = [np.ascontiguousarray(operand).copy() for operand in operands]
    run("\n".join(code), *copies, result, threads=threads, units=units, shared=shared)
    return result


def _letter(array: np.ndarray[Any, Any]) -> str:
    return {1: "h", 2: "h", 4: "r", 8: "d"}[array.dtype.itemsize]
