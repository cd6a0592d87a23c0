"""Global memory of the PTX executor: accesses, their counts, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import GlobalMemory, execute, parse
from tests.ptx.errors import Misaligned, OutOfBounds, UnsetRegister
from tests.ptx.snippets import INPUTS, compute, module, run

# %d9 and %d10 are the addresses of the thread's 16-byte element in the first and second array.
AT_16 = "mul.wide.u32 %d8, %r0, 16; add.s64 %d9, %d0, %d8; add.s64 %d10, %d1, %d8;"


@pytest.mark.parametrize(
    ("width", "kind", "registers"),
    [
        (4, "v4.b32", "{%r10, %r11, %r12, %r13}"),
        (8, "v2.b64", "{%d20, %d21}"),
        (2, "v4.b16", "{%h1, %h2, %h3, %h4}"),
        (4, "b32", "%r10"),
        (1, "v2.b8", "{%h1, %h2}"),
    ],
)
def test_vectors_move_their_bytes_and_are_counted(width: int, kind: str, registers: str) -> None:
    count = int(kind[1]) if kind[0] == "v" else 1
    a = np.random.default_rng(0).integers(0, 256, 16 * 64, dtype=np.uint8)
    out = np.zeros_like(a)
    body = f"{AT_16} ld.global.{kind} {registers}, [%d9]; st.global.{kind} [%d10], {registers};"
    traffic = run(body, a, out, threads=64)
    moved = width * count
    wanted = np.zeros((64, 16), np.uint8)
    wanted[:, :moved] = a.reshape(64, 16)[:, :moved]
    assert (out.reshape(64, 16) == wanted).all()
    assert traffic.loads == {moved: 64}
    assert traffic.stores == {moved: 64}
    assert traffic.bytes_loaded == traffic.bytes_stored == 64 * moved


def test_threads_that_are_predicated_off_touch_and_count_nothing() -> None:
    a, out = np.arange(32, dtype=np.uint32), np.full(32, 7, np.uint32)
    body = """
        setp.lt.u32 %p1, %r0, 5;
        mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8; add.s64 %d10, %d1, %d8;
        @%p1 ld.global.b32 %r10, [%d9];
        @%p1 st.global.b32 [%d10], %r10;"""
    traffic = run(body, a[:5].copy(), out)
    assert out.tolist() == [0, 1, 2, 3, 4] + [7] * 27
    assert traffic.loads == traffic.stores == {4: 5}
    assert traffic.divergent == 0


def test_an_access_beyond_a_region_names_instruction_thread_address_and_region() -> None:
    body = "mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8; ld.global.b32 %r10, [%d9+4];"
    with pytest.raises(OutOfBounds) as caught:
        run(body, np.zeros(32, np.uint32))
    assert str(caught.value) == (
        "line 16: ld.global.b32 %r10, [%d9+4]: thread 31 of block (0, 0, 0) reads 4 bytes at "
        "0x100080, beyond array 0 [0x100000, 0x100080)"
    )


def test_an_access_must_lie_in_one_region() -> None:
    memory = GlobalMemory()
    memory.add(4096, np.zeros(24, np.uint8), "first")
    memory.add(4120, np.zeros(40, np.uint8), "second")
    load = "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d0];"
    program = parse(module(f"ld.param.u64 %d0, [p0]; {load} ret;", ["u64"]))
    execute(program, (1,), [4096], memory)
    execute(program, (1,), [4128], memory)
    with pytest.raises(OutOfBounds, match="beyond first"):
        execute(program, (1,), [4112], memory)
    with pytest.raises(ValueError, match=r"third \[.*\) overlaps first"):
        memory.add(4090, np.zeros(10, np.uint8), "third")


def test_lanes_may_read_from_different_regions() -> None:
    a, b, out = np.full(32, 1, np.uint32), np.full(32, 2, np.uint32), np.zeros(32, np.uint32)
    body = """
        mul.wide.u32 %d8, %r0, 4;
        setp.lt.u32 %p1, %r0, 7;
        selp.b64 %d9, %d0, %d1, %p1;
        add.s64 %d9, %d9, %d8; add.s64 %d10, %d2, %d8;
        ld.global.b32 %r10, [%d9]; st.global.b32 [%d10], %r10;"""
    run(body, a, b, out)
    assert out.tolist() == [1] * 7 + [2] * 25


@pytest.mark.parametrize(
    "access", ["ld.global.v2.b32 {%r10, %r11}, [AT];", "st.global.v2.b32 [AT], {%r10, %r11};"]
)
def test_a_vector_must_be_aligned_to_its_size(access: str) -> None:
    body = "mov.b32 %r10, 0; mov.b32 %r11, 0;" + access
    run(body.replace("AT", "%d0+8"), np.zeros(32, np.uint32))
    with pytest.raises(Misaligned, match="8 bytes at 0x100004, which is not aligned"):
        run(body.replace("AT", "%d0+4"), np.zeros(32, np.uint32))


def test_registers_that_were_never_set_are_refused_where_they_matter() -> None:
    a = np.zeros(32, np.uint32)
    with pytest.raises(UnsetRegister, match=r"thread 0 .* uses %r10, which it never set"):
        run("st.global.b32 [%d0], %r10;", a)
    partly = "setp.lt.u32 %p1, %r0, 20; @%p1 mov.b32 %r10, 1; add.s32 %r11, %r10, 1;"
    with pytest.raises(UnsetRegister, match=r"thread 20 .*%r11, computed from %r10, which"):
        run(partly + "st.global.b32 [%d0], %r11;", a)
    run(partly + "@%p1 st.global.b32 [%d0], %r11;", a)
    # An operand that is not chosen may be unset, and so may a register that no lane reads.
    run(partly + "selp.b32 %r12, %r11, 0, %p1; st.global.b32 [%d0], %r12;", a)
    shuffled = "shfl.sync.idx.b32 %r12, %r10, {}, 31, -1; st.global.b32 [%d0], %r12;"
    run(partly + shuffled.format(19), a)
    with pytest.raises(UnsetRegister):
        run(partly + shuffled.format(20), a)
    with pytest.raises(UnsetRegister):
        run(partly + "cvt.u64.u32 %d5, %r10; add.s64 %d5, %d5, %d0; ld.global.b32 %r1, [%d5];", a)
    with pytest.raises(UnsetRegister):
        run(partly + "setp.eq.s32 %p2, %r10, 1; @%p2 mov.b32 %r13, 1;", a)


def test_a_register_that_is_set_again_counts_as_set() -> None:
    body = """
        setp.lt.u32 %p1, %r0, 20;
        @%p1 mov.b32 %r10, 1;
        @!%p1 mov.b32 %r10, 2;
        mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8; st.global.b32 [%d9], %r10;"""
    out = np.zeros(32, np.uint32)
    run(body, out)
    assert out.tolist() == [1] * 20 + [2] * 12


def test_parameters_are_read_by_their_types() -> None:
    out = np.zeros(4, np.uint64)
    memory = GlobalMemory()
    memory.add(INPUTS, out.view(np.uint8))
    body = """
        ld.param.u64 %d0, [p0];
        ld.param.s32 %d1, [p1]; st.global.b64 [%d0], %d1;
        ld.param.f32 %r1, [p2]; cvt.u64.u32 %d2, %r1; st.global.b64 [%d0+8], %d2;
        ld.param.u8 %h1, [p3]; cvt.u64.u16 %d3, %h1; st.global.b64 [%d0+16], %d3;
        ld.param.u64 %d4, [p4]; st.global.b64 [%d0+24], %d4; ret;"""
    program = parse(module(body, ["u64", "u32", "f32", "u8", "u64"]))
    assert [(p.name, p.type, p.size) for p in program.parameters][:3] == [
        ("p0", "u64", 8),
        ("p1", "u32", 4),
        ("p2", "f32", 4),
    ]
    execute(program, (1,), [INPUTS, -5, 1.5, True, bytes(range(8))], memory)
    assert out.tolist() == [2**64 - 5, 0x3FC00000, 1, 0x0706050403020100]
    with pytest.raises(ValueError, match="expected 5 arguments, got 1"):
        execute(program, (1,), [INPUTS], memory)
    with pytest.raises(ValueError, match="does not fit"):
        execute(program, (1,), [INPUTS, 2**32, 1.5, 1, 0], memory)


def test_atomics_update_one_thread_after_the_other() -> None:
    total, old = np.array([10], np.uint32), np.zeros(64, np.uint32)
    body = """
        mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d1, %d8;
        atom.global.gpu.acq_rel.add.u32 %r10, [%d0], 2;
        st.global.b32 [%d9], %r10;"""
    traffic = run(body, total, old, threads=64)
    assert total[0] == 10 + 2 * 64
    assert sorted(old.tolist()) == list(range(10, 138, 2))
    assert traffic.atomics == {4: 64}
    lock = np.zeros(1, np.uint32)
    run("atom.global.acq_rel.gpu.cas.b32 %r10, [%d0], 0, 7; red.global.max.u32 [%d0], %r0;", lock)
    assert lock[0] == 31


def test_narrow_loads_extend_to_their_register() -> None:
    a = np.tile(np.array([255, 128, 3, 0], np.uint8), 8)
    body = "mul.wide.u32 %d8, %r0, 1; add.s64 %d9, %d0, %d8; ld.global.{} {{out}}, [%d9];"
    zeros = compute(body.format("u8"), a, out=np.uint32)
    signs = compute(body.format("s8"), a, out=np.int32)
    assert (zeros == a).all()
    assert (signs == a.view(np.int8)).all()
