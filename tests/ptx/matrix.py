"""Matrix products of a warp, and the loads and stores that distribute matrices over its lanes.

Every product of two 16-bit or TF32 operands is exact in float64; sums are taken in float64 too and
rounded once to float32. Tensor cores add in an order and with a truncation that NVIDIA does not
document; they differ by a few units in the last place of the largest term. TF32 operands are
float32 registers of which the hardware reads the upper 19 bits. This does the same, so a kernel
that forgets to round its operands loses the same bits here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.accesses import spread
from tests.ptx.floats import from_bfloat16
from tests.ptx.form import Form, Run
from tests.ptx.lanes import WARP, Lanes
from tests.ptx.types import TYPES, Array, Mask

TF32_BITS = np.uint32(0xFFFFE000)
# Operand type → elements in a register, and the supported depths of a product.
OPERANDS = {"f16": (2, (8, 16)), "bf16": (2, (8, 16)), "tf32": (1, (4, 8))}


def decode_mma(form: Form) -> Run:
    """D = A·B + C, where A has 16 rows, B has 8 columns, and C is float32."""
    form.one_of(("sync",))
    form.one_of(("aligned",))
    form.one_of(("row",))
    form.one_of(("col",))
    shape = form.one_of(("m16n8k4", "m16n8k8", "m16n8k16"))
    if form.modifiers[:1] != ["f32"] or form.modifiers[3:] != ["f32"]:
        raise form.refuse("expected accumulators of .f32")
    kind, other = form.modifiers[1:3]
    depth = int(shape.removeprefix("m16n8k"))
    if kind != other or kind not in OPERANDS or depth not in OPERANDS[kind][1]:
        raise form.refuse(f"a product {shape} of .{kind} and .{other} is not supported")
    form.modifiers.clear()
    form.done(4)
    elements = OPERANDS[kind][0]
    steps = depth // (4 * elements)  # registers along the depth
    bits, f32 = TYPES["b32"], TYPES["f32"]
    of_a = _registers(form, 1, 2 * steps, bits)
    of_b = _registers(form, 2, steps, bits)
    of_c = _registers(form, 3, 4, f32)
    writes = [form.target(word, f32) for word in form.vector(0)]
    numbers = {"f16": _float16, "bf16": _bfloat16, "tf32": _tf32}[kind]

    def run(lanes: Lanes, active: Mask | None) -> None:
        lanes.whole_warps(active)
        sums = of_c(lanes, active)
        a = numbers(of_a(lanes, active)).reshape(steps, 2, -1, 8, 4, elements)
        a = a.transpose(2, 1, 3, 0, 4, 5).reshape(-1, 16, depth)
        b = numbers(of_b(lanes, active)).reshape(steps, -1, 8, 4, elements)
        b = b.transpose(1, 0, 3, 4, 2).reshape(-1, depth, 8)
        product = (a @ b).reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        if lanes.unset is not None:  # each result depends on the numbers of all lanes
            lanes.unset = np.repeat(lanes.unset.reshape(-1, WARP).any(1), WARP)
        for write, out in zip(writes, sums + product, strict=True):
            write(lanes, active, out.astype(np.float32))
        lanes.traffic.products += (lanes.size if active is None else int(active.sum())) // WARP

    return run


def _registers(
    form: Form, operand: int, count: int, type: Any, strict: bool = False
) -> Callable[..., Array]:
    """Some registers of all lanes → (registers, lanes)."""
    words = form.vector(operand)
    if len(words) != count:
        raise form.refuse(f"expected {count} registers in operand {operand}, got {len(words)}")
    reads = [form.source(word, type, strict=strict) for word in words]

    def read_all(lanes: Lanes, active: Mask | None) -> Array:
        out = np.empty((count, lanes.size), type.dtype)
        for row, read in zip(out, reads, strict=True):
            row[:] = read(lanes, active)
        return out

    return read_all


def _float16(registers: Array) -> Array:
    return registers.view(np.float16).astype(np.float64)


def _bfloat16(registers: Array) -> Array:
    return from_bfloat16(registers.view(np.uint16)).astype(np.float64)


def _tf32(registers: Array) -> Array:
    return (registers & TF32_BITS).view(np.float32).astype(np.float64)


def _matrices(form: Form) -> tuple[int, bool]:
    """The count of 8 × 8 matrices of 16-bit numbers, and whether they are transposed."""
    form.type("b16")
    form.one_of(("sync",))
    form.one_of(("aligned",))
    form.one_of(("m8n8",))
    count = int(form.one_of(("x1", "x2", "x4"))[1:])
    transposed = form.flag("trans")
    form.one_of(("shared::cta", "shared"))
    form.done(2)
    form.uses_shared(16)
    return count, transposed


def _rows_at(lanes: Lanes, active: Mask | None, address: Any, count: int) -> tuple[Array, Array]:
    """The lanes that give the rows' addresses, matrix after matrix, and these addresses."""
    lanes.whole_warps(active)
    naming = lanes.lane < 8 * count
    where = np.flatnonzero(naming if active is None else naming & active)
    return where, spread(lanes, address, where)


def decode_ldmatrix(form: Form) -> Run:
    count, transposed = _matrices(form)
    writes = [form.target(word, TYPES["b32"]) for word in form.vector(0)]
    if len(writes) != count:
        raise form.refuse(f"expected {count} registers")
    address = form.address(1, 32)

    def run(lanes: Lanes, active: Mask | None) -> None:
        where, addresses = _rows_at(lanes, active, address(lanes, active), count)
        rows = lanes.shared.load(lanes, where, addresses, 2, 8, by_warp=True)
        matrices = rows.T.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        for k, write in enumerate(writes):
            dealt = np.ascontiguousarray(matrices[:, k]).view(np.uint32).reshape(-1)
            if active is not None:
                every = np.zeros(lanes.size, np.uint32)
                every[active] = dealt
                dealt = every
            write(lanes, active, dealt)

    return run


def decode_stmatrix(form: Form) -> Run:
    count, transposed = _matrices(form)
    read = _registers(form, 1, count, TYPES["b32"], strict=True)
    address = form.address(0, 32)

    def run(lanes: Lanes, active: Mask | None) -> None:
        where, addresses = _rows_at(lanes, active, address(lanes, active), count)
        registers = read(lanes, active)
        if active is not None:
            registers = registers[:, active]
        matrices = registers.view(np.uint16).reshape(count, -1, 8, 8).swapaxes(0, 1)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        rows = np.ascontiguousarray(matrices.reshape(-1, 8).T)
        lanes.shared.store(lanes, where, addresses, rows, by_warp=True)

    return run


DECODERS: dict[str, Callable[[Form], Run]] = {
    "mma": decode_mma,
    "ldmatrix": decode_ldmatrix,
    "stmatrix": decode_stmatrix,
}
