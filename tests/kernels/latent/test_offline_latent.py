"""The latent kernels, compiled for GPUs without a GPU: the output of ptxas and LLVM.

The tests check registers, spills, stack, shared memory, widths of memory accesses and static
instruction counts, on three generations of NVIDIA GPUs and one of AMD. Counts do not predict times,
but they show a spill, a scalar load or a slow path for sine, which cost bandwidth on every GPU.

The ceilings of the fused forward on sm_90 are requirements. The others are the results of Triton
3.8, plus a margin of eight registers (one step of their allocation). Where other versions need one
more step, `ceiling_by_triton` gets their ceiling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.bounds import builds
from tests.kernels.helpers import MODES
from tests.kernels.offline import assert_lean, built
from vaez_kernels import interpreting, latent, noise, noise_key
from vaez_kernels.backend import triton
from vaez_kernels.latent import formulas
from vaez_kernels.latent.twin import Arguments

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

KEY = noise_key(1, "train")
ROWS = 1001  # not a multiple of 16, on which Triton would specialise
NEEDS = [(True, True), (True, False), (False, True)]
# The combinations of upstream gradients in backward: at least one of z and the KL has one.
UPSTREAMS = [
    (grad_z, kl) for grad_z in (True, False) for kl in latent.twin.KLS if grad_z or kl != "none"
]
OTHERS = [target for target in builds.TARGETS if target != "sm_90"]
each_target = pytest.mark.parametrize("target", list(builds.TARGETS))


class Case(NamedTuple):
    """The inputs of a launch that its compilation depends on."""

    columns: int = 128
    samples: int = 1
    dtype: torch.dtype = torch.float32
    rows: int = ROWS


ONE, SEVERAL = Case(), Case(samples=8)


def arguments(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    samples: int,
    write_z: bool,
    kl: str,
    *offsets: int,
) -> Arguments:
    plain = ("sum", -math.inf, math.inf, 0.0)
    return Arguments(
        mu, logvar, None, None, key, samples, write_z, kl, *plain, *(offsets or (0, 0))
    )


def forward(case: Case, write_z: bool, kl: str, target: str) -> builds.Binary:
    x = torch.zeros(case.rows, case.columns, dtype=case.dtype)
    key = KEY if write_z or kl in formulas.MONTE_CARLO else None
    args = (arguments(x, x, key, case.samples, write_z, kl),)
    return built(latent.kernel.forward, latent.kernel.latent_forward_kernel, args, target)


def backward(
    case: Case, grad_z: bool, kl: str, needs: tuple[bool, bool], target: str
) -> builds.Binary:
    x = torch.zeros(case.rows, case.columns, dtype=case.dtype)
    upstream = (
        torch.zeros(case.samples, *x.shape, dtype=case.dtype) if grad_z else None,
        torch.zeros(case.rows) if kl != "none" else None,
    )
    key = KEY if grad_z or kl in formulas.MONTE_CARLO else None
    of = arguments(x, x, key, case.samples, grad_z, kl)
    args = (of, (None,), upstream, (*needs, False, False))
    return built(latent.kernel.backward, latent.kernel.latent_backward_kernel, args, target)


def stream(case: Case, normal: bool, target: str) -> builds.Binary:
    args = (noise.twin.Arguments(KEY, case.samples, case.rows, case.columns, 0, 0, normal),)
    return built(noise.kernel.forward, noise.kernel.noise_kernel, args, target)


def assert_wide(binary: builds.Binary, target: str, reads: int, writes: int) -> None:
    """float32 tensors (B, D) only use 128-bit accesses, each for four elements."""
    if target == "gfx942":  # 256 threads, four elements each
        assert binary.count("(global|buffer)_load_dwordx4") == reads
        assert binary.count("(global|buffer)_store_dwordx4") == writes
        return
    # 128 threads, eight elements each; an unrolled loop has more (tests/interpreted counts bytes).
    assert binary.count(r"LDG\..*128") >= 2 * reads
    assert binary.count(r"STG\..*128") == 2 * writes
    # The other loads: key and step, and the KLs of a thread's rows or their gradients.
    assert binary.count(r"LDG(?!.*128)") <= 4
    assert binary.count(r"STG(?!.*128)") <= 2


def forward_registers(case: Case, kl: str, target: str) -> int:
    monte_carlo = kl in formulas.MONTE_CARLO
    if case.columns % 4:
        return 72 if case.samples == 1 else 112
    if case.samples == 1:
        return 56 if monte_carlo or target == "sm_100" else 48
    return 80


def backward_registers(case: Case, target: str) -> int:
    if target == "gfx942":
        return 64
    if case.columns % 4:
        return 96 if case.samples == 1 else 128
    return 64 if case.samples == 1 else 96


def reads_of_backward(grad_z: bool, kl: str, needs: tuple[bool, bool]) -> int:
    """The number of tensors (B, D) that the gradients depend on."""
    need_mu, need_logvar = needs
    if kl in formulas.MONTE_CARLO:
        return 2 + grad_z
    return grad_z + need_logvar + (kl == "analytic" and need_mu)


def test_the_fused_forward_keeps_its_budget() -> None:
    """Sampling and analytic KL, sm_90, 8 elements per thread, float32, D = 128."""
    one = forward(ONE, True, "analytic", "sm_90")
    assert one.registers <= 40
    assert one.length <= 640
    assert forward(SEVERAL, True, "analytic", "sm_90").registers <= 72  # 66


@pytest.mark.parametrize(
    ("case", "target", "mode"),
    [
        *((case, "sm_90", mode) for case in (ONE, SEVERAL) for mode in MODES),
        *((SEVERAL, t, mode) for t in OTHERS for mode in MODES if "landing" not in mode),
    ],
)
def test_forward_fits_registers_and_reads_wide(mode: str, case: Case, target: str) -> None:
    write_z, kl = MODES[mode]
    binary = forward(case, write_z, kl, target)
    assert_lean(binary, target, forward_registers(case, kl, target))
    assert_wide(binary, target, 2, int(write_z))
    assert binary.length <= 760  # 697


@pytest.mark.parametrize("target", OTHERS)
def test_one_sample_fits_on_every_target(target: str) -> None:
    to = forward(ONE, True, "analytic", target)
    back = backward(ONE, True, "analytic", NEEDS[0], target)
    assert_lean(to, target, 56 if target == "sm_100" else 40)
    assert_lean(back, target, 56)
    assert_wide(to, target, 2, 1)
    assert_wide(back, target, 3, 2)
    assert max(to.length, back.length) <= 660  # 648


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("kl", latent.twin.KLS)
def test_backward_fits_registers_and_reads_wide(kl: str, target: str) -> None:
    binary = backward(SEVERAL, True, kl, NEEDS[0], target)
    assert_lean(binary, target, backward_registers(SEVERAL, target))
    assert_wide(binary, target, reads_of_backward(True, kl, NEEDS[0]), 2)
    assert binary.length <= 760


@pytest.mark.parametrize(("case", "needs"), [(ONE, NEEDS[0]), *((SEVERAL, n) for n in NEEDS)])
@pytest.mark.parametrize(("grad_z", "kl"), UPSTREAMS)
def test_backward_does_only_what_is_needed(
    grad_z: bool, kl: str, case: Case, needs: tuple[bool, bool]
) -> None:
    binary = backward(case, grad_z, kl, needs, "sm_90")
    assert_lean(binary, "sm_90", backward_registers(case, "sm_90"))
    assert_wide(binary, "sm_90", reads_of_backward(grad_z, kl, needs), sum(needs))
    assert binary.length <= 760  # 692
    if kl not in formulas.MONTE_CARLO and not (grad_z and needs[1]):
        assert binary.length <= 410  # 404: no noise is drawn


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("columns", [19, 20])
@pytest.mark.parametrize("kl", ["analytic", "sticking-the-landing"])
def test_other_widths_stay_in_registers(kl: str, columns: int, samples: int) -> None:
    case = Case(columns, samples)
    to, back = forward(case, True, kl, "sm_90"), backward(case, True, kl, NEEDS[0], "sm_90")
    assert_lean(to, "sm_90", forward_registers(case, kl, "sm_90"))
    assert_lean(back, "sm_90", backward_registers(case, "sm_90"))
    if columns == 20:  # not a power of two, but each row starts at a multiple of 16 bytes
        assert_wide(to, "sm_90", 2, 1)
        assert_wide(back, "sm_90", reads_of_backward(True, kl, NEEDS[0]), 2)


@pytest.mark.parametrize(
    ("dtype", "samples"), [(torch.bfloat16, 1), (torch.bfloat16, 8), (torch.float16, 1)]
)
def test_low_precision_reads_its_eight_elements_at_once(dtype: torch.dtype, samples: int) -> None:
    case = Case(dtype=dtype, samples=samples)
    to = forward(case, True, "analytic", "sm_90")
    back = backward(case, True, "analytic", NEEDS[0], "sm_90")
    assert_lean(to, "sm_90", 48 if samples == 1 else 72)
    assert_lean(back, "sm_90", backward_registers(case, "sm_90"))
    assert (to.count(r"LDG\..*128"), to.count(r"STG\..*128")) == (2, 1)
    assert (back.count(r"LDG\..*128"), back.count(r"STG\..*128")) == (3, 2)


@each_target
@pytest.mark.parametrize(("normal", "length"), [(True, 480), (False, 270)])  # 436 and 246
def test_the_stream_fits_registers_and_writes_wide(normal: bool, length: int, target: str) -> None:
    binary = stream(ONE, normal, target)
    assert_lean(binary, target, 40)
    assert_wide(binary, target, 0, 1)
    assert binary.length <= length


def test_chunks_of_a_wider_tensor_are_read_wide_too() -> None:
    """mu and logvar as the halves of an encoder's (B, 2D), and rows that Triton knows as 16·n."""
    mu, logvar = torch.zeros(1024, 256).chunk(2, 1)
    args = (arguments(mu, logvar, KEY, 1, True, "analytic"),)
    binary = built(latent.kernel.forward, latent.kernel.latent_forward_kernel, args, "sm_90")
    assert_lean(binary, "sm_90", 40)
    assert_wide(binary, "sm_90", 2, 1)
    assert binary.length <= 640


@pytest.mark.parametrize(("row_offset", "sample_offset"), [(2**40 + 1, 1), (1, 2**32 - 9)])
def test_offsets_of_any_size_compile(row_offset: int, sample_offset: int) -> None:
    """Depending on its value, Triton makes an offset a constant (1), or 32 or 64 bits wide."""
    x = torch.zeros(ROWS, 128)
    args = (arguments(x, x, KEY, 8, True, "analytic", row_offset, sample_offset),)
    binary = built(latent.kernel.forward, latent.kernel.latent_forward_kernel, args, "sm_90")
    assert_lean(binary, "sm_90", 72)
    assert_wide(binary, "sm_90", 2, 1)


def test_a_misaligned_pointer_is_compiled_apart() -> None:
    """The recorder observes alignment; otherwise the wide accesses above would prove nothing."""
    storage = torch.zeros(ROWS * 128 + 1)
    x = storage[1:].view(ROWS, 128)
    args = (arguments(x, x, KEY, 1, True, "analytic"),)
    binary = built(latent.kernel.forward, latent.kernel.latent_forward_kernel, args, "sm_90")
    assert binary.count(r"LDG\..*128") == 0
