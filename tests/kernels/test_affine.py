"""A perceptron's layer by oneDNN, where a CPU has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.helpers import assert_within
from vaez_kernels import importance_log_likelihood, linear_bernoulli_log_prob, noise_key
from vaez_kernels.affine import affine

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "none": torch.clone}


def operands(rows: int, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, fan_in), (fan_out, fan_in), (fan_out,))
    x, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return x, weight, bias


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_is_its_formula(activation: str, with_bias: bool, transposed: bool) -> None:
    x, weight, bias = operands(33, 70, 19)
    weight = weight.t().contiguous().t() if transposed else weight
    found = affine(x, weight, bias if with_bias else None, activation)
    assert found is not None
    assert (found.shape, found.dtype) == ((33, 19), torch.float32)
    wide = x.double() @ weight.double().t() + (bias.double() if with_bias else 0.0)
    terms = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    # A float32 sum of 71 terms; relu and tanh do not enlarge its error, and tanh adds its own.
    bound = 72 * 2.0**-24 * terms + 2.0**-22
    assert_within("layer", found, ACTIVATIONS[activation](wide), bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_left_to_torch_mm(dtype: torch.dtype) -> None:
    x, weight, bias = operands(3, 5, 4)
    assert affine(x.to(dtype), weight.to(dtype), bias) is None
    assert affine(x, weight.to(dtype), bias) is None


def test_without_onednn_a_layer_is_left_to_torch_mm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert affine(*operands(3, 5, 4)) is None


@needs_onednn
def test_the_registered_op_is_sound() -> None:
    x, weight, bias = operands(3, 5, 4)
    for args in (
        (x, weight, bias, "relu"),
        (x, weight, None, "tanh"),
        (x[None], weight, bias, "none"),
    ):
        torch.library.opcheck(
            torch.ops.vaez.affine.default,
            args,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


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
