"""Addresses of the last layer's kernels beyond 32 bits, without the memory behind them.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.watch import Access, addresses, far_launch, tensors, touched
from vaez_kernels import interpreting
from vaez_kernels import linear_bernoulli as op

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

# The last samples of the last image, with 100 samples of 2²⁷ + 5 images of 16 units. The elements
# of one sample, those of all samples, and the results each exceed 2³². A program has two images and
# eight samples.
IMAGES, SAMPLES, BLOCKS = 2**27 + 5, 100, 13
PROGRAM = (IMAGES // 2) * BLOCKS + BLOCKS - 1  # blocks of samples vary fastest
LAST_IMAGE, LAST = range(IMAGES - 1, IMAGES), range(96, 100)
ROW, X_ROW, PIXEL = 24, 40, 2**28 + 8  # strides of hidden units, targets and weights
SAMPLE = ROW * IMAGES
CONSTANTS = {
    "P": 16,
    "H": 16,
    "ROW_STRIDE": ROW,
    "P_STRIDE": PIXEL,
    "H_STRIDE": 1,
    "X_STRIDE": X_ROW,
    "BFLOAT16": False,
    "PRECISION": "ieee",
    "SAMPLES": 8,
    "BLOCK_ROWS": 16,
    "BLOCK_P": 16,
    "BLOCK_H": 16,
}
GRAD = (3 * IMAGES, 3)  # strides


def rows_of(tensor: torch.Tensor, columns: int, stride: int, sample_stride: int) -> set[int]:
    sets = (addresses(tensor, LAST_IMAGE, columns, stride, s * sample_stride) for s in LAST)
    return set().union(*sets)


def assert_reads_the_last_rows(
    seen: list[Access], hidden: torch.Tensor, weight: torch.Tensor, x: torch.Tensor
) -> None:
    loads = touched(seen, "load", 4)
    assert loads[:2] == [
        rows_of(hidden, 16, ROW, SAMPLE),
        addresses(weight, range(16), 16, PIXEL, 0),
    ]
    assert touched(seen, "load", 1) == [addresses(x, LAST_IMAGE, 16, X_ROW, 0)]


def test_forward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, out = tensors(4)
    x = torch.zeros(1, dtype=torch.uint8)
    args = (hidden, weight, bias, x, out, IMAGES, SAMPLES, SAMPLE)
    kernel = op.kernel.linear_bernoulli_forward_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, **CONSTANTS, FACTORS=64)
    assert_reads_the_last_rows(seen, hidden, weight, x)
    assert touched(seen, "store", 4) == [rows_of(out, 1, 1, IMAGES)]


def test_the_hidden_units_gradient_does_too(monkeypatch: pytest.MonkeyPatch) -> None:
    grad, hidden, weight, bias, out = tensors(5)
    x = torch.zeros(1, dtype=torch.uint8)
    args = (grad, hidden, weight, bias, x, out, IMAGES, SAMPLES, *GRAD, SAMPLE)
    kernel = op.kernel.linear_bernoulli_hidden_kernel
    seen = far_launch(monkeypatch, kernel, PROGRAM, *args, **CONSTANTS, WIDTH=16)
    assert_reads_the_last_rows(seen, hidden, weight, x)
    loads = touched(seen, "load", 4)
    assert loads[3:] == [rows_of(grad, 1, GRAD[1], GRAD[0]), loads[1]]
    assert touched(seen, "store", 4) == [rows_of(out, 16, 16, 16 * IMAGES)]


def test_the_weights_gradient_does_too(monkeypatch: pytest.MonkeyPatch) -> None:
    grad, hidden, weight, bias, of_weight, of_bias = tensors(6)
    x = torch.zeros(1, dtype=torch.uint8)
    args = (grad, hidden, weight, bias, x, of_weight, of_bias, IMAGES, SAMPLES, *GRAD, SAMPLE)
    kernel = op.kernel.linear_bernoulli_weight_kernel
    # One split for each block of rows.
    place, blocks = (0, 0, PROGRAM), PROGRAM + 1
    seen = far_launch(monkeypatch, kernel, place, *args, blocks, **CONSTANTS, WIDTH=16)
    assert_reads_the_last_rows(seen, hidden, weight, x)
    loads = touched(seen, "load", 4)
    assert loads[3:] == [rows_of(grad, 1, GRAD[1], GRAD[0]), loads[0]]
    assert touched(seen, "store", 4) == [
        addresses(of_weight, range(16), 16, 16, PROGRAM * 16 * 16),
        addresses(of_bias, range(1), 16, 16, PROGRAM * 16),
    ]
