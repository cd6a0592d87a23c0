"""A perceptron's layer by oneDNN, where a CPU has it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.helpers import assert_within
from vaez_kernels import importance_log_likelihood, linear_bernoulli_log_prob, noise_key
from vaez_kernels.affine import affine

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)


def operands(rows: int, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, fan_in), (fan_out, fan_in), (fan_out,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return x, weight, bias


@needs_onednn
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second", "broadcast"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_is_its_formula(with_bias: bool, layout: str) -> None:
    x, weight, bias = operands(33, 70, 19)
    if layout == "transposed":
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    elif layout == "every second":
        x, weight, bias = (t.repeat_interleave(2, -1)[..., ::2] for t in (x, weight, bias))
    elif layout == "broadcast":
        x, bias = x[:1].expand(33, 70), bias[:1].expand(19)
    found = affine(x, weight, bias if with_bias else None)
    assert found is not None
    assert (found.shape, found.dtype) == ((33, 19), torch.float32)
    wanted = x.double() @ weight.double().t() + (bias.double() if with_bias else 0.0)
    terms = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    assert_within("layer", found, wanted, 72 * 2.0**-24 * terms)  # a float32 sum of 71 terms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_left_to_torch_mm(dtype: torch.dtype) -> None:
    x, weight, bias = operands(3, 5, 4)
    assert affine(x.to(dtype), weight.to(dtype), bias) is None
    assert affine(x, weight.to(dtype), bias) is None


def test_without_inputs_or_onednn_a_layer_is_left_to_torch_mm() -> None:
    assert affine(torch.zeros(3, 0), torch.zeros(4, 0), torch.zeros(4)) is None
    with torch.backends.mkldnn.flags(enabled=False):
        assert affine(*operands(3, 5, 4)) is None


@needs_onednn
def test_the_registered_op_is_sound() -> None:
    x, weight, bias = operands(3, 5, 4)
    for args in ((x, weight, bias), (x, weight, None), (x[None], weight, bias)):
        torch.library.opcheck(
            torch.ops.vaez.affine.default,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


@needs_onednn
def test_a_gradient_is_refused_and_not_taken_for_zero() -> None:
    x, weight, bias = operands(3, 5, 4)
    found = affine(x.requires_grad_(), weight, bias)
    assert found is not None
    with pytest.raises(RuntimeError, match="has no gradient"):
        found.sum().backward()


@needs_onednn
def test_its_operations_are_counted() -> None:
    x, weight, bias = operands(3, 5, 4)
    with FlopCounterMode(display=False) as counter:
        affine(x[None], weight, bias)
    assert counter.get_total_flops() == 2 * 3 * 5 * 4


@pytest.mark.parametrize("samples", [8, 4000])  # eager and compiled
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hidden_unit_that_is_no_number_does_not_vanish(
    value: float, activation: type[nn.Module], samples: int
) -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 16)
    decoder = nn.Sequential(first, activation(), nn.Linear(16, 200))
    mu, x = torch.randn(3, 4), (torch.rand(3, 200) > 0.5).to(torch.uint8)
    with torch.no_grad():
        first.bias[3] = math.nan if activation is nn.Tanh else value  # tanh of infinity is 1
        found = importance_log_likelihood(
            decoder, mu, mu - 1, x, noise_key(0, "evaluate"), samples, precision="float32"
        )
    assert not found.isfinite().any()


@needs_onednn
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_float32_layers_of_importance_sampling_go_to_onednn(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 20))
    mu, x = torch.randn(3, 4), (torch.rand(3, 20) > 0.5).to(torch.uint8)

    def run(precision: str) -> Tensor:
        key = noise_key(0, "evaluate")
        return importance_log_likelihood(decoder, mu, mu - 1, x, key, 8, precision=precision)

    counts = {precision: calls(lambda p=precision: run(p)) for precision in ("float32", "bfloat16")}
    assert counts == {"float32": 2, "bfloat16": 0}


@needs_onednn
def test_the_last_layers_products_go_to_onednn_but_for_the_weights_gradient() -> None:
    hidden, weight, bias = (t.requires_grad_() for t in operands(6, 16, 20))
    x = torch.zeros(6, 20)
    log_prob: list[Tensor] = []
    forward = calls(
        lambda: log_prob.append(linear_bernoulli_log_prob(hidden[None], weight, bias, x))
    )
    # Backward computes the logits again, and the gradient of the hidden units.
    backward = calls(lambda: log_prob[0].sum().backward())
    assert (forward, backward) == (1, 2)


def calls(run: object) -> int:
    """How many layers oneDNN computed."""
    with torch.profiler.profile() as profile:
        run()  # type: ignore[operator]
    return sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events())
