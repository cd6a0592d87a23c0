"""The fused last layer's kernels, compiled for GPUs without a GPU; see offline.py.

Nothing spills on any target. Products are on tensor cores, except those of "float32", which stay on
the float32 units (AMD's matrix units multiply float32 directly). Operands are read with 128-bit
loads and fit in 64 KiB of shared memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels import offline
from tests.kernels.offline import Binary, assert_in_registers, built
from vaez_kernels import interpreting
from vaez_kernels import linear_bernoulli as op
from vaez_kernels.backend import triton

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

KINDS = ("forward", "hidden", "weight")
GPUS = list(offline.TARGETS)
SAMPLES, IMAGES = 8, 1001  # not a multiple of 16, on which Triton would specialise
TENSOR_CORES = r"HGMMA|HMMA|UTCHMMA|v_mfma_f32_\d+x\d+x\d+_(bf16|xf32|f16)"


def binary(
    kind: str,
    gpu: str,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "float32",
    width: int = 256,
) -> Binary:
    layer = op.twin.Arguments(
        torch.zeros(SAMPLES, IMAGES, width, dtype=dtype),
        torch.zeros(784, width, dtype=dtype),
        torch.zeros(784),
        torch.zeros(IMAGES, 784, dtype=torch.uint8),
        precision,
    )
    if kind == "forward":
        return built(op.kernel.forward, op.kernel.linear_bernoulli_forward_kernel, (layer,), gpu)
    grad = torch.zeros(SAMPLES, IMAGES)
    kernel: Any
    if kind == "hidden":
        kernel = op.kernel.linear_bernoulli_hidden_kernel
        return built(op.kernel.grad_hidden, kernel, (layer, grad), gpu)
    kernel = op.kernel.linear_bernoulli_weight_kernel
    return built(op.kernel.grad_weight, kernel, (layer, grad), gpu)


def assert_fits(compiled: Binary) -> None:
    assert_in_registers(compiled)
    assert compiled.shared <= 64 << 10
    wide = r"LDG(STS)?\..*128|(global|buffer)_load_dwordx4"
    assert compiled.count(wide) > 0


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products_are_on_tensor_cores(kind: str, gpu: str) -> None:
    compiled = binary(kind, gpu)
    assert_fits(compiled)
    assert compiled.count(TENSOR_CORES) > 0
    if gpu == "sm_90":
        assert compiled.count("HGMMA") > 0  # products of a warp group, not of a warp


@pytest.mark.parametrize("kind", KINDS)
def test_tf32_products_are_on_tensor_cores(kind: str) -> None:
    compiled = binary(kind, "sm_90", torch.float32, "tf32")
    assert_fits(compiled)
    assert compiled.count(r"HGMMA|HMMA\..*TF32") > 0


@pytest.mark.parametrize("gpu", ["sm_90", "gfx942"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_products_stay_float32(kind: str, gpu: str) -> None:
    compiled = binary(kind, gpu, torch.float32, "float32")
    assert_fits(compiled)
    assert compiled.count(TENSOR_CORES) == 0
    assert compiled.count(r"FFMA|v_mfma_f32_\d+x\d+x\d+_f32") > 0


def test_float32_operands_rounded_to_bfloat16_fit_too() -> None:
    for kind in KINDS:
        compiled = binary(kind, "sm_80", torch.float32, "bfloat16")
        assert_in_registers(compiled)
        assert compiled.count(TENSOR_CORES) > 0


@pytest.mark.parametrize("width", [200, 512])
def test_other_widths_fit_too(width: int) -> None:
    """Burda's 200 units end within a block; the gradients of 512 units take several blocks."""
    for kind in KINDS:
        compiled = binary(kind, "sm_90", width=width)
        assert_fits(compiled)
        assert compiled.count("HGMMA") > 0
