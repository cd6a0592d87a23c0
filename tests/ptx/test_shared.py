"""Shared memory of the PTX executor refuses every program whose result a GPU might change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ptx import Fault, Traffic, Units, UnsupportedPtx
from tests.ptx.errors import (
    DivergentBarrier,
    EarlyRead,
    Misaligned,
    OutOfBounds,
    SharedRace,
    UnwrittenShared,
)
from tests.ptx.snippets import run

# Each of 64 threads has a place of four bytes at %r2, and its neighbour's place is at %r3; %d9 is
# the thread's place in the first array.
PLACES = """
    shl.b32 %r2, %r0, 2;
    xor.b32 %r3, %r2, {distance};
    mul.wide.u32 %d8, %r0, 4;
    add.s64 %d9, %d0, %d8;
"""
STORE = "st.shared.b32 [%r2], %r0;"
LOAD = "ld.shared.b32 %r10, [%r3];"
OUT = "st.global.b32 [%d9], %r10;"


def exchange(*lines: str, distance: int = 4, **options: Any) -> tuple[list[int], Traffic]:
    """What 64 threads read after neighbours at a distance in bytes wrote their numbers."""
    out = np.zeros(64, np.uint32)
    body = PLACES.format(distance=distance) + "\n".join([*lines, OUT])
    traffic = run(body, out, threads=64, shared=256, **options)
    return out.tolist(), traffic


def refuse(kind: type[Fault], match: str, *lines: str, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        exchange(*lines, **options)


BARRIER, WARP_BARRIER = "bar.sync 0;", "bar.warp.sync -1;"


def test_threads_exchange_numbers_across_a_barrier() -> None:
    for distance in (4, 128):
        got, traffic = exchange(STORE, BARRIER, LOAD, distance=distance)
        assert got == [thread ^ distance // 4 for thread in range(64)]
        assert traffic.barriers == 1
        assert traffic.shared_bytes == 2 * 256
    got, _ = exchange(STORE, "barrier.sync.aligned 0;", LOAD)
    assert got[:2] == [1, 0]


def test_a_missing_barrier_is_a_race_between_two_named_instructions() -> None:
    with pytest.raises(SharedRace) as caught:
        exchange(STORE, LOAD, distance=128)
    assert "ld.shared.b32 %r10, [%r3]: thread 0" in str(caught.value)
    assert "written by thread 32, with no barrier since" in str(caught.value)
    assert "st.shared.b32 [%r2], %r0" in str(caught.value)
    # Also within a warp, whose threads need not run in lockstep.
    refuse(SharedRace, "written by thread 1,", STORE, LOAD)
    refuse(SharedRace, "written by", STORE, "shfl.sync.idx.b32 %r4, %r0, 0, 31, -1;", LOAD)


def test_a_barrier_of_warps_orders_the_threads_of_a_warp_alone() -> None:
    got, _ = exchange(STORE, WARP_BARRIER, LOAD)
    assert got[:4] == [1, 0, 3, 2]
    refuse(SharedRace, "written by", STORE, WARP_BARRIER, LOAD, distance=128)


def test_a_number_must_be_read_before_another_thread_replaces_it() -> None:
    again = "st.shared.b32 [%r3], %r0;"
    for distance in (4, 128):
        refuse(SharedRace, "read by another", STORE, BARRIER, "ld.shared.b32 %r10, [%r2];", again,
               distance=distance)  # fmt: skip
        exchange(STORE, BARRIER, LOAD, BARRIER, again, distance=distance)
    # The thread that read the number may replace it.
    exchange(STORE, BARRIER, "ld.shared.b32 %r10, [%r2]; st.shared.b32 [%r2], %r10;")
    # But not if another thread has read it too, even if that was not the last read.
    both = "ld.shared.b32 %r10, [%r3]; ld.shared.b32 %r10, [%r2]; st.shared.b32 [%r2], %r10;"
    refuse(SharedRace, "read by another", STORE, BARRIER, both)
    refuse(SharedRace, "read by another", STORE, BARRIER, both, distance=128)


def test_two_threads_may_not_write_to_one_place() -> None:
    same = "shr.u32 %r4, %r2, {}; shl.b32 %r4, %r4, 2; st.shared.b32 [%r4], {};"
    everyone = "mov.b32 %r10, 0;"
    # Thread 32 and thread 0, in one instruction.
    refuse(SharedRace, "as another warp does", "and.b32 %r4, %r2, 124; st.shared.b32 [%r4], %r0;",
           everyone)  # fmt: skip
    # For either winner: thread 5 stores another number than the other threads of both warps.
    fifth = "setp.eq.u32 %p1, %r0, 5; selp.b32 %r4, 1, 0, %p1; st.shared.b32 [0], %r4;"
    for units in Units:
        refuse(SharedRace, "as another warp does", fifth, everyone, units=units)
    # Storing the same number is harmless: layouts with copies do that.
    exchange(same.format(3, 7), everyone)
    # In two instructions.
    twice = "st.shared.b32 [%r3], %r0;"
    for distance in (4, 128):
        refuse(SharedRace, "written by thread", STORE, twice, everyone, distance=distance)
    refuse(SharedRace, "written by", STORE, WARP_BARRIER, twice, everyone, distance=128)
    exchange(STORE, WARP_BARRIER, twice, everyone, distance=4)


def test_of_a_warps_conflicting_stores_either_may_win_and_they_are_counted() -> None:
    conflict = "and.b32 %r4, %r2, 0xFFFFFF80; st.shared.b32 [%r4], %r0;"
    read = "and.b32 %r5, %r2, 0xFFFFFF80; ld.shared.b32 %r10, [%r5];"
    for units, winner in ((Units.NEAREST, 31), (Units.UP, 31), (Units.DOWN, 0)):
        got, traffic = exchange(conflict, BARRIER, read, units=units)
        assert got[0] == winner
        assert got[63] == 32 + winner
        assert traffic.conflicting_stores == 62


def test_shared_memory_must_be_written_before_it_is_read() -> None:
    refuse(UnwrittenShared, "thread 0 .* at 4, which nobody has written", LOAD)
    half = "setp.lt.u32 %p1, %r0, 40; @%p1 st.shared.b32 [%r2], %r0;"
    refuse(UnwrittenShared, "thread 40 .* at 164,", half, BARRIER, LOAD)
    # Each block has its own.
    first = "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.b32 [%r2], %r0;"
    refuse(UnwrittenShared, r"block \(1, 0, 0\)", first, BARRIER, LOAD, blocks=2)


def test_shared_memory_ends_where_the_launch_says_and_vectors_are_aligned() -> None:
    refuse(OutOfBounds, "thread 63 .* at 256, beyond", "add.s32 %r2, %r2, 4;", STORE)
    refuse(Misaligned, "8 bytes of shared memory at 4", "st.shared.v2.b32 [%r2], {%r0, %r0};")


def test_a_kernel_may_declare_its_shared_memory_itself() -> None:
    declared = ".shared .align 8 .b8 first[6]; .shared .b32 second[64];"
    through = "mov.u32 %r5, second; add.s32 %r2, %r2, %r5; add.s32 %r3, %r3, %r5;"
    got, _ = exchange(declared, through, STORE, BARRIER, LOAD)
    assert got[:4] == [1, 0, 3, 2]
    # The variables end at 264. The 256 bytes that the launch adds begin at the next multiple of 16.
    refuse(OutOfBounds, "thread 63 .* at 528, beyond shared memory of 528 bytes", declared, through,
           "add.s32 %r2, %r2, 268;", STORE)  # fmt: skip
    for unclear in (".shared .b32 table[4][8];", ".shared .b32 one[4]; .shared .b64 one;"):
        with pytest.raises(UnsupportedPtx, match="variables in shared memory"):
            exchange(unclear)


def test_all_threads_of_a_block_must_reach_the_same_barrier() -> None:
    some = "setp.lt.u32 %p1, %r0, {}; @%p1 bar.sync 0; mov.b32 %r10, 0;"
    refuse(DivergentBarrier, "thread 5 .* does not reach the barrier", some.format(5))
    refuse(DivergentBarrier, "thread 32", some.format(32))
    jump = "setp.lt.u32 %p1, %r0, 40; @%p1 bra SKIP; bar.sync 0; SKIP: mov.b32 %r10, 0;"
    refuse(DivergentBarrier, "thread 0", jump)
    # Barriers do not wait for exited threads, and blocks are independent.
    exchange("mov.b32 %r10, 0; setp.lt.u32 %p1, %r0, 40; @%p1 ret; bar.sync 0;")
    exchange("mov.b32 %r10, 0; setp.eq.u32 %p1, %r1, 1; @%p1 bra SKIP; bar.sync 0; SKIP:", blocks=2)


# Copies each thread's four bytes of the first array.
COPY = "cp.async.ca.shared.global [%r2], [%d9], 4;"
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"


def copied(*lines: str, distance: int = 4) -> list[int]:
    a, out = np.arange(100, 164, dtype=np.uint32), np.zeros(64, np.uint32)
    last = "add.s64 %d10, %d1, %d8; st.global.b32 [%d10], %r10;"
    body = PLACES.format(distance=distance) + "\n".join([*lines, last])
    traffic = run(body, a, out, threads=64, shared=256)
    assert traffic.loads[4] == 64
    return out.tolist()


def test_a_copy_arrives_after_its_wait_and_a_barrier() -> None:
    wanted = [100 + (thread ^ 1) for thread in range(64)]
    assert copied(COPY, COMMIT, WAIT, BARRIER, LOAD) == wanted
    assert copied(COPY, "cp.async.wait_all;", BARRIER, LOAD) == wanted
    # The thread that made the copy needs only the wait.
    assert copied(COPY, COMMIT, WAIT, "ld.shared.b32 %r10, [%r2];")[:2] == [100, 101]


def test_a_copy_that_was_not_waited_for_must_not_be_used() -> None:
    own = "ld.shared.b32 %r10, [%r2];"
    for early in ([], [COMMIT], [COMMIT, BARRIER], [COMMIT, "cp.async.wait_group 1;", BARRIER]):
        with pytest.raises(EarlyRead, match="copied to by thread 0"):
            copied(COPY, *early, own)
        with pytest.raises(EarlyRead, match="thread"):
            copied(COPY, *early, STORE, "mov.b32 %r10, 0;")
    with pytest.raises(EarlyRead):  # the copy belongs to no group yet
        copied(COPY, WAIT, BARRIER, own)
    with pytest.raises(SharedRace, match="written by thread 1,"):
        copied(COPY, COMMIT, WAIT, LOAD)


def test_two_warps_may_not_copy_different_numbers_to_one_place() -> None:
    place = "and.b32 %r4, %r2, 124; cvt.u64.u32 %d10, %r4; add.s64 %d10, %d0, %d10;"
    copy = "cp.async.ca.shared.global [%r4], [{}], 4;"
    # The error comes with the copy itself, wherever the threads wait.
    with pytest.raises(SharedRace, match=r"copies 4 bytes .* as another warp does"):
        copied(place, copy.format("%d9"))
    # Copying the same numbers is harmless.
    read = "ld.shared.b32 %r10, [%r4];"
    got = copied(place, copy.format("%d10"), COMMIT, WAIT, BARRIER, read)
    assert got == [100 + thread % 32 for thread in range(64)]


def test_of_a_warps_conflicting_copies_either_may_win_and_they_are_counted() -> None:
    place = "and.b32 %r4, %r2, 0xFFFFFF80;"
    copy = f"{place} cp.async.ca.shared.global [%r4], [%d9], 4;"
    a = np.arange(100, 164, dtype=np.uint32)
    read = f"{COMMIT} {WAIT} {BARRIER} ld.shared.b32 %r10, [%r4]; st.global.b32 [%d9], %r10;"
    for units, winner in ((Units.NEAREST, 131), (Units.UP, 131), (Units.DOWN, 100)):
        out = a.copy()
        body = PLACES.format(distance=4) + copy + read
        traffic = run(body, out, threads=64, shared=256, units=units)
        assert out.tolist() == [winner] * 32 + [32 + winner] * 32
        assert traffic.conflicting_stores == 62


def test_a_wait_leaves_the_last_groups_under_way() -> None:
    second = "add.s32 %r4, %r2, 256; cp.async.ca.shared.global [%r4], [%d9], 4;"
    a = np.arange(64, dtype=np.uint32)

    def both(wait: str, read: str) -> None:
        body = PLACES.format(distance=4) + COPY + COMMIT + second + COMMIT + wait
        run(f"{body} bar.sync 0; ld.shared.b32 %r10, [{read}];", a, threads=64, shared=512)

    both("cp.async.wait_group 1;", "%r2")
    both("cp.async.wait_group 0;", "%r4")
    with pytest.raises(EarlyRead):
        both("cp.async.wait_group 1;", "%r4")


def test_a_buffer_must_be_read_before_it_is_copied_to() -> None:
    with pytest.raises(SharedRace, match="read by another thread"):
        copied(STORE, BARRIER, LOAD, COPY, COMMIT, WAIT)
    copied(STORE, BARRIER, LOAD, BARRIER, COPY, COMMIT, WAIT)


def test_a_copy_of_fewer_bytes_fills_up_with_zeros_and_reads_no_more() -> None:
    a, out = np.arange(1, 17, dtype=np.uint32), np.zeros(4 * 32, np.uint32)
    body = """
        shl.b32 %r2, %r0, 4; mul.wide.u32 %d8, %r0, 16; add.s64 %d9, %d0, %d8;
        add.s64 %d10, %d1, %d8;
        setp.lt.u32 %p1, %r0, 3; selp.b32 %r4, 16, 0, %p1;
        setp.eq.u32 %p2, %r0, 3; selp.b32 %r4, 8, %r4, %p2;
        cp.async.cg.shared.global [%r2], [%d9], 16, %r4;
        cp.async.wait_all;
        ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r2];
        st.global.v4.b32 [%d10], {%r10, %r11, %r12, %r13};"""
    traffic = run(body, a[:14].copy(), out, shared=512)
    assert out.tolist() == [*range(1, 15), *[0] * (128 - 14)]
    assert traffic.bytes_loaded == 56
