"""The text of one instruction, which a decoder takes apart piece by piece.

A decoder asks for the modifiers that it knows, for the type, and for its operands as functions that
read and write registers. `done` then refuses whatever the decoder did not ask for.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.ptx.errors import UnsupportedPtx
from tests.ptx.names import Names
from tests.ptx.types import B32, PRED, TYPES, U32, Array, Mask, Type

if TYPE_CHECKING:
    from tests.ptx.lanes import Lanes

Source = Callable[["Lanes", Mask | None], Any]  # → an array with one number a lane, or a scalar
Target = Callable[["Lanes", Mask | None, Any], None]
Run = Callable[["Lanes", Mask | None], None]

SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIAL += ["%laneid", "%warpid"]
INSTRUCTION = re.compile(r"(?:@(!?)\s*(\S+)\s+)?([a-z][\w.:]*)\s*(.*)")


class Instruction(NamedTuple):
    """The place and the text of an instruction, for messages."""

    number: int  # in the program
    line: int
    text: str
    source: str

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"line {self.line}{place}: {self.text}"


class Form:
    """One instruction while it is decoded."""

    def __init__(self, instruction: Instruction, names: Names, parameters: dict[str, Any]) -> None:
        found = INSTRUCTION.fullmatch(instruction.text)
        if not found:
            raise UnsupportedPtx(f"{instruction}: no instruction")
        self.instruction, self.names, self.parameters = instruction, names, parameters
        self.guard = (found[2], bool(found[1])) if found[2] else None
        words = found[3].split(".")
        self.opcode: str = words[0]
        self.modifiers: list[str] = words[1:]
        self.operands = split(found[4])

    def refuse(self, why: str) -> UnsupportedPtx:
        return UnsupportedPtx(f"{self.instruction}: {why}")

    def flag(self, *names: str) -> bool:
        """Whether the instruction has one of these modifiers, which is then removed."""
        for name in names:
            if name in self.modifiers:
                self.modifiers.remove(name)
                return True
        return False

    def one_of(self, names: Iterable[str], default: str | None = None) -> str:
        for name in names:
            if self.flag(name):
                return name
        if default is None:
            raise self.refuse(f"expected one of the modifiers {', '.join(names)}")
        return default

    def type(self, *allowed: str) -> Type:
        """The last modifier, which must be one of these types."""
        if not self.modifiers or self.modifiers[-1] not in allowed:
            raise self.refuse(f"expected one of the types {', '.join(allowed)}")
        return TYPES[self.modifiers.pop()]

    def done(self, operands: int) -> None:
        if self.modifiers:
            raise self.refuse(f"unknown modifier .{self.modifiers[0]}")
        if len(self.operands) != operands:
            raise self.refuse(f"expected {operands} operands, got {len(self.operands)}")

    def vector(self, index: int) -> list[str]:
        """The elements of an operand in braces, or the operand itself."""
        operand = self.operands[index]
        return split(operand[1:-1]) if operand.startswith("{") else [operand]

    def source(
        self, index: int | str, type: Type, narrow: bool = False, strict: bool = False
    ) -> Source:
        """A function that reads an operand.

        Args:
            index: the operand's number, or its text.
            narrow: whether a wider register is allowed, of which the low bits are read.
            strict: whether an unset register is an error. Otherwise the result becomes unset too.
        """
        text = index if isinstance(index, str) else self.operands[index]
        slot = self.names.register(text)
        if slot is None:
            return self._constant(text, type)
        return self._register(slot, text, type, narrow, strict)

    def predicate(self, text: str, strict: bool = False) -> Source:
        """A function that reads a predicate; "!" negates it. `strict` is as in `source`."""
        read = self.source(text.removeprefix("!").strip(), PRED, strict=strict)
        if not text.startswith("!"):
            return read
        return lambda lanes, active: np.logical_not(read(lanes, active))

    def _register(self, slot: int, text: str, type: Type, narrow: bool, strict: bool) -> Source:
        width, dtype = self.names.widths[slot], type.dtype
        if width != type.bits and not (narrow and width > type.bits > 1):
            raise self.refuse(f"{text} has {width} bits, and .{type.name} takes {type.bits}")
        unsigned, same = type.unsigned, type.unsigned == dtype

        def read(lanes: Lanes, active: Mask | None) -> Array:
            if lanes.written[slot] is not True:
                lanes.note_unset(slot, active, strict)
            return lanes.values[slot]

        def view(lanes: Lanes, active: Mask | None) -> Array:
            return read(lanes, active).view(dtype)

        def low(lanes: Lanes, active: Mask | None) -> Array:
            return read(lanes, active).astype(unsigned).view(dtype)

        if width != type.bits:
            return low
        return read if same else view

    def _constant(self, text: str, type: Type) -> Source:
        if text in SPECIAL:
            if type.bits != 32:
                raise self.refuse(f"{text} can only be read as 32 bits")
            return lambda lanes, active: lanes.special[text].view(type.dtype)
        if text in self.names.variables:
            value = self.names.variables[text]
        elif type is PRED:
            value = int(self._number(text, type) != 0)
        else:
            value = self._number(text, type)
        bits = np.array(value & ((1 << max(type.bits, 8)) - 1), type.unsigned)
        constant = bits.view(type.dtype)[()]
        return lambda lanes, active: constant

    def _number(self, text: str, type: Type) -> int:
        """The bits of a literal."""
        if found := re.fullmatch(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", text):
            if found[1] in "fF" and len(found[2]) == 8 and type.bits == 32:
                return int(found[2], 16)
            if found[1] in "dD" and len(found[2]) == 16 and type.bits == 64:
                return int(found[2], 16)
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text) and not type.name.startswith("f"):
            digits = text.rstrip("U")
            octal = re.fullmatch(r"-?0[0-7]+", digits)
            return int(digits, 8 if octal else 0)
        elif re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text) and type.name in ("f32", "f64"):
            code = {"f32": "<fI", "f64": "<dQ"}[type.name]
            return int(struct.unpack(f"<{code[2]}", struct.pack(f"<{code[1]}", float(text)))[0])
        raise self.refuse(f"cannot read the operand {text} as .{type.name}")

    def integer(self, index: int) -> int:
        """A literal."""
        return self._number(self.operands[index], B32)

    def target(self, index: int | str, type: Type, extend: bool = False) -> Target:
        """A function that writes a register. `extend` allows one that is wider than the type.

        Signed types are sign-extended, all others are zero-extended.
        """
        text = index if isinstance(index, str) else self.operands[index]
        if text == "_":
            return lambda lanes, active, value: None
        slot = self.names.register(text)
        if slot is None:
            raise self.refuse(f"{text} is not a register")
        width = self.names.widths[slot]
        if width != type.bits and not (extend and width > type.bits > 1):
            raise self.refuse(f"{text} has {width} bits, and .{type.name} gives {type.bits}")
        storage = np.dtype(f"u{width // 8}") if width > 1 else np.dtype(bool)
        wide = np.dtype(f"{'i' if type.kind == 's' else 'u'}{max(width, 8) // 8}")
        dtype, extended = type.dtype, width != type.bits

        def write(lanes: Lanes, active: Mask | None, value: Any) -> None:
            if extended:
                value = value.view(dtype).astype(wide)
            lanes.write(slot, active, value.view(storage))

        return write

    def guard_source(self) -> Source | None:
        if self.guard is None:
            return None
        name, negated = self.guard
        return self.predicate(f"!{name}" if negated else name, strict=True)

    def address(self, index: int, bits: int) -> Source:
        """A function that returns the addresses of an operand like [%rd1+16], of this width."""
        found = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+)\s*)?\]", self.operands[index])
        if not found:
            raise self.refuse(f"cannot read the address {self.operands[index]}")
        type = TYPES["u64"] if bits == 64 else U32
        base = self.source(found[1], type, strict=True)
        offset = int(found[2], 0) if found[2] else 0
        if offset == 0:
            return base
        constant = type.dtype.type(offset & ((1 << bits) - 1))
        return lambda lanes, active: base(lanes, active) + constant

    def uses_shared(self, size: int) -> None:
        """Record that the instruction accesses `size` bytes of shared memory at once."""
        self.names.granule = min(self.names.granule, size)

    def parameter(self, index: int) -> tuple[str, int]:
        """The name and the offset of an operand like [kernel_param_0+8]."""
        found = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+)\s*)?\]", self.operands[index])
        if not found or found[1] not in self.parameters:
            raise self.refuse(f"{self.operands[index]} is not a parameter")
        return found[1], int(found[2] or 0)


def split(text: str) -> list[str]:
    """The parts between commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
