"""The three bounds of a kernel's time, against sums by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.bounds.bound import bound, resident
from bench.bounds.builds import Binary
from bench.bounds.gpus import GPUS, Gpu

# Ten multiprocessors at 1 GHz, 1 TB/s, and 500 clocks to memory.
SMALL = Gpu("small", 10, 1e9, 1e12, latency_clocks=500)


def binary(code: dict[str, int], registers: int = 32, shared: int = 0) -> Binary:
    names = [name for name, count in code.items() for _ in range(count)] + ["EXIT"]
    lines = [f"        /*{16 * i:04x}*/                   {n} ;" for i, n in enumerate(names)]
    return Binary("", registers, 0, 0, 0, shared, Counter(names), "\n".join(lines))


def test_a_kernel_that_only_copies_is_bound_by_bandwidth() -> None:
    of = bound(binary({"LDG.E.128": 1, "STG.E.128": 1}), SMALL, 100_000, 4, 100_000 * 128 * 32)
    assert of.by == "bandwidth"
    assert of.seconds == of.bandwidth == pytest.approx(100_000 * 128 * 32 / 1e12)


def test_a_kernel_with_many_instructions_is_bound_by_issue() -> None:
    # A multiprocessor has 100 of 1,000 programs, each of four warps with 401 instructions, and
    # issues four of these a clock.
    of = bound(binary({"FFMA": 400}), SMALL, 1000, 4, 4096)
    assert (of.by, of.unit, of.instructions) == ("issue", "all instructions", 401)
    assert of.seconds == pytest.approx(100 * 4 * 401 / 4 * 1e-9)


@pytest.mark.parametrize(
    ("code", "unit", "clocks"),
    [
        ({"MUFU.EX2": 100}, "special functions", 200),
        ({"IMAD.WIDE.U32": 100}, "integer products", 50),
        ({"LOP3.LUT": 100, "FSEL": 20}, "logic and comparisons", 60),
        ({"FFMA": 100, "IMAD": 20}, "all instructions", 121 / 4),
        ({"SHFL.BFLY": 100}, "shuffles", 100),
        # 16 bytes a lane are 512 a warp, of 128 a clock.
        ({"LDG.E.128": 50, "LDS": 10, "STS.64": 10}, "memory accesses", 230),
    ],
)
def test_the_busiest_unit_bounds_the_issue(code: dict[str, int], unit: str, clocks: float) -> None:
    of = bound(binary(code), SMALL, 10, 1, 0)
    assert of.unit == unit
    assert of.issue == pytest.approx(clocks * 1e-9)


def test_the_busiest_multiprocessor_counts() -> None:
    one, more = (bound(binary({"FFMA": 400}), SMALL, n, 1, 0) for n in (10, 11))
    assert more.issue == pytest.approx(2 * one.issue)


def test_programs_that_do_not_fit_at_once_wait_for_memory_in_turn() -> None:
    # 16 programs of four warps fit on each of ten multiprocessors.
    fit, more = (bound(binary({"LDG.E": 1}), SMALL, n, 4, 0) for n in (160, 161))
    assert (fit.by, fit.resident) == ("latency", 64)
    assert fit.latency == pytest.approx((500 + 2) * 1e-9)
    assert more.latency == pytest.approx((1000 + 2) * 1e-9)


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "programs"),
    [
        (32, 0, 4, 16),  # 64 warps
        (40, 0, 4, 12),  # 5,120 registers a program
        (41, 0, 4, 10),  # in units of 256 a warp: 6,144
        (255, 0, 8, 1),
        (80, 0, 1, 24),  # 25 warps, of which a multiprocessor's four parts hold six each
        (32, 0, 1, 32),  # a multiprocessor takes no more programs
        (32, 100 << 10, 4, 2),  # of 228 KiB, with one more for each program
    ],
)
def test_a_multiprocessor_holds_what_cudas_occupancy_calculator_says(
    registers: int, shared: int, num_warps: int, programs: int
) -> None:
    assert resident(binary({}, registers, shared), GPUS["h100"], num_warps) == programs


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a kernel of which a program fits"):
        resident(binary({}, shared=228 << 10), GPUS["h100"], 4)
