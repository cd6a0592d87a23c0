"""Addresses of the last layer's kernels beyond 32 bits, without the memory behind them.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.watch import addresses, far_launch, tensors, touched
from vaez_kernels import interpreting
from vaez_kernels import linear_bernoulli as op

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

# The last rows of 100 samples of 2²⁷ + 5 images, and the last 16 of 32 pixels. The elements of all
# rows, the rows themselves, and the results of two parts each exceed 2³².
IMAGES, SAMPLES = 2**27 + 5, 100
ROWS = SAMPLES * IMAGES
LAST = range(ROWS - ROWS % 16, ROWS)
LAST_IMAGES = range(IMAGES - len(LAST), IMAGES)
ROW, X_ROW, PIXEL = 24, 40, 2**28 + 8  # strides of hidden units, targets and weights
FAR = 2**31 - 9  # where a chunk's results begin, in 32 bits
CONSTANTS = {
    "P": 32,
    "H": 16,
    "ROW_STRIDE": ROW,
    "P_STRIDE": PIXEL,
    "H_STRIDE": 1,
    "X_STRIDE": X_ROW,
    "HELD": False,
    "BFLOAT16": False,
    "PRECISION": "ieee",
    "BLOCK_ROWS": 16,
    "BLOCK_P": 16,
    "BLOCK_H": 16,
    "STAGES": 1,
}
PRODUCT = {
    "BFLOAT16": False,
    "PRECISION": "ieee",
    "BLOCK_ROWS": 16,
    "BLOCK_COLUMNS": 16,
    "BLOCK_TERMS": 16,
    "STAGES": 1,
}


@pytest.mark.parametrize("held", [False, True])
def test_forward_addresses_elements_beyond_2_to_the_31(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, bias, out = tensors(4)
    x = torch.zeros(1, dtype=torch.uint8)
    program = (ROWS // 16) * 2 + 1  # of two parts
    args = (hidden, weight, bias, x, out, ROWS, IMAGES, 2, 16)
    kernel = op.kernel.linear_bernoulli_forward_kernel
    seen = far_launch(monkeypatch, kernel, program, *args, **CONSTANTS | {"HELD": held})
    assert touched(seen, "load", 4) == [
        addresses(hidden, LAST, 16, ROW, 0),
        addresses(weight, range(16, 32), 16, PIXEL, 0),
        addresses(bias, range(1), 16, 0, 16),
    ]
    assert touched(seen, "load", 1) == [addresses(x, LAST_IMAGES, 16, X_ROW, 16)]
    assert touched(seen, "store", 4) == [addresses(out, LAST, 1, 1, ROWS)]


@pytest.mark.parametrize("held", [False, True])
def test_residuals_do_too(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grad, hidden, weight, bias, residual, of_bias = tensors(6)
    x = torch.zeros(1, dtype=torch.uint8)
    first = LAST.start - 16
    numbers = (first, ROWS, IMAGES, 3 * IMAGES, 3, PIXEL)
    args = (grad, hidden, weight, bias, x, residual, of_bias, *numbers, 2, 16)
    kernel = op.kernel.linear_bernoulli_residual_kernel
    # The second block of pixels and the second part of the rows.
    seen = far_launch(monkeypatch, kernel, 2 + 1, *args, **CONSTANTS | {"HELD": held})
    loads = touched(seen, "load", 4)
    operands = [
        addresses(hidden, LAST, 16, ROW, 0),
        addresses(weight, range(16, 32), 16, PIXEL, 0),
    ]
    assert loads == [
        *(reversed(operands) if held else operands),
        addresses(bias, range(1), 16, 0, 16),
        addresses(grad, LAST_IMAGES, 1, 3, (SAMPLES - 1) * 3 * IMAGES),
    ]
    assert touched(seen, "load", 1) == [addresses(x, LAST_IMAGES, 16, X_ROW, 16)]
    assert touched(seen, "store", 4) == [
        addresses(residual, range(16, 16 + len(LAST)), 16, PIXEL, 16),
        addresses(of_bias, range(1), 16, 0, 32 + 16),
    ]


def test_products_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = tensors(3)
    # Rows and columns end with a block of five and one of 16. The second of two parts.
    program = ((IMAGES // 16) * 2 + 1) * 2 + 1
    constants = PRODUCT | {
        "ROWS": 0,
        "TERMS": 32,
        "COLUMNS": 32,
        "A_ROW_STRIDE": X_ROW,
        "A_TERM_STRIDE": 1,
        "B_TERM_STRIDE": PIXEL,
        "B_COLUMN_STRIDE": PIXEL + 1,
    }
    kernel = op.product.linear_bernoulli_product_kernel
    seen = far_launch(monkeypatch, kernel, program, a, b, out, 0, IMAGES, 2, 16, **constants)
    rows = range(IMAGES - IMAGES % 16, IMAGES)
    columns = [addresses(b, range(16, 32), 1, PIXEL, n * (PIXEL + 1)) for n in range(16, 32)]
    assert touched(seen, "load", 4) == [
        addresses(a, rows, 16, X_ROW, 16),
        set().union(*columns),
    ]
    assert touched(seen, "store", 4) == [addresses(out, rows, 16, 32, IMAGES * 32 + 16)]


def test_a_later_chunks_products_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = tensors(3)
    constants = PRODUCT | {
        "ROWS": 0,
        "TERMS": 16,
        "COLUMNS": 16,
        "A_ROW_STRIDE": X_ROW,
        "A_TERM_STRIDE": 1,
        "B_TERM_STRIDE": PIXEL,
        "B_COLUMN_STRIDE": 1,
    }
    kernel = op.product.linear_bernoulli_product_kernel
    seen = far_launch(monkeypatch, kernel, 1, a, b, out, FAR, 20, 1, 16, **constants)
    rows = range(16, 20)
    assert touched(seen, "load", 4)[0] == addresses(a, rows, 16, X_ROW, 0)
    assert touched(seen, "store", 4) == [addresses(out, rows, 16, 16, FAR * 16)]


def test_transposed_products_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = tensors(3)
    constants = PRODUCT | {
        "ROWS": 16,
        "TERMS": 0,
        "COLUMNS": 16,
        "A_ROW_STRIDE": 1,
        "A_TERM_STRIDE": X_ROW,
        "B_TERM_STRIDE": ROW,
        "B_COLUMN_STRIDE": 1,
    }
    kernel = op.product.linear_bernoulli_product_kernel
    parts = -(-IMAGES // 16)  # each has one block of terms
    seen = far_launch(monkeypatch, kernel, parts - 1, a, b, out, 0, IMAGES, parts, 16, **constants)
    terms = range(IMAGES - IMAGES % 16, IMAGES)
    assert touched(seen, "load", 4) == [
        addresses(a, terms, 16, X_ROW, 0),
        addresses(b, terms, 16, ROW, 0),
    ]
    assert touched(seen, "store", 4) == [addresses(out, range(16), 16, 16, (parts - 1) * 256)]


def test_sums_of_parts_do_too(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, out = tensors(2)
    size = 2**30 + 5
    kernel = op.product.linear_bernoulli_sum_kernel
    block = {"PARTS": 4, "BLOCK": 128}
    seen = far_launch(monkeypatch, kernel, 2**30 // 128, parts, out, FAR, size, 6, **block)
    last = range(2**30, size)
    rows = [addresses(parts, last, 1, 1, n * size) for n in range(6)]
    assert touched(seen, "load", 4) == [set().union(*rows[:4]), set().union(*rows[4:])]
    assert touched(seen, "store", 4) == [addresses(out, last, 1, 1, FAR)]
