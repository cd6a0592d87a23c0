"""The fused last layer's kernels, compiled for GPUs without a GPU; see offline.py.

Nothing spills on any target. Products are on tensor cores, except those of "float32", which stay on
the float32 units (AMD's matrix units multiply float32 directly). Operands are read with 128-bit
loads and fit in 64 KiB of shared memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.bounds import builds
from bench.bounds.builds import Binary
from tests.kernels.offline import assert_in_registers, ceiling_by_triton
from vaez_kernels import interpreting
from vaez_kernels import linear_bernoulli as op
from vaez_kernels.backend import triton

pytestmark = [
    pytest.mark.skipif(interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(triton is None, reason="triton is not installed: no kernels"),
]

KERNELS = [f"linear_bernoulli_{kind}_kernel" for kind in ("forward", "residual", "product")]
GPUS = list(builds.TARGETS)
MANY, FEW = (8, 1001), (1, 128)  # samples and images; 1,001 is not a multiple of 16
TENSOR_CORES = r"HGMMA|HMMA|UTCHMMA|v_mfma_f32_\d+x\d+x\d+_(bf16|xf32|f16)"
# Bytes of shared memory that a block may have: of the smallest GPU with the same instructions.
SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


def layer_of(
    rows: tuple[int, int], dtype: torch.dtype, precision: str, width: int
) -> op.twin.Arguments:
    return op.twin.Arguments(
        torch.zeros(*rows, width, dtype=dtype),
        torch.zeros(784, width, dtype=dtype),
        torch.zeros(784),
        torch.zeros(rows[1], 784, dtype=torch.uint8),
        precision,
    )


def run(layer: op.twin.Arguments) -> None:
    op.kernel.forward(layer)
    op.kernel.grad_layer(layer, torch.zeros(layer.hidden.shape[:2]), True, True, True)


def binary(
    kernel: str,
    gpu: str,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "float32",
    width: int = 256,
    rows: tuple[int, int] = MANY,
) -> Binary:
    if reason := builds.reason_to_skip(gpu):
        pytest.skip(reason)
    layer = layer_of(rows, dtype, precision, width)
    return builds.build(builds.specialisations(lambda: run(layer))[kernel], gpu)


def assert_fits(compiled: Binary, gpu: str, spills: int = 0) -> None:
    assert_in_registers(compiled, spills=spills)
    assert compiled.shared <= SHARED[gpu]
    wide = r"LDG(STS)?\..*128|(global|buffer)_load_dwordx4"
    assert compiled.count(wide) > 0


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [MANY, FEW])
def test_bfloat16_products_are_on_tensor_cores(
    rows: tuple[int, int], kernel: str, gpu: str
) -> None:
    compiled = binary(kernel, gpu, rows=rows)
    assert_fits(compiled, gpu)
    assert compiled.count(TENSOR_CORES) > 0
    if gpu == "sm_90" and rows == MANY:
        assert compiled.count("HGMMA") > 0  # products of a warp group, not of a warp
    if gpu != "gfx942":
        # The next operands are copied to shared memory while these are multiplied.
        assert compiled.count("LDGSTS") > 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [MANY, FEW])
def test_tf32_products_are_on_tensor_cores(rows: tuple[int, int], kernel: str) -> None:
    compiled = binary(kernel, "sm_90", torch.float32, "tf32", rows=rows)
    assert_fits(compiled, "sm_90")
    assert compiled.count(r"HGMMA|HMMA\..*TF32") > 0


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [MANY, FEW])
def test_float32_products_stay_float32(rows: tuple[int, int], kernel: str, gpu: str) -> None:
    compiled = binary(kernel, gpu, torch.float32, "float32", rows=rows)
    # Triton 3.6 stores one register of the residuals and loads it again.
    assert_fits(compiled, gpu, ceiling_by_triton(0, before_3_8=2))
    assert compiled.count(TENSOR_CORES) == 0
    assert compiled.count(r"FFMA|v_mfma_f32_\d+x\d+x\d+_f32") > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_operands_rounded_to_bfloat16_fit_too(kernel: str) -> None:
    compiled = binary(kernel, "sm_80", torch.float32, "bfloat16")
    assert_fits(compiled, "sm_80")
    assert compiled.count(TENSOR_CORES) > 0


@pytest.mark.parametrize("width", [200, 512])
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_widths_fit_too(kernel: str, width: int) -> None:
    """Burda's 200 units end within a block; 512 units are read in blocks."""
    compiled = binary(kernel, "sm_90", width=width)
    assert_fits(compiled, "sm_90")
    assert compiled.count("HGMMA") > 0


def programs_of(layer: op.twin.Arguments, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The kernels that a call and its gradients launch, with their numbers of programs."""
    seen: list[tuple[str, int]] = []

    def noted(kernel: Any, programs: int, *rest: Any) -> None:
        seen.append((kernel.__name__, programs))

    monkeypatch.setattr(op.kernel, "run_kept", noted)
    run(layer)
    return seen


TIMED = op.case.TIMED
SIZES = [*TIMED.launch_bound, *TIMED.large["cpu"], *TIMED.large["cuda"]]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_multiprocessor_has_work_at_every_size_of_the_benchmarks(
    shape: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H100 has 132. The smallest size is altosaar's training step, with 128 rows."""
    samples, images, width, _ = shape
    layer = layer_of((samples, images), dtype, "float32", width)
    counts = programs_of(layer, monkeypatch)
    assert {name for name, _ in counts} >= set(KERNELS)
    assert all(programs >= 132 for name, programs in counts if name in KERNELS), counts


def test_a_training_step_takes_seven_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of((1, 128), torch.bfloat16, "float32", 256)
    names = [name.split("_")[2] for name, _ in programs_of(layer, monkeypatch)]
    forward, backward = ["forward", "sum"], ["residual", "sum", "product", "product", "sum"]
    assert names == forward + backward
