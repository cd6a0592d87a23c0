"""The mixture's kernels as GPUs would run them, compiled without one: as test_offline.py.

A program is one warp with 16 draws and 128 components. A turn of the loop over D takes two 128-bit
loads of components and 16 of draws, which a whole warp shares, to 64 terms a thread: a difference,
a product and a fused square each.

Ceilings are what Triton 3.8 gave, named beside them, with a margin of eight registers (one step of
their allocation) and a tenth of the instructions. Triton 3.9 reads the draws in 128 bits, too, and
unrolls more.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels import offline
from tests.kernels.offline import Binary, assert_in_registers, built, ceiling_by_triton
from vaez_kernels import interpreting, mixture
from vaez_kernels.backend import triton

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

DRAWS, COMPONENTS = 1001, 5003  # no multiples of 16, from which Triton could draw conclusions
NVIDIA = [target for target in offline.TARGETS if target.startswith("sm_")]
TERMS = mixture.BLOCK_M * mixture.BLOCK_N // 32  # a thread's


def inputs(D: int, leave_out: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, object]:
    z, mu = torch.zeros(DRAWS, D), torch.zeros(COMPONENTS, D)
    return z, mu, mu, torch.zeros(DRAWS, dtype=torch.int64) if leave_out else None


def forward(D: int, gpu: str, leave_out: bool = False) -> Binary:
    args = inputs(D, leave_out)
    return built(mixture._launch_forward, mixture.mixture_forward_kernel, args, gpu)


def backward(D: int, gpu: str, leave_out: bool = False) -> Binary:
    of_draws = torch.zeros(DRAWS)
    args = (of_draws, *inputs(D, leave_out), of_draws, of_draws)
    return built(mixture._launch_backward, mixture.mixture_backward_kernel, args, gpu)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("gpu", NVIDIA)
def test_forward_reads_128_bits_of_components_at_once(gpu: str, leave_out: bool) -> None:
    binary = forward(128, gpu, leave_out)
    assert_in_registers(binary, 248)  # 240
    assert binary.length <= 2160  # 1750, and 2038 with a component left out
    # mu, 1/σ and the normaliser; narrow are the draws, and the components that they leave out.
    narrow = ceiling_by_triton(mixture.BLOCK_M * (1 + leave_out), from_3_9=0)
    of_draws = ceiling_by_triton(0, from_3_9=mixture.BLOCK_M // 4 * (1 + 2 * leave_out))
    assert binary.count(r"LDG\..*128") == 3 + of_draws
    assert binary.count(r"LDG(?!.*128)") == narrow


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("gpu", NVIDIA)
def test_backward_stays_in_registers(gpu: str, leave_out: bool) -> None:
    # All that a thread can have: 255.
    binary = backward(128, gpu, leave_out)
    assert_in_registers(binary, 255)
    assert binary.length <= ceiling_by_triton(1740, from_3_9=2700)  # 1613, 3.9 unrolls: 2455
    # The weights change hands: once written, once read.
    assert binary.count("BAR|WARPSYNC") >= 2


@pytest.mark.parametrize("D", [2, 19, 20, 257])
def test_any_number_of_dimensions_stays_in_registers(D: int) -> None:
    assert_in_registers(forward(D, "sm_90"), 232)  # 219
    assert_in_registers(backward(D, "sm_90"), 255)


def test_a_term_is_a_difference_a_product_and_a_fused_square() -> None:
    in_all = forward(32, "sm_90").count("FADD|FMUL|FFMA")
    # 11.25 a term: three of them in the loop, for each dimension; maxima, exponentials and sums,
    # for each component, take the others. One more in the loop would be one more here.
    assert in_all <= 11.5 * TERMS
    # Another segment is one more addition, for 32 dimensions.
    assert forward(4096, "sm_90").count("FADD|FMUL|FFMA") == in_all + TERMS


@pytest.mark.parametrize("D", [20, 128])
def test_amd_stays_in_registers(D: int) -> None:
    # 170 and 180, of others up to 202 and 226: of 512 registers all leave room for two waves.
    assert_in_registers(forward(D, "gfx942"), ceiling_by_triton(178, before_3_8=190, from_3_9=210))
    assert_in_registers(backward(D, "gfx942"), ceiling_by_triton(188, from_3_9=234))
