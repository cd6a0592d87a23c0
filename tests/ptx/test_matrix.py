"""Matrix products of a warp, and how matrices are distributed over its lanes.

The fragments' layouts are checked element by element against the PTX ISA, section 9.7.15.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptx import UnsupportedPtx, parse
from tests.ptx.errors import InactiveLane, SharedRace
from tests.ptx.snippets import compute, module, run

F32 = np.float32
rng = np.random.default_rng(2)
LANES = range(32)


def row_and_column(kind: str, lane: int, i: int) -> tuple[int, int]:
    """The row and the column of element i of a lane's fragment."""
    group, within = lane >> 2, lane % 4
    if kind == "C":
        return group + 8 * (i >= 2), within * 2 + (i & 1)
    if kind == "A16":  # of m16n8k16, 16 bits each; m16n8k8 has the first four
        return group + 8 * (i // 2 % 2), within * 2 + (i & 1) + 8 * (i >= 4)
    if kind == "B16":
        return within * 2 + (i & 1) + 8 * (i >= 2), group
    if kind == "A32":  # of m16n8k8 of TF32; m16n8k4 has the first two
        return group + 8 * (i % 2), within + 4 * (i >= 2)
    return within + 4 * i, group  # B32


def dealt(matrix: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """A matrix → (lanes, registers) of 32 bits."""
    each = matrix.size // 32
    elements = [[matrix[row_and_column(kind, lane, i)] for i in range(each)] for lane in LANES]
    return np.array(elements, matrix.dtype).view(np.uint32)


def product(instruction: str, *operands: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """D of A, B and C, each distributed over lanes → (16, 8)."""
    out = np.zeros((32, 4), F32)
    body, start, names = "", 20, []
    for k, operand in enumerate((*operands, out)):
        count = operand.shape[1]
        body += f"mul.wide.u32 %d8, %r0, {4 * count}; add.s64 %d{9 + k}, %d{k}, %d8;"
        registers = [f"%r{start + i}" for i in range(count)]
        names.append("{" + ", ".join(registers) + "}")
        start += count
        for i, register in enumerate(registers[: count if k < 3 else 0]):
            body += f"ld.global.b32 {register}, [%d{9 + k}+{4 * i}];"
    body += f"{instruction} {names[3]}, {names[0]}, {names[1]}, {names[2]};"
    body += f"st.global.v4.b32 [%d12], {names[3]};"
    traffic = run(body, *(np.ascontiguousarray(a).copy() for a in operands), out)
    assert traffic.products == 1
    full = np.zeros((16, 8), F32)
    for lane in LANES:
        for i in range(4):
            full[row_and_column("C", lane, i)] = out[lane, i]
    return full


def bfloat16(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (a.astype(F32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [8, 16])
def test_products_of_sixteen_bits(type: str, depth: int) -> None:
    a, b = rng.normal(size=(16, depth)), rng.normal(size=(depth, 8))
    c = rng.normal(size=(16, 8)).astype(F32)
    to = bfloat16 if type == "bf16" else lambda x: x.astype(np.float16)
    bits_a, bits_b = to(a), to(b)
    out = product(
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{type}.{type}.f32",
        dealt(bits_a, "A16"),
        dealt(bits_b, "B16"),
        dealt(c, "C"),
    )

    def exact(bits: Any) -> Any:
        if type == "f16":
            return bits.astype(np.float64)
        return (bits.astype(np.uint32) << 16).view(F32).astype(np.float64)

    np.testing.assert_array_equal(out, (exact(bits_a) @ exact(bits_b) + c).astype(F32))


@pytest.mark.parametrize("depth", [4, 8])
def test_products_of_tf32_use_the_upper_19_bits(depth: int) -> None:
    a, b = rng.normal(size=(16, depth)).astype(F32), rng.normal(size=(depth, 8)).astype(F32)
    c = rng.normal(size=(16, 8)).astype(F32)
    out = product(
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.tf32.tf32.f32",
        dealt(a, "A32"),
        dealt(b, "B32"),
        dealt(c, "C"),
    )
    short_a, short_b = (
        (x.view(np.uint32) >> 13 << 13).view(F32).astype(np.float64) for x in (a, b)
    )
    np.testing.assert_array_equal(out, (short_a @ short_b + c).astype(F32))
    # With all 24 bits of float32, each operand would differ by up to 2^-11.
    assert np.abs(out - (a.astype(np.float64) @ b + c)).max() > 1e-4


def test_other_products_are_refused() -> None:
    for shape, types in (
        ("m16n8k8", "f32.f16.bf16.f32"),
        ("m16n8k16", "f32.tf32.tf32.f32"),
        ("m16n8k16", "f16.f16.f16.f16"),
        ("m8n8k4", "f32.f16.f16.f32"),
    ):
        line = f"mma.sync.aligned.{shape}.row.col.{types} {{%r1}}, {{%r2}}, {{%r3}}, {{%r4}};"
        with pytest.raises(UnsupportedPtx, match="line 13"):
            parse(module(line))


MATRICES = rng.integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
# Row r of matrix k is at address 16·(8k + r), which lane 8k + r passes.
FILL = """
    mul.wide.u32 %d8, %r0, 16; add.s64 %d9, %d0, %d8; shl.b32 %r2, %r0, 4;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%d9];
    st.shared.v4.b32 [%r2], {%r10, %r11, %r12, %r13};
"""
ROW = "mul.wide.u32 %d8, %r0, 16; add.s64 %d10, %d1, %d8;"


def fragment(matrix: np.ndarray[Any, Any], lane: int) -> int:
    """Two neighbouring numbers of row lane/4, in 32 bits."""
    low, high = matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()
    return low | high << 16


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded_into_fragments(count: int, transposed: bool) -> None:
    out = np.zeros((32, 4), np.uint32)
    registers = [f"%r{20 + k}" for k in range(count)]
    trans = ".trans" if transposed else ""
    zeros = "".join(f"mov.b32 %r{20 + k}, 0;" for k in range(4))
    load = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 "
    body = f"""{FILL} {zeros} bar.warp.sync -1;
        {load} {{{", ".join(registers)}}}, [%r2];
        {ROW} st.global.v4.b32 [%d10], {{%r20, %r21, %r22, %r23}};"""
    run(body, MATRICES.reshape(-1).copy(), out, shared=512)
    for k in range(count):
        matrix = MATRICES[k].T if transposed else MATRICES[k]
        assert out[:, k].tolist() == [fragment(matrix, lane) for lane in LANES]


@pytest.mark.parametrize("transposed", [False, True])
def test_fragments_are_stored_as_matrices(transposed: bool) -> None:
    out = np.zeros((4, 8, 8), np.uint16)
    trans = ".trans" if transposed else ""
    words = "{%r10, %r11, %r12, %r13}"
    body = f"""
        mul.wide.u32 %d8, %r0, 16; add.s64 %d9, %d0, %d8; shl.b32 %r2, %r0, 4;
        ld.global.v4.b32 {words}, [%d9];
        stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r2], {words};
        bar.warp.sync -1;
        ld.shared.v4.b32 {words}, [%r2];
        {ROW} st.global.v4.b32 [%d10], {words};"""
    given = np.array([[fragment(matrix, lane) for matrix in MATRICES] for lane in LANES], np.uint32)
    run(body, given, out, shared=512)
    wanted = MATRICES.swapaxes(1, 2) if transposed else MATRICES
    assert (out == wanted).all()


def test_a_matrix_is_read_by_all_lanes_of_its_warp() -> None:
    """So only a barrier orders the lane that stored a row with the other lanes."""
    load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r2];"
    with pytest.raises(SharedRace, match="written by thread 0,"):
        run(FILL + load, MATRICES.reshape(-1).copy(), shared=512)
    again = "st.shared.v4.b32 [%r2], {%r10, %r11, %r12, %r13};"
    with pytest.raises(SharedRace, match="read by another"):
        run(FILL + "bar.warp.sync -1;" + load + again, MATRICES.reshape(-1).copy(), shared=512)


def test_a_warp_multiplies_together_or_not_at_all() -> None:
    body = "setp.lt.u32 %p1, {0}, 9; @%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{{out}}}, [0];"
    with pytest.raises(InactiveLane, match=r"thread 9 .* does not take part"):
        compute(body, np.arange(32, dtype=np.uint32), shared=512)
