"""Bytes that the likelihood's kernels move, counted in the same way as in test_traffic.py.

The floor is every logit and target read once, every result and gradient written once: with float32
logits and uint8 targets, 4·S + 1 bytes a pixel forward and 8·S + 1 backward.

tests/kernels/test_interpreter.py runs this in a separate process.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreted.watch import Traffic, accesses, addresses, far_launch, tensors, touched
from tests.kernels import floors
from tests.kernels.bernoulli.pixels import pixels
from vaez_kernels import bernoulli as likelihood
from vaez_kernels import bernoulli_log_prob, interpreting, launch

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="needs TRITON_INTERPRET=1: run by tests/kernels/test_interpreter.py"
)

ROWS = 7  # the last block is not full if blocks hold several rows


@pytest.mark.parametrize("targets", [torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 20, 784])
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_every_byte_moves_once(
    samples: int, columns: int, dtype: torch.dtype, targets: torch.dtype
) -> None:
    logits, x = pixels(samples, ROWS, columns, dtype, targets)
    forward, backward = floors.bernoulli(logits, x)
    with accesses() as seen:
        out = bernoulli_log_prob(logits, x)
    assert Traffic.of(seen) == Traffic(*forward, key=0)

    wanted = [t for t in (logits, x) if t.requires_grad]
    with accesses() as seen:
        torch.autograd.grad(out, wanted, torch.ones_like(out))
    assert Traffic.of(seen) == Traffic(*backward, key=0)


@pytest.mark.parametrize("wanted", ["logits", "x"])
def test_a_gradient_that_nobody_wants_moves_no_bytes(wanted: str) -> None:
    logits, x = pixels(3, ROWS, 20, targets=torch.float32)
    (x if wanted == "logits" else logits).requires_grad_(False)
    out = bernoulli_log_prob(logits, x)
    with accesses() as seen:
        torch.autograd.grad(out, logits if wanted == "logits" else x, torch.ones_like(out))
    traffic = Traffic.of(seen)
    # A target's gradient Σ g·l depends on no target.
    read, written = (logits.numel() + x.numel(), logits) if wanted == "logits" else (60 * ROWS, x)
    assert traffic == Traffic(4 * (read + 3 * ROWS), 4 * written.numel(), 0)


def test_one_sample_for_all_is_read_once() -> None:
    """Expanded logits are not copied. Each sample still reads them, from the cache."""
    logits, x = pixels(3, ROWS, 20, layout="one-sample")
    with accesses() as seen:
        bernoulli_log_prob(logits, x)
    loads = {int(a) for access in seen if access.kind == "load" for a in access.addresses}
    assert len(loads) == 2 * 20 * ROWS


def test_more_samples_than_a_program_holds_read_the_targets_again() -> None:
    # 17 samples are three programs of 6, 6 and 5.
    logits, x = pixels(17, ROWS, 20)
    with accesses() as seen:
        out = bernoulli_log_prob(logits, x)
    assert Traffic.of(seen).loaded == 4 * logits.numel() + 3 * x.numel()
    with accesses() as seen:
        torch.autograd.grad(out, logits, torch.ones_like(out))
    assert Traffic.of(seen).loaded == 4 * logits.numel() + 3 * x.numel() + 4 * out.numel()


def test_gradients_of_targets_read_the_upstream_one_again_for_each_tile() -> None:
    # One program handles all samples of 128 pixels, eight at a time, so a row has seven tiles.
    logits, x = pixels(17, 2, 784, targets=torch.float32)
    out = bernoulli_log_prob(logits, x)
    with accesses() as seen:
        torch.autograd.grad(out, (logits, x), torch.ones_like(out))
    traffic = Traffic.of(seen)
    assert traffic.loaded == 4 * (logits.numel() + x.numel() + 7 * out.numel())
    assert traffic.stored == 4 * (logits.numel() + x.numel())


# The last samples of the last row, with 100 samples of 2²⁷ + 5 rows of 128 pixels. The elements of
# one sample, those of all samples, and the results each exceed 2³².
FAR_ROWS, FAR_SAMPLES, BLOCKS = 2**27 + 5, 100, 13
LAST_ROW = range(FAR_ROWS - 1, FAR_ROWS)
STRIDES = {"P": 128, "ROW_STRIDE": 256, "X_STRIDE": 192, "VECTOR": 4}
TILE = launch.Tile(1024, 1).block(128, lanes=8) | {"LANES": 8, "PARTS": 1, "PART": 128}
SAMPLE_STRIDE = 256 * FAR_ROWS


def _of_samples(
    tensor: torch.Tensor, samples: range, columns: int, stride: int, sample_stride: int
) -> set[int]:
    sets = (addresses(tensor, LAST_ROW, columns, stride, s * sample_stride) for s in samples)
    return set().union(*sets)


def test_forward_addresses_elements_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, out = tensors(2)
    x = torch.zeros(1, dtype=torch.uint8)
    program = (FAR_ROWS - 1) * BLOCKS + BLOCKS - 1  # blocks of samples vary fastest
    args = (logits, x, out, FAR_ROWS, FAR_SAMPLES, SAMPLE_STRIDE)
    kernel = likelihood.kernel.bernoulli_forward_kernel
    seen = far_launch(monkeypatch, kernel, program, *args, **STRIDES, **TILE, SAMPLES=8)
    last = range(96, 100)
    assert touched(seen, "load", 1) == [addresses(x, LAST_ROW, 128, 192, 0)]
    assert touched(seen, "load", 4) == [_of_samples(logits, last, 128, 256, SAMPLE_STRIDE)]
    assert touched(seen, "store", 4) == [_of_samples(out, last, 1, 1, FAR_ROWS)]


@pytest.mark.parametrize("need_x", [False, True])
def test_backward_addresses_elements_beyond_2_to_the_31(
    need_x: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    grad, logits, x, grad_logits, grad_x = tensors(5)
    program = FAR_ROWS - 1 if need_x else (FAR_ROWS - 1) * BLOCKS + BLOCKS - 1
    seen = far_launch(
        monkeypatch,
        likelihood.kernel.bernoulli_backward_kernel,
        program,
        *(grad, logits, x, grad_logits, grad_x, FAR_ROWS, FAR_SAMPLES),
        *(3 * FAR_ROWS, 3, SAMPLE_STRIDE),
        **STRIDES,
        **TILE,
        NEED_LOGITS=True,
        NEED_X=need_x,
        SAMPLES=FAR_SAMPLES if need_x else 8,
    )
    turns = [range(s, min(s + 8, 100)) for s in range(0 if need_x else 96, 100, 8)]
    read_grads = [_of_samples(grad, turn, 1, 3, 3 * FAR_ROWS) for turn in turns]
    read_logits = [_of_samples(logits, turn, 128, 256, SAMPLE_STRIDE) for turn in turns]
    read_x = [addresses(x, LAST_ROW, 128, 192, 0)]
    if need_x:  # the targets once, then gradients and logits turn by turn
        pairs = zip(read_grads, read_logits, strict=True)
        assert touched(seen, "load", 4) == read_x + [part for pair in pairs for part in pair]
    else:
        assert touched(seen, "load", 4) == read_grads + read_x + read_logits
    wanted = [_of_samples(grad_logits, turn, 128, 128, 128 * FAR_ROWS) for turn in turns]
    wanted += [addresses(grad_x, LAST_ROW, 128, 128, 0)] if need_x else []
    assert touched(seen, "store", 4) == wanted
