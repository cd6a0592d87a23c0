"""The ops with matrix products on a GPU: the fused last layer and importance sampling.

last_layer.py and decoders.py derive the tolerances. Skipped without a CUDA device.
"""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from bench.timing.clock import peak_memory
from tests.cuda.moved import CUDA, linear_on_cuda
from tests.interpreted.watch import watch
from tests.kernels.helpers import assert_within
from tests.kernels.importance import decoders
from tests.kernels.importance.decoders import Given
from tests.kernels.linear_bernoulli import last_layer
from vaez_kernels import (
    ImportanceEstimates,
    importance,
    importance_estimates,
    importance_log_likelihood,
    linear_bernoulli,
    linear_bernoulli_log_prob,
    noise_key,
    reference,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KEY = noise_key(23, "evaluate", 4)
SMALL, LARGE = (3, 7, 19, 20), (8, 129, 256, 784)  # S, B, H, P
# Each combination compiles five kernels, so these are only some of them.
LAYERS = [
    ((1, 1, 1, 1), torch.float32, torch.uint8, "float32"),
    (SMALL, torch.float32, torch.float32, "float32"),
    (SMALL, torch.float32, torch.uint8, "tf32"),
    (SMALL, torch.float32, torch.bool, "bfloat16"),
    (SMALL, torch.bfloat16, torch.uint8, "float32"),
    (SMALL, torch.float16, torch.float16, "float32"),
    (LARGE, torch.float32, torch.uint8, "float32"),
    (LARGE, torch.float32, torch.uint8, "tf32"),
    (LARGE, torch.float32, torch.uint8, "bfloat16"),
    (LARGE, torch.bfloat16, torch.uint8, "float32"),
]


@pytest.mark.parametrize(("shape", "dtype", "targets", "precision"), LAYERS)
def test_the_last_layer_is_the_references(
    shape: tuple[int, int, int, int], dtype: torch.dtype, targets: torch.dtype, precision: str
) -> None:
    given = last_layer.inputs(shape, dtype, targets)
    last_layer.check(given, precision, linear_on_cuda, tensor_cores=True)


@pytest.mark.parametrize("layout", ["one-sample", "images-first", "part", "transposed weight"])
def test_the_last_layers_layout_does_not_matter(layout: str) -> None:
    given = last_layer.inputs((3, 9, 20, 33), layout=layout)
    last_layer.check(given, "tf32", linear_on_cuda, tensor_cores=True)


def test_the_last_layer_is_repeatable_bit_for_bit() -> None:
    given = last_layer.inputs(LARGE, torch.bfloat16)
    one, two = (last_layer.measured(given, op=linear_on_cuda) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


WIDTHS = (5, 19, 23, 84)  # neither powers of two nor multiples of 16
PRESETS = {  # the decoders' widths and activations
    "altosaar": ((128, 256, 256, 784), nn.ReLU),
    "burda": ((50, 200, 200, 784), nn.Tanh),
    "lyeoni": ((2, 256, 512, 784), nn.ReLU),
}


def layer_on_cuda(given: last_layer.Inputs) -> last_layer.Inputs:
    return last_layer.Inputs(
        *(tensor.detach().to(CUDA).requires_grad_(tensor.requires_grad) for tensor in given)
    )


def on_cuda(of: Given) -> Given:
    return Given(deepcopy(of.decoder).to(CUDA), *(tensor.to(CUDA) for tensor in of[1:]))


def estimates(of: Given, samples: int, precision: str, **offsets: int) -> ImportanceEstimates:
    decoder, mu, logvar, x = on_cuda(of)
    noise = KEY.to(CUDA)
    found = importance_estimates(decoder, mu, logvar, x, noise, samples, precision, **offsets)
    return ImportanceEstimates(*(value.cpu() for value in found))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launched kernels. Fresh memory is filled with NaN, so unwritten outputs are found."""
    return watch(monkeypatch, (importance.kernel, "launch_decoder"))


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_importance_sampling_is_the_references_at_awkward_sizes(
    activation: type[nn.Module], precision: str, launches: list[str]
) -> None:
    of = decoders.given(3, *WIDTHS, activation=activation)
    offsets = {"row_offset": 2**33 + 7, "sample_offset": 3}
    found = estimates(of, 70, precision, **offsets)
    want = decoders.truth(of, KEY, 70, precision, **offsets)
    assert launches == ["launch_decoder"]
    assert_within("log_likelihood", found.log_likelihood, want.log_likelihood, want.bound)
    assert_within("log_prob", found.log_prob, want.log_prob, want.bound)


def rounded(a: Tensor, precision: str) -> Tensor:
    """float64 operands, rounded as before a product: to bfloat16, or to TF32's ten bits."""
    if precision == "bfloat16":
        return a.bfloat16().double()
    bits = a.float().contiguous().view(torch.int32) + (1 << 12)
    return (bits & -(1 << 13)).view(torch.float32).double()


def with_rounded_operands(of: Given, samples: int, precision: str) -> ImportanceEstimates:
    """The float64 reference in which only the operands of products are rounded."""

    def decoder(z: Tensor) -> Tensor:
        a = z
        for layer in of.decoder:
            if isinstance(layer, nn.Linear):
                weight = rounded(layer.weight.double(), precision)
                a = rounded(a, precision) @ weight.t() + layer.bias.double()
            else:
                a = layer(a)
        return a

    eps = reference.normal(KEY, samples, *of.mu.shape)
    log_weight, log_prob = reference.importance_log_weights(decoder, of.mu, of.logvar, of.x, eps)
    log_likelihood = torch.logsumexp(log_weight, 0) - math.log(samples)
    return ImportanceEstimates(log_likelihood, log_prob.mean(0))


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_it_errs_by_the_rounding_of_operands(
    preset: str,
    precision: str,
    layer_by_layer: bool,
    monkeypatch: pytest.MonkeyPatch,
    launches: list[str],
) -> None:
    """In layers this wide, worst-case bounds add up to more than the numbers themselves. So the
    root mean square error over images may be at most twice that of the roundings alone. (If results
    of products are bfloat16 too, it is up to 1.5 times, on a CPU.)"""
    widths, activation = PRESETS[preset]
    of = decoders.given(16, *widths, activation=activation)
    if layer_by_layer:
        monkeypatch.setattr(importance.kernel, "tile_for", lambda *_: None)
    found = estimates(of, 40, precision)
    assert launches == ([] if layer_by_layer else ["launch_decoder"])
    truth, rounds = decoders.truth(of, KEY, 40), with_rounded_operands(of, 40, precision)
    for name in ImportanceEstimates._fields:
        want = getattr(truth, name)
        error = (getattr(found, name).double() - want).square().mean().sqrt()
        of_rounding = (getattr(rounds, name) - want).square().mean().sqrt()
        assert error <= 2.0 * of_rounding, name


def test_the_first_samples_of_many_are_the_few() -> None:
    of = decoders.given(5, *PRESETS["altosaar"][0])

    def total(count: int, first: int) -> Tensor:
        found = estimates(of, count, "bfloat16", sample_offset=first)
        return found.log_likelihood.double() + math.log(count)

    parts = torch.logaddexp(total(64, 0), total(100, 64))
    # The sums are a few hundred nats; 1e-6 of them is allowed.
    torch.testing.assert_close(total(164, 0), parts, rtol=1e-6, atol=0)


def test_importance_sampling_is_repeatable_bit_for_bit() -> None:
    of = decoders.given(33, *PRESETS["altosaar"][0])
    for one, two in zip(
        estimates(of, 300, "bfloat16"), estimates(of, 300, "bfloat16"), strict=True
    ):
        assert torch.equal(one, two)


def test_a_replayed_graph_draws_fresh_samples_each_time() -> None:
    of = on_cuda(decoders.given(5, *WIDTHS))
    noise = noise_key(29, "evaluate", 0, device=CUDA)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        importance_log_likelihood(*of, noise, 70, "bfloat16")  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise[1].add_(1)
        found = importance_log_likelihood(*of, noise, 70, "bfloat16")
    for step in (1, 2, 3):
        graph.replay()
        key = noise_key(29, "evaluate", step, device=CUDA)
        assert torch.equal(found, importance_log_likelihood(*of, key, 70, "bfloat16"))


def test_neither_op_waits_for_the_gpu() -> None:
    layer = layer_on_cuda(last_layer.inputs(SMALL))
    of, noise = on_cuda(decoders.given(5, *WIDTHS)), KEY.to(CUDA)

    def both() -> None:
        linear_bernoulli_log_prob(*layer).sum().backward()
        importance_log_likelihood(*of, noise, 70, "bfloat16")

    both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_five_thousand_samples_of_a_thousand_images_take_little_memory() -> None:
    of, noise = on_cuda(decoders.given(1000, *PRESETS["altosaar"][0])), KEY.to(CUDA)
    importance_log_likelihood(*of, noise, 5000, "bfloat16")  # compiles
    found = peak_memory(lambda: importance_log_likelihood(*of, noise, 5000, "bfloat16"), CUDA)
    assert found is not None
    # It needs weights in bfloat16 and three numbers per tile of samples. The logits alone would
    # take 16 GB.
    assert found < 256 << 20


def test_of_the_last_layer_one_chunk_of_residuals_is_in_memory() -> None:
    samples, images, width, pixels = 32, 2000, 64, 784
    given = last_layer.inputs((samples, images, width, pixels), torch.bfloat16)
    layer = layer_on_cuda(given)

    def work() -> None:
        torch.autograd.grad(linear_bernoulli_log_prob(*layer).sum(), layer[:3])

    work()
    found = peak_memory(work, CUDA)
    assert found is not None
    # It needs the hidden units' gradient, a chunk of residuals and parts of the other gradients.
    # Logits in bfloat16 would take 100 MB.
    gradient, parts = 2 * samples * images * width, 32 * pixels * (width + 1) * 4
    limit = 2 * gradient + linear_bernoulli.kernel.CHUNK + parts
    assert found < limit < 2 * samples * images * pixels
