"""A PTX kernel, parsed and decoded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from tests.ptx import (
    accesses,
    approximate,
    atomics,
    bits,
    control,
    conversions,
    copies,
    floats,
    integers,
    matrix,
    moves,
    warps,
)
from tests.ptx.errors import UnsupportedPtx
from tests.ptx.form import Form, Instruction, Run, Source
from tests.ptx.names import Names
from tests.ptx.source import Entry, Statement, entry_of
from tests.ptx.types import TYPES

Decoder = Callable[[Form], Run]
MODULES = (
    integers,
    bits,
    moves,
    conversions,
    accesses,
    atomics,
    copies,
    warps,
    matrix,
    control,
)
DECODERS: dict[str, Decoder] = {
    name: decode for module in MODULES for name, decode in module.DECODERS.items()
}


class Parameter(NamedTuple):
    name: str
    type: str  # as PTX names it: "u64", "f32"; "b8" for an array of bytes
    size: int  # in bytes


class Step(NamedTuple):
    """One instruction: the function that runs it, or its jump target."""

    instruction: Instruction
    guard: Source | None
    run: Run | None  # None for a branch or an exit
    target: int | None  # of a branch


class Program(NamedTuple):
    name: str
    parameters: tuple[Parameter, ...]
    block: tuple[int, int, int]  # threads
    exact: bool  # whether blocks have exactly this many (.reqntid) or at most (.maxntid)
    shared_bytes: int  # declared by the program itself; a launch may add more
    steps: tuple[Step, ...]
    registers: tuple[str, ...]
    widths: tuple[int, ...]  # of the registers, in bits
    granule: int  # bytes of the smallest access to shared memory

    @property
    def threads(self) -> int:
        return math.prod(self.block)

    def with_block(self, block: tuple[int, ...]) -> Program:
        """The program for a launch with this many threads in a block.

        Raises:
            ValueError: it was not compiled for this block size, or the block is not whole warps.
        """
        x, y, z = (*block, 1, 1)[:3]
        threads = math.prod((x, y, z))
        if self.exact and (x, y, z) != self.block:
            raise ValueError(f"{self.name} requires a block of {self.block}, got {(x, y, z)}")
        if threads > self.threads:
            raise ValueError(f"{self.name} takes at most {self.threads} threads, got {threads}")
        if threads % 32 or not threads:
            raise ValueError(f"expected whole warps of 32 threads, got a block of {(x, y, z)}")
        return self._replace(block=(x, y, z))


def parse(ptx: str) -> Program:
    """The only kernel of a PTX module.

    Raises:
        UnsupportedPtx: it has an instruction, a modifier or an operand that is not supported here.
            The message names the line.
    """
    entry = entry_of(ptx)
    names = Names()
    shared_bytes = _declare_shared(entry, names)
    parameters = _parameters(entry)
    labels: dict[str, int] = {}
    forms: list[Form] = []
    steps: list[Step] = []
    for statement in entry.body:
        text = statement.text
        if text == "{":
            names.open()
        elif text == "}":
            names.close()
        elif text.endswith(":"):
            labels[text[:-1]] = len(steps)
        elif text.startswith(".reg"):
            names.declare(text)
        elif text.startswith((".pragma", ".shared")):
            continue  # _declare_shared has read the variables
        elif text.startswith("."):
            raise UnsupportedPtx(f"line {statement.line}: {text}: directive not supported")
        else:
            form = Form(_instruction(len(steps), statement), names, parameters)
            forms.append(form)
            steps.append(_step(form))
    return Program(
        entry.name,
        tuple(parameters.values()),
        *_block(entry),
        shared_bytes,
        tuple(_with_target(step, form, labels) for step, form in zip(steps, forms, strict=True)),
        tuple(names.names),
        tuple(names.widths),
        names.granule,
    )


def _instruction(index: int, statement: Statement) -> Instruction:
    return Instruction(index, statement.line, statement.text, statement.source)


def _step(form: Form) -> Step:
    guard = form.guard_source()
    if form.opcode == "bra":
        form.flag("uni")
        form.done(1)
        return Step(form.instruction, guard, None, None)
    if form.opcode in ("ret", "exit"):
        form.flag("uni")
        form.done(0)
        return Step(form.instruction, guard, None, None)
    return Step(form.instruction, guard, _decoder(form)(form), None)


def _decoder(form: Form) -> Decoder:
    kind = form.modifiers[-1] if form.modifiers else ""
    if "approx" in form.modifiers or "full" in form.modifiers:
        table = approximate.DECODERS
    elif kind in TYPES and TYPES[kind].kind == "f" and form.opcode in floats.DECODERS:
        table = floats.DECODERS
    else:
        table = DECODERS
    if form.opcode not in table:
        raise form.refuse("instruction not supported")
    return table[form.opcode]


def _with_target(step: Step, form: Form, labels: dict[str, int]) -> Step:
    if form.opcode != "bra":
        return step
    if form.operands[0] not in labels:
        raise form.refuse(f"no label {form.operands[0]}")
    return step._replace(target=labels[form.operands[0]])


def _parameters(entry: Entry) -> dict[str, Parameter]:
    parameters = {}
    for text in entry.parameters.split(","):
        if not text.strip():
            continue
        found = re.fullmatch(
            r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\b.*?([\w$]+)(?:\[(\d+)\])?\s*", text, re.S
        )
        if not found or found[1] not in TYPES:
            raise UnsupportedPtx(f"cannot read the parameter: {text.strip()}")
        size = TYPES[found[1]].size * int(found[3] or 1)
        parameters[found[2]] = Parameter(found[2], found[1], size)
    return parameters


def _block(entry: Entry) -> tuple[tuple[int, int, int], bool]:
    """A block's threads, and whether the count is exact. If not, `with_block` may set fewer."""
    found = re.search(r"\.reqntid\s+([\d\s,]+)", entry.directives)
    exact = found is not None
    found = found or re.search(r"\.maxntid\s+([\d\s,]+)", entry.directives)
    if not found:
        raise UnsupportedPtx("expected .reqntid or .maxntid, the number of threads of a block")
    sizes = [int(size) for size in found[1].split(",")]
    if math.prod(sizes) % 32:
        raise UnsupportedPtx(f"expected whole warps of 32 threads, got a block of {sizes}")
    x, y, z = (*sizes, 1, 1)[:3]
    return (x, y, z), exact


def _declare_shared(entry: Entry, names: Names) -> int:
    """Assign addresses to the module's shared variables. The extern one comes last."""
    end = 0
    extern = None
    inner = [f"{one.text};" for one in entry.body if one.text.startswith(".shared")]
    text = entry.before + "".join(inner)
    pattern = (
        r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;"
    )
    variables = list(re.finditer(pattern, text))
    different = {found[4] for found in variables}
    if not len(variables) == len(different) == len(re.findall(r"\.shared\b", text)):
        raise UnsupportedPtx("cannot read the variables in shared memory")
    for found in variables:
        if found[1]:
            extern = found[4]
            continue
        align = int(found[2] or TYPES[found[3]].size)
        end = -(-end // align) * align
        names.variables[found[4]] = end
        end += TYPES[found[3]].size * int(found[5] or 1)
    if extern:
        end = -(-end // 16) * 16
        names.variables[extern] = end
    return end
