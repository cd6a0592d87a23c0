"""The number of threads of a block: what the PTX requires and what a launch sets."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import GlobalMemory, execute, parse
from tests.ptx.snippets import module
from tests.rehearsal import results
from tests.rehearsal.stand_in import Launch

BODY = """
    ld.param.u64 %d0, [p0];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ntid.x;
    mul.wide.u32 %d1, %r0, 4;
    add.s64 %d0, %d0, %d1;
    st.global.b32 [%d0], %r1;
    ret;
"""
EXACT = module(BODY, ["u64"], 64)
AT_MOST = EXACT.replace(".reqntid", ".maxntid")


def test_a_required_block_must_be_the_launchs() -> None:
    program = parse(EXACT)
    assert program.with_block((64,)) == program.with_block((64, 1, 1)) == program
    for block in ((32,), (96,), (32, 2)):
        with pytest.raises(ValueError, match="kernel requires a block of"):
            program.with_block(block)


def test_of_a_largest_block_fewer_threads_may_run() -> None:
    out = np.zeros(64, np.uint32)
    memory = GlobalMemory()
    memory.add(4096, out.view(np.uint8))
    execute(parse(AT_MOST).with_block((32,)), (1,), [4096], memory)
    assert out.tolist() == [32] * 32 + [0] * 32
    with pytest.raises(ValueError, match="at most 64 threads, got 96"):
        parse(AT_MOST).with_block((96,))
    for block in ((33,), (0,)):
        with pytest.raises(ValueError, match="whole warps"):
            parse(AT_MOST).with_block(block)


def test_a_rehearsed_launch_of_another_block_fails() -> None:
    """The block is checked first: this launch has no arguments."""
    ptx = EXACT.encode()
    for capturing in (False, True):
        with pytest.raises(ValueError, match=r"requires a block of \(64, 1, 1\), got \(32, 1, 1\)"):
            results.execute(Launch(ptx, "kernel", (1, 1, 1), (32, 1, 1), 0, 0, capturing))
