"""Small Triton kernels of this file, compiled for a GPU and executed as PTX."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton import language as tl  # noqa: E402

from tests.ptx import Units, UnsupportedPtx  # noqa: E402
from tests.ptx.errors import OutOfBounds  # noqa: E402
from vaez_kernels import interpreting  # noqa: E402

pytestmark = pytest.mark.skipif(
    interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"
)
if not interpreting():
    from tests.ptx.launch import PtxKernel


@triton.jit
def scale_kernel(x, keep, out, size, factor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, mask=inside, other=0.0)
    kept = tl.load(keep + at, mask=inside, other=0)
    tl.store(out + at, tl.where(kept, value * factor, -1.0), mask=inside)


@triton.jit
def careless_kernel(x, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def pair_kernel(pair):  # type: ignore[no-untyped-def]
    tl.store(pair[0], tl.load(pair[1]))


@triton.jit
def softmax_kernel(x, out, stride, width, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    at = tl.arange(0, WIDTH)
    value = tl.load(x + row * stride + at, mask=at < width, other=float("-inf"))
    exponential = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * stride + at, exponential / tl.sum(exponential, 0), mask=at < width)


@triton.jit
def product_kernel(  # type: ignore[no-untyped-def]
    a, b, out, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr
):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    sums = tl.zeros((M, N), tl.float32)
    for first in range(0, depth, K):
        left = tl.load(a + m[:, None] * depth + first + k[None, :])
        right = tl.load(b + (first + k)[:, None] * N + n[None, :])
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    tl.store(out + m[:, None] * N + n[None, :], sums)


@triton.jit
def histogram_kernel(x, counts, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < size, other=0)
    tl.atomic_add(counts + value, 1, mask=at < size)


def scaled(size: int, factor: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    x, keep = torch.randn(size).to(dtype), torch.rand(size) < 0.7
    out = torch.full_like(x, 9.0)
    kernel = PtxKernel(scale_kernel)
    run = kernel[(triton.cdiv(size, 256),)](x, keep, out, size, factor, BLOCK=256, **options)
    wanted = torch.where(keep, (x.float() * factor).to(dtype), -1.0)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_elementwise_kernel(dtype: torch.dtype) -> None:
    run = scaled(1001, 0.5, dtype)
    assert run.grid == (4,)
    size = dtype.itemsize
    assert run.traffic.bytes_loaded == 1001 * (size + 1)
    assert run.traffic.bytes_stored == 1001 * size


@pytest.mark.parametrize("size", [1, 16, 48])
def test_integers_on_which_triton_specialises(size: int) -> None:
    """Triton compiles the value 1, and divisibility by 16, into the program."""
    scaled(size, 2.0)


def test_aligned_tensors_are_read_16_bytes_at_once_and_others_are_not() -> None:
    x, out = torch.randn(1024), torch.empty(1024)
    kernel = PtxKernel(careless_kernel)
    assert kernel[(2,)](x, out, BLOCK=512).traffic.loads == {16: 256}
    assert torch.equal(out, x)
    run = kernel[(1,)](x[1:], out, BLOCK=512)
    assert run.traffic.loads == {4: 512}
    assert run.traffic.stores == {16: 128}
    assert torch.equal(out[:512], x[1:513])
    assert kernel.runs[-1] is run
    assert len(kernel.runs) == 2


def test_options_reach_the_compiler() -> None:
    assert scaled(512, 1.0, num_warps=8).metadata.num_warps == 8
    assert scaled(512, 1.0, num_warps=8).program.threads == 256
    assert scaled(512, 1.0).program.threads == 128
    with pytest.raises(KeyError, match="unknown_option"):
        scaled(512, 1.0, unknown_option=1)


def test_a_forgotten_mask_is_out_of_bounds() -> None:
    """The tensors are parts of larger ones, so a GPU would read beyond them without an error.

    Triton's cache does not depend on the file's name, so after a move of this file the cached
    kernel still names the old one.
    """
    x, out = torch.randn(2048), torch.empty(2048)
    with pytest.raises(OutOfBounds, match=r"\w+\.py:\d+:\d+.* beyond x \["):
        PtxKernel(careless_kernel)[(2,)](x[:1000], out, BLOCK=512)
    with pytest.raises(OutOfBounds, match=r"beyond out \["):
        PtxKernel(careless_kernel)[(2,)](x, out[:1023], BLOCK=512)


@pytest.mark.parametrize("units", list(Units))
def test_a_reduction_over_warps_in_a_grid_of_two_dimensions(units: Units) -> None:
    x, out = torch.randn(6, 1000), torch.zeros(6, 1000)
    kernel = PtxKernel(softmax_kernel, units=units)

    def grid(arguments: dict[str, Any]) -> tuple[int, int]:
        assert arguments["width"] == 1000
        return 3, 2

    run = kernel[grid](x, out, x.stride(0), 1000, WIDTH=1024)
    assert run.traffic.barriers > 0
    wanted = torch.softmax(x.double(), 1)
    # exp errs by two ulps of ex2 and, as |x| < 8, by its argument's rounding of 2^-22. Three more
    # roundings follow.
    torch.testing.assert_close(out.double(), wanted, rtol=1.5e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.bfloat16, "tf32", 2e-6),
        (torch.float16, "tf32", 2e-6),
        (torch.float32, "tf32", 2.0**-9),  # TF32 keeps ten bits of each operand
        (torch.float32, "ieee", 2e-6),
    ],
)
def test_products_through_shared_memory(
    dtype: torch.dtype, precision: str, tolerance: float
) -> None:
    M, N, K, depth = 64, 32, 32, 128
    a, b = torch.randn(M, depth).to(dtype), torch.randn(depth, N).to(dtype)
    out = torch.empty(M, N)
    kernel = PtxKernel(product_kernel)
    run = kernel[(1,)](a, b, out, depth, M=M, N=N, K=K, PRECISION=precision, num_stages=3)
    assert (run.traffic.products > 0) == (precision == "tf32")
    terms = a.double().abs() @ b.double().abs()
    error = (out.double() - a.double() @ b.double()).abs()
    assert (error <= tolerance * terms).all()


def test_operands_that_are_not_rounded_to_tf32_are_cut_off() -> None:
    """As on the hardware, 1 + 2^-11 becomes 1, not the nearest TF32."""
    a, b = torch.full((16, 16), 1 + 2.0**-10 - 2.0**-13), torch.ones(16, 16)
    out = torch.empty(16, 16)
    PtxKernel(product_kernel)[(1,)](a, b, out, 16, M=16, N=16, K=16, PRECISION="tf32")
    assert (out == 16).all()


def test_atomics() -> None:
    x, counts = torch.randint(7, (1000,)), torch.zeros(7, dtype=torch.int32)
    run = PtxKernel(histogram_kernel)[(4,)](x, counts, 1000, BLOCK=256)
    assert torch.equal(counts, torch.bincount(x, minlength=7).int())
    assert run.traffic.atomics == {4: 1000}


def test_what_triton_does_not_execute_here_is_said_so() -> None:
    a = torch.ones(64, 64, dtype=torch.float16)
    constants = {"M": 64, "N": 64, "K": 64, "PRECISION": "tf32"}
    with pytest.raises(UnsupportedPtx, match=r"line \d+ .*: (wgmma|fence\.proxy)"):
        PtxKernel(product_kernel, "sm_90")[(1,)](a, a, torch.empty(64, 64), 64, **constants)
    with pytest.raises(UnsupportedPtx, match="a tensor or a number as argument, got tuple"):
        PtxKernel(pair_kernel)[(1,)]((a, a))
    with pytest.raises(ValueError, match="expected out on the CPU, got meta"):
        PtxKernel(careless_kernel)[(1,)](a, torch.empty(64, device="meta"), BLOCK=64)


def test_results_do_not_depend_on_how_many_blocks_run_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.ptx import machine

    x, outs = torch.randn(40, 100), []
    for lanes in (4096, 1, 300):
        monkeypatch.setattr(machine, "LANES", lanes)
        out = torch.zeros(40, 100)
        run = PtxKernel(softmax_kernel)[(40,)](x, out, 100, 100, WIDTH=128)
        outs.append((out, run.traffic))
    assert all(torch.equal(out, outs[0][0]) for out, _ in outs)
    assert all(traffic == outs[0][1] for _, traffic in outs)
