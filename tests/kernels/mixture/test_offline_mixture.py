"""The mixture's kernels, compiled for GPUs without a GPU; see offline.py.

A program is one warp with 16 draws and 128 components. An iteration of the loop over D has two
128-bit loads of components and 16 loads of draws, which the whole warp shares. They give 64 terms
per thread, each with a difference, a product and a fused square.

Ceilings are the results of Triton 3.8, given in the comments, plus a margin of eight registers (one
step of their allocation) and a tenth of the instructions. Triton 3.9 also reads the draws with 128
bits, and unrolls more.
"""

from __future__ import annotations

import pytest
import torch

from bench.bounds import builds
from bench.bounds.builds import Binary
from tests.kernels.offline import assert_in_registers, built, ceiling_by_triton
from vaez_kernels import interpreting, mixture
from vaez_kernels.backend import triton
from vaez_kernels.mixture.twin import Arguments

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

DRAWS, COMPONENTS = 1001, 5003  # not multiples of 16, on which Triton would specialise
NVIDIA = [target for target in builds.TARGETS if target.startswith("sm_")]
TERMS = mixture.kernel.BLOCK_M * mixture.kernel.BLOCK_N // 32  # per thread


def inputs(D: int, leave_out: bool) -> Arguments:
    z, mu = torch.zeros(DRAWS, D), torch.zeros(COMPONENTS, D)
    left_out = torch.zeros(DRAWS, dtype=torch.int64) if leave_out else None
    return Arguments(z, mu, mu, left_out)


def forward(D: int, gpu: str, leave_out: bool = False) -> Binary:
    args = (inputs(D, leave_out),)
    return built(mixture.kernel.forward, mixture.kernel.mixture_forward_kernel, args, gpu)


def backward(D: int, gpu: str, leave_out: bool = False) -> Binary:
    of_draws = torch.zeros(DRAWS)
    args = (inputs(D, leave_out), (of_draws, of_draws), (of_draws,), (True,))
    return built(mixture.kernel.backward, mixture.kernel.mixture_backward_kernel, args, gpu)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("gpu", NVIDIA)
def test_forward_reads_128_bits_of_components_at_once(gpu: str, leave_out: bool) -> None:
    binary = forward(128, gpu, leave_out)
    assert_in_registers(binary, 248)  # 240
    assert binary.length <= 2540  # 1913, and 2311 with a component left out
    # mu, 1/σ and the float64 normaliser are wide. The draws are narrow. Besides them, the kernel
    # reads 64 bits of the components that draws leave out, and of the largest normalisers.
    narrow = ceiling_by_triton(mixture.kernel.BLOCK_M, from_3_9=0)
    of_draws = ceiling_by_triton(0, from_3_9=mixture.kernel.BLOCK_M // 4 * (1 + 2 * leave_out))
    assert binary.count(r"LDG\..*128") == 4 + of_draws
    assert binary.count(r"LDG(?!.*(128|64\b))") == narrow


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("gpu", NVIDIA)
def test_backward_stays_in_registers(gpu: str, leave_out: bool) -> None:
    # 255 registers are the most that a thread can have.
    binary = backward(128, gpu, leave_out)
    assert_in_registers(binary, 255)
    assert binary.length <= ceiling_by_triton(2170, from_3_9=3300)  # 1972; 3.9 unrolls
    # Threads exchange weights: one barrier after writing, one after reading.
    assert binary.count("BAR|WARPSYNC") >= 2


@pytest.mark.parametrize("D", [2, 20, 128])
@pytest.mark.parametrize("gpu", NVIDIA)
def test_what_comes_before_and_after_stays_in_registers(gpu: str, D: int) -> None:
    kernels, of_draws = mixture.kernel, torch.zeros(DRAWS)
    of_forward = (inputs(D, False),)
    of_backward = (*of_forward, (of_draws, of_draws), (of_draws,), (True,))
    for launch, args, kernel in (
        (kernels.forward, of_forward, mixture.prepare.mixture_prepare_kernel),
        (kernels.forward, of_forward, mixture.combine.mixture_log_prob_kernel),
        (kernels.backward, of_backward, mixture.prepare.mixture_prepare_kernel),
        (kernels.backward, of_backward, mixture.combine.mixture_gradient_kernel),
    ):
        assert_in_registers(built(launch, kernel, args, gpu), 96)  # 80


@pytest.mark.parametrize("D", [2, 19, 20, 257])
def test_any_number_of_dimensions_stays_in_registers(D: int) -> None:
    assert_in_registers(forward(D, "sm_90"), 232)  # 219
    assert_in_registers(backward(D, "sm_90"), 255)


def test_a_term_is_a_difference_a_product_and_a_fused_square() -> None:
    in_all = forward(32, "sm_90").count("FADD|FMUL|FFMA")
    # 11.25 instructions per term. Three are in the loop, for each dimension. The others are maxima,
    # exponentials and sums, for each component. One more in the loop would add one here.
    assert in_all <= 11.5 * TERMS
    # More segments cost one more addition, per 32 dimensions.
    assert forward(4096, "sm_90").count("FADD|FMUL|FFMA") == in_all + TERMS


@pytest.mark.parametrize("D", [20, 128])
def test_amd_stays_in_registers(D: int) -> None:
    # 170 and 180; with other versions up to 202 and 226. All leave room for two waves in 512
    # registers.
    assert_in_registers(forward(D, "gfx942"), ceiling_by_triton(178, before_3_8=190, from_3_9=210))
    assert_in_registers(backward(D, "gfx942"), ceiling_by_triton(188, from_3_9=234))
