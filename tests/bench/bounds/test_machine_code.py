"""Instructions that a warp executes, read from listings of machine code."""

from __future__ import annotations

import pytest
import torch

from bench.bounds.builds import build, launches, reason_to_skip
from bench.bounds.machine_code import executed
from vaez_kernels import bernoulli_log_prob, interpreting
from vaez_kernels.backend import triton

STRAIGHT = """
.text.kernel:
        /*0000*/                   S2R R7, SR_TID.X ;
        /*0010*/                   LDG.E.128 R4, desc[UR14][R4.64] ;
        /*0020*/              @!P0 LDG.E.U8 R3, desc[UR14][R2.64+0x8] ;
        /*0030*/                   FFMA R4, R4, R4, R3 ;
        /*0040*/                   NOP ;
        /*0050*/              @!P1 EXIT ;
        /*0060*/                   STS.64 [R8], R4 ;
        /*0070*/                   STG.E.64 desc[UR4][R6.64], R4 ;
        /*0080*/                   EXIT ;
.L_x_0:
        /*0090*/                   BRA `(.L_x_0);
        /*00a0*/                   NOP ;
"""


def test_code_without_a_loop_is_executed_once() -> None:
    found = executed(STRAIGHT, bytes_per_thread=1e6)
    assert found.instructions == {"S2R": 1, "LDG": 2, "FFMA": 1, "EXIT": 2, "STS": 1, "STG": 1}
    assert found.bytes == 16 + 1 + 8
    assert found.accessed == found.bytes + 8  # of shared memory


def looping(loads: int) -> str:
    """A loop that an unrolling compiler made of one with a load, two products and a branch."""
    body = "".join(
        "        /*0020*/                   LDG.E R4, desc[UR14][R4.64] ;\n"
        "        /*0030*/                   FFMA R4, R4, R4, R3 ;\n"
        "        /*0040*/                   FFMA R4, R4, R4, R3 ;\n"
        for _ in range(loads)
    )
    return (
        "        /*0000*/                   LDG.E.64 R4, desc[UR14][R4.64] ;\n"
        f".L_x_3:\n{body}"
        "        /*0050*/               @P0 BRA `(.L_x_3) ;\n"
        "        /*0060*/                   STG.E.64 desc[UR4][R6.64], R4 ;\n"
        "        /*0070*/                   EXIT ;\n"
    )


@pytest.mark.parametrize("unrolled", [1, 2, 4])
def test_a_loop_runs_until_its_thread_has_moved_its_bytes(unrolled: int) -> None:
    # Eight iterations of four bytes, and 16 bytes outside.
    found = executed(looping(unrolled), bytes_per_thread=8 * 4 + 16)
    assert found.bytes == 48
    branches = 8 / unrolled
    wanted = {"LDG": 9, "FFMA": 16, "BRA": branches, "STG": 1, "EXIT": 1}
    assert found.instructions == wanted


def test_a_part_of_an_iteration_costs_a_whole_one() -> None:
    # 18 bytes in the loop are five iterations of four.
    assert executed(looping(1), bytes_per_thread=18 + 16).instructions["FFMA"] == 10


def test_a_loop_runs_at_least_once() -> None:
    assert executed(looping(2), bytes_per_thread=0.0).instructions["FFMA"] == 4


@pytest.mark.parametrize("listing", ["", "        /*0000*/                   NOP ;\n"])
def test_a_listing_without_an_end_is_refused(listing: str) -> None:
    with pytest.raises(ValueError, match="expected a listing of nvdisasm that ends with EXIT"):
        executed(listing, 4.0)


@pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile")
@pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels")
def test_the_iterations_of_a_real_loop_are_found() -> None:
    """A program of a wide likelihood takes 4,096 pixels, 1,024 at a time, in 32 threads."""
    if reason := reason_to_skip("sm_90"):
        pytest.skip(reason)
    x = torch.zeros(8, 1 << 16, dtype=torch.uint8)
    (launched,) = launches(lambda: bernoulli_log_prob(torch.zeros(1, *x.shape), x)).values()
    listing = build(launched.what, "sm_90").listing
    # Four bytes a logit and one a target, and a sum that every thread of a warp would store.
    found = executed(listing, bytes_per_thread=4096 * 5 / 32 + 4)
    once = executed(listing, bytes_per_thread=0.0)
    pixels = 4096 / 32
    assert found.bytes == pixels * 5 + 4
    # An exponential a pixel, and no other special function.
    assert found.instructions["MUFU"] == pixels
    assert once.instructions["MUFU"] == pixels / 4
