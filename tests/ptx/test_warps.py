"""Warp-wide instructions, and divergent threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptx import GlobalMemory, execute, parse
from tests.ptx.errors import DivergentBarrier, InactiveLane, Trap
from tests.ptx.snippets import compute, module, run

LANES = np.arange(64, dtype=np.uint32)
VALUES = LANES * 3 + 1
OUT = """
    mul.wide.u32 %d8, %r0, 4; add.s64 %d9, %d0, %d8; st.global.b32 [%d9], %r10;"""


def threads(body: str, **options: Any) -> list[int]:
    """%r10 of each of 64 threads."""
    out = np.zeros(64, np.uint32)
    run(body + OUT, out, threads=64, **options)
    return out.tolist()


def shuffled(mode: str, b: int, c: int) -> tuple[list[int], list[int]]:
    """Each lane's source, and whether it is inside, by section 9.7.9.6 of the PTX ISA."""
    sources, inside = [], []
    for lane in range(32):
        segment, clamp = c >> 8 & 31, c & 31
        high = (lane & segment) | (clamp & ~segment)
        low = lane & segment
        if mode == "up":
            j, ok = lane - b, lane - b >= high
        elif mode == "down":
            j, ok = lane + b, lane + b <= high
        elif mode == "bfly":
            j, ok = lane ^ b, lane ^ b <= high
        else:
            j = low | (b & ~segment)
            ok = j <= high
        sources.append(j if ok else lane)
        inside.append(int(ok))
    return sources, inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0, 16, 24])
@pytest.mark.parametrize("b", [0, 1, 5, 16])
def test_shuffles(mode: str, segment: int, b: int) -> None:
    c = segment << 8 | (0 if mode == "up" else 31)
    sources, inside = shuffled(mode, b, c)
    body = f"shfl.sync.{mode}.b32 {{out}}|%p1, {{0}}, {b}, {c}, -1;"
    of_two_warps = [VALUES[s] for s in sources] + [VALUES[32 + s] for s in sources]
    assert compute(body, VALUES).tolist() == of_two_warps
    predicate = compute(f"{body} selp.b32 {{out}}, 1, 0, %p1;", VALUES)
    assert predicate.tolist() == inside * 2


def test_a_shuffle_may_read_another_lane_in_each() -> None:
    body = "xor.b32 %r60, %r0, 21; shfl.sync.idx.b32 {out}, {0}, %r60, 31, -1;"
    assert (compute(body, VALUES) == VALUES[LANES ^ 21]).all()


def test_votes_and_reductions_are_of_a_warp() -> None:
    setp = "setp.lt.u32 %p1, {0}, 40;"
    ballot = compute(f"{setp} vote.sync.ballot.b32 {{out}}, %p1, -1;", LANES)
    assert ballot.tolist() == [2**32 - 1] * 32 + [255] * 32
    for mode, wanted in (("all", [1, 0]), ("any", [1, 1]), ("uni", [1, 0])):
        body = f"{setp} vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 {{out}}, 1, 0, %p2;"
        assert compute(body, LANES).tolist() == np.repeat(wanted, 32).tolist()
    reduced = {"add": VALUES[:32].sum(), "max": VALUES[31], "min": VALUES[0]}
    for name, number in reduced.items():
        out = compute(f"redux.sync.{name}.u32 {{out}}, {{0}}, -1;", VALUES)
        assert (out[:32] == number).all()
    every = compute("redux.sync.or.b32 {out}, {0}, -1;", LANES)
    assert every.tolist() == [31] * 32 + [63] * 32


def test_lanes_that_do_not_take_part_are_missed() -> None:
    some = "mov.b32 %r10, 0; setp.lt.u32 %p1, %r0, 20; "
    shuffle = "@%p1 shfl.sync.bfly.b32 %r10, %r0, {}, 31, {};"
    with pytest.raises(InactiveLane, match=r"thread 0 .* names lane 31 of its warp"):
        threads(some + shuffle.format(1, -1))
    # A mask of the lanes that take part works if they read only from each other.
    few = "setp.lt.u32 %p1, %r0, 16;"
    assert threads(some + few + shuffle.format(1, 0xFFFF))[:4] == [1, 0, 3, 2]
    with pytest.raises(InactiveLane, match=r"thread 16 .* reads from a lane that does not"):
        threads(some + shuffle.format(4, 0xFFFFF))
    with pytest.raises(InactiveLane, match=r"thread 16 .* is not in the member mask"):
        threads(some + shuffle.format(1, 0xFFFF))
    for line in ("vote.sync.ballot.b32 %r10, %p1, -1;", "bar.warp.sync -1;"):
        with pytest.raises(InactiveLane):
            threads(some + "@%p1 " + line)
    assert threads(some + "@%p1 activemask.b32 %r10;")[0] == 0xFFFFF


LOOP = """
    mov.b32 %r10, 0; mov.b32 %r11, {start};
LOOP:
    setp.ge.u32 %p1, %r11, %r0;
    @%p1 bra DONE;
    add.s32 %r10, %r10, %r11;
    add.s32 %r11, %r11, 1;
    bra.uni LOOP;
DONE:"""


def test_threads_leave_a_loop_one_by_one() -> None:
    assert threads(LOOP.format(start=0)) == [t * (t - 1) // 2 for t in range(64)]


def test_threads_that_went_apart_meet_again() -> None:
    meet = "shfl.sync.bfly.b32 %r10, %r10, 1, 31, -1; bar.sync 0;"
    sums = [t * (t - 1) // 2 for t in range(64)]
    assert threads(LOOP.format(start=0) + meet) == [sums[t ^ 1] for t in range(64)]
    nested = """
        mov.b32 %r10, 0;
        and.b32 %r11, %r0, 1; setp.eq.u32 %p1, %r11, 0;
        @%p1 bra EVEN;
        setp.gt.u32 %p2, %r0, 30;
        @%p2 bra HIGH;
        mov.b32 %r10, 1; bra JOIN;
    HIGH: mov.b32 %r10, 2;
    JOIN: add.s32 %r10, %r10, 10; bra END;
    EVEN: mov.b32 %r10, 3;
    END: bar.sync 0;"""
    assert threads(nested) == [3 if t % 2 == 0 else 12 if t > 30 else 11 for t in range(64)]


def test_what_a_warp_does_apart_is_counted() -> None:
    out = np.zeros(64, np.uint32)
    half = """
        setp.lt.u32 %p1, %r0, {split}; mov.b32 %r10, 0;
        @%p1 bra END;
        mov.b32 %r10, 1; mov.b32 %r10, 2; mov.b32 %r10, 3;
    END:"""
    together = run(half.format(split=32) + OUT, out, threads=64)
    apart = run(half.format(split=16) + OUT, out, threads=64)
    assert together.divergent == 0
    assert apart.divergent == 3
    assert apart.instructions == together.instructions + 3


def test_threads_that_have_exited_do_nothing() -> None:
    out = np.full(64, 9, np.uint32)
    run("mov.b32 %r10, 1; setp.lt.u32 %p1, %r0, 40; @%p1 ret;" + OUT, out, threads=64)
    assert out.tolist() == [9] * 40 + [1] * 24


def test_a_trap_is_an_error() -> None:
    with pytest.raises(Trap, match="thread 7 "):
        threads("mov.b32 %r10, 1; setp.eq.u32 %p1, %r0, 7; @%p1 trap;")


def test_registers_of_an_inner_scope_are_its_own() -> None:
    body = """
        mov.b32 %r10, 5;
        { .reg .b32 %r10, t<3>; mov.b32 %r10, 7; mov.b32 t2, %r10; add.s32 %r11, t2, 1; }
        add.s32 %r10, %r10, %r11;"""
    assert threads(body)[0] == 13


def test_blocks_are_numbered_in_three_dimensions() -> None:
    grid = (5, 3, 2)
    body = """
        ld.param.u64 %d0, [p0];
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z;
        mov.u32 %r4, %nctaid.x; mov.u32 %r5, %nctaid.y;
        mad.lo.s32 %r6, %r3, %r5, %r2; mad.lo.s32 %r6, %r6, %r4, %r1;
        mul.wide.u32 %d1, %r6, 4; add.s64 %d0, %d0, %d1;
        mad.lo.s32 %r7, %r2, 10, %r1; mad.lo.s32 %r7, %r3, 100, %r7;
        mov.u32 %r8, %tid.x; setp.eq.u32 %p1, %r8, 0;
        @%p1 st.global.b32 [%d0], %r7; ret;"""
    out = np.zeros(30, np.uint32)
    memory = GlobalMemory()
    memory.add(4096, out.view(np.uint8))
    execute(parse(module(body, ["u64"])), grid, [4096], memory)
    assert out.reshape(2, 3, 5).tolist() == [
        [[100 * z + 10 * y + x for x in range(5)] for y in range(3)] for z in range(2)
    ]


def test_a_barrier_in_a_loop_that_threads_leave_early_is_refused() -> None:
    with pytest.raises(DivergentBarrier):
        threads(LOOP.format(start=0).replace("bra.uni LOOP;", "bar.sync 0; bra.uni LOOP;"))
