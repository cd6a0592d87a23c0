"""The fused last layer's Triton kernels, interpreted on the CPU, against the reference.

tests/kernels/test_interpreter.py runs this in a separate process;
tests/kernels/linear_bernoulli/last_layer.py derives the tolerances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interpreted.watch import accesses, watch
from tests.kernels.helpers import assert_within
from tests.kernels.linear_bernoulli.last_layer import LAYOUTS, bounds, check, inputs, measured
from vaez_kernels import interpreting, launch, linear_bernoulli_log_prob, use_backend
from vaez_kernels import linear_bernoulli as op

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

SMALL = launch.ProductTile(16, 16, 16, 4)
SHAPES = [  # S, B, H, P
    (1, 1, 1, 1),
    (3, 7, 19, 20),
    (9, 5, 16, 84),
    (3, 33, 40, 15),  # rows of a block belong to two samples
    (17, 2, 5, 65),  # to eight
]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(monkeypatch, (op.kernel, "forward"), (op.kernel, "grad_layer"))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in every direction, small because the interpreter is slow on large ones."""
    for table in (launch.LAYER_TILES, launch.FEW_LAYER_TILES):
        for kind, tiles in table.items():
            monkeypatch.setitem(table, kind, dict.fromkeys(tiles, SMALL))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("programs", [1, 12, 264])
@pytest.mark.usefixtures("small_tiles")
def test_value_and_gradients_are_the_references(
    shape: tuple[int, int, int, int],
    programs: int,
    launches: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum is one program's, or is shared by several, or each of them has one block."""
    monkeypatch.setattr(op.kernel, "PROGRAMS", programs)
    check(inputs(shape, targets=torch.float32))
    assert launches == ["forward", "grad_layer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("programs", [1, 264])
@pytest.mark.usefixtures("small_tiles")
def test_chunks_of_rows_are_the_whole(
    dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op.kernel, "PROGRAMS", programs)
    given = inputs((3, 100, 5, 20), dtype)
    whole = measured(given)
    monkeypatch.setattr(op.kernel, "CHUNK", 1)  # 128 rows at least: 300 rows are three chunks
    check(given, truncates=True)
    assert torch.equal(measured(given).grad_hidden, whole.grad_hidden)


@pytest.mark.usefixtures("small_tiles")
def test_hidden_units_that_a_program_cannot_keep_are_read_in_blocks() -> None:
    check(inputs((2, 3, 300, 20), torch.bfloat16), truncates=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets", [torch.bool, torch.float16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("small_tiles")
def test_every_dtype_and_precision_is_the_references(
    dtype: torch.dtype, targets: torch.dtype, precision: str
) -> None:
    # The interpreter truncates float32 to bfloat16, while a GPU rounds: one ulp instead of half.
    check(inputs((3, 5, 20, 33), dtype, targets), precision, truncates=True)


def test_the_tiles_of_the_table_compute_the_same() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(inputs((3, 5, 70, 100), dtype), truncates=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("small_tiles")
def test_memory_layout_does_not_matter(layout: str) -> None:
    check(inputs((3, 9, 20, 33), targets=torch.float32, layout=layout))


def test_a_transposed_weight_is_not_copied() -> None:
    given = inputs((3, 9, 20, 33), layout="transposed weight")
    assert not given.weight.is_contiguous()
    with accesses() as seen:
        linear_bernoulli_log_prob(*given)
    last = given.weight.data_ptr() + 4 * (given.weight.numel() - 1)
    assert any(last in access.addresses for access in seen if access.kind == "load")


@pytest.mark.usefixtures("small_tiles")
def test_kernels_and_fallback_agree() -> None:
    given = inputs((3, 5, 20, 33), targets=torch.float32)
    kernels = measured(given)
    with use_backend("torch"):
        fallback = measured(given)
    for name, one, two, bound in zip(
        kernels._fields, kernels, fallback, bounds(given), strict=True
    ):
        assert one is not None
        assert two is not None
        assert bound is not None
        # Each differs from the reference by at most the bound.
        assert_within(name, one, two, 2.0 * bound)


@pytest.mark.usefixtures("small_tiles")
def test_many_pixels_take_their_logarithm_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # All factors are 2 here. Without parts their product would reach 2 to the 200.
    monkeypatch.setattr(op.kernel, "PROGRAMS", 1)
    hidden, weight = torch.zeros(1, 1, 1), torch.zeros(200 * 16, 1)
    x = torch.zeros(1, 200 * 16, dtype=torch.uint8)
    out = linear_bernoulli_log_prob(hidden, weight, torch.zeros(200 * 16), x)
    wanted = -200 * 16 * torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(out.double(), wanted.expand(1, 1), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("small_tiles")
def test_a_program_of_a_gradient_takes_all_its_blocks_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 19 blocks of 16 rows are shared among at most 16 programs.
    monkeypatch.setattr(op.kernel, "PROGRAMS", 16)
    check(inputs((1, 300, 3, 5)))


@pytest.mark.usefixtures("small_tiles")
def test_tf32_products_are_the_references() -> None:
    check(inputs((3, 5, 20, 33)), "tf32", tensor_cores=True)


@pytest.mark.usefixtures("small_tiles")
def test_tf32_operands_are_rounded_to_the_nearest_of_ten_bits() -> None:
    ulp = 2.0**-10
    value = torch.tensor([1 + 0.4 * ulp, 1 + 0.6 * ulp, -1 - 0.6 * ulp])
    rounded = torch.tensor([1, 1 + ulp, -1 - ulp])
    ones, bias = torch.ones(1, 1), torch.zeros(1)
    lit = torch.ones(3, 1, dtype=torch.uint8)
    of_hidden = linear_bernoulli_log_prob(value[None, :, None], ones, bias, lit, "tf32")[0]
    of_weight = [
        linear_bernoulli_log_prob(ones[None], v.view(1, 1), bias, lit[:1], "tf32") for v in value
    ]
    wanted = torch.nn.functional.logsigmoid(rounded.double())
    assert_within("rounded hidden units", of_hidden, wanted, 1e-6)
    assert_within("rounded weights", torch.cat(of_weight).flatten(), wanted, 1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_float32_operands_lose_their_bits_where_bfloat16_products_are_asked_for() -> None:
    # The interpreter truncates where a GPU rounds, in values, weights and residuals alike.
    value = torch.full((1, 1, 1), 1 + 0.6 * 2.0**-7)
    one, none, lit = torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1, dtype=torch.uint8)
    wanted = torch.nn.functional.logsigmoid(torch.ones(1, 1).double())
    for hidden, weight in ((value, one), (one[None], value[0])):
        hidden, weight = (t.clone().requires_grad_() for t in (hidden, weight))
        out = linear_bernoulli_log_prob(hidden, weight, none, lit, "bfloat16")
        assert_within("log_prob", out, wanted, 1e-6)
        grads = torch.autograd.grad(out.sum(), (hidden, weight))
        # 1 − sigmoid(1) = 137.7/512 is 137/512 in eight bits, and the other operand is 1.
        for grad in grads:
            assert_within("gradient", grad.flatten(), torch.tensor([137 / 512]), 1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_a_nan_of_any_bits_stays_one_in_tf32() -> None:
    # With all bits set, rounding carries into the sign, which would give zero.
    hidden = torch.full((1, 1, 1), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    x = torch.zeros(1, 1, dtype=torch.uint8)
    out = linear_bernoulli_log_prob(hidden, torch.ones(1, 1), torch.zeros(1), x, "tf32")
    assert out.isnan().all()


@pytest.mark.usefixtures("small_tiles")
def test_a_nan_stays_in_its_row() -> None:
    given = inputs((3, 5, 20, 33))
    clean = measured(given)
    with torch.no_grad():
        given.hidden[1, 2, 5] = torch.nan
    dirty = measured(given)
    spoilt = torch.zeros(3, 5, dtype=torch.bool)
    spoilt[1, 2] = True
    assert torch.equal(dirty.log_prob.isnan(), spoilt)
    assert torch.equal(dirty.log_prob[~spoilt], clean.log_prob[~spoilt])
    assert torch.equal(dirty.grad_hidden.isnan().all(2), spoilt)


@pytest.mark.usefixtures("small_tiles")
def test_an_infinite_weight_spoils_no_gradient_through_rows_that_do_not_exist() -> None:
    """Rows beyond the last are read as zeros, and zero times infinity is NaN."""
    hidden = torch.ones(1, 5, 3)
    weight, bias = torch.zeros(4, 3), torch.zeros(4, requires_grad=True)
    weight[2] = torch.inf
    x = torch.zeros(5, 4, dtype=torch.uint8)
    out = linear_bernoulli_log_prob(hidden, weight, bias, x)
    (grad,) = torch.autograd.grad(out, bias, torch.ones_like(out))
    assert torch.equal(grad, torch.tensor([-2.5, -2.5, -5.0, -2.5]))


def test_no_images_launch_nothing_that_reads() -> None:
    empty = measured(inputs((9, 0, 20, 33), targets=torch.float32))
    assert empty.log_prob.shape == (9, 0)
    assert not empty.grad_weight.any()


@pytest.mark.parametrize("samples", [1, 8])
def test_logits_reach_no_memory(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program reads its rows once and writes one sum per row, which a second launch adds up."""
    monkeypatch.setattr(op.kernel, "PROGRAMS", 16)
    given = inputs((samples, 16, 32, 128), torch.bfloat16)
    tile, rows = launch.FEW_LAYER_TILES["logits"]["16 bits"], samples * 16
    with accesses() as seen, torch.no_grad():
        linear_bernoulli_log_prob(*given)
    blocks = rows // tile.rows
    parts = min(128 // tile.pixels, 16 // blocks)
    stored = sum(access.addresses.size for access in seen if access.kind == "store")
    assert stored == (rows if parts == 1 else (parts + 1) * rows)
    read = dict.fromkeys((1, 2, 4), 0)
    for access in seen:
        if access.kind == "load":
            read[access.width] += access.addresses.size
    assert read[1] == rows * 128
    # Each part reads the rows; each block of rows reads the weights and the float32 bias.
    assert read[2] == parts * rows * 32 + blocks * 128 * 32
    assert read[4] == blocks * 128 + (0 if parts == 1 else parts * rows)


def test_backward_keeps_the_residuals_of_one_chunk_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op.kernel, "CHUNK", 128 * 32 * 4)
    given = inputs((2, 160, 4, 20))
    sizes: list[int] = []

    def noting(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(*args: Any, **options: Any) -> Tensor:
            out = make(*args, **options)
            sizes.append(out.numel())
            return out

        return noted

    monkeypatch.setattr(Tensor, "new_empty", noting(Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", noting(torch.empty))
    measured(given)
    assert max(sizes) == 128 * 32  # rows of 20 pixels are padded to 32; 320 rows are not kept
