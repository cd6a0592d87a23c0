"""Checks of the mixture and the last layer: right outputs pass, slightly wrong ones fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.accuracy import LastLayerCase, MixtureCase
from bench.baselines import bernoulli_log_prob
from bench.baselines import mixture_log_prob as textbook_mixture

DRAWS, COMPONENTS, D = 40, 60, 5  # more draws than the first and the last eight, which are checked
S, B, H, P = 2, 6, 16, 49


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def mixture() -> MixtureCase:
    mu, logvar = draw(COMPONENTS, D), 0.5 * draw(D, COMPONENTS).t()
    z = (mu[:DRAWS] + 0.3 * draw(DRAWS, D)).requires_grad_()
    return MixtureCase(z, mu, logvar, draw(DRAWS))


def textbook_layer(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob((hidden @ weight.t()).float() + bias, x)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def layer(request: pytest.FixtureRequest) -> LastLayerCase:
    hidden = draw(S, B, H).relu().to(request.param).requires_grad_()
    weight = draw(P, H).to(request.param).requires_grad_()
    x = (draw(B, P) > 0).to(torch.uint8)
    return LastLayerCase(hidden, weight, draw(P).requires_grad_(), x, draw(S, B))


def test_right_densities_pass_their_check(mixture: MixtureCase) -> None:
    assert mixture.check(mixture.run(textbook_mixture, backward=True), ours=False).passed


@pytest.mark.parametrize("row", [0, 7, DRAWS - 8, DRAWS - 1])
@pytest.mark.parametrize("output", [0, 1])
def test_a_density_or_gradient_off_by_a_ten_thousandth_fails(
    mixture: MixtureCase, output: int, row: int
) -> None:
    outputs = [x.detach().clone() for x in mixture.run(textbook_mixture, backward=True)]
    # Terms here are near 10, so rounding is near 1e-5.
    outputs[output][row] += 1e-3
    assert not mixture.check(tuple(outputs), ours=False).passed


def test_a_mixture_that_lost_a_component_fails(mixture: MixtureCase) -> None:
    def without_the_last(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return textbook_mixture(z, mu[:-1], logvar[:-1])

    assert not mixture.check(mixture.run(without_the_last, backward=False), ours=False).passed


def test_right_last_layers_pass_their_check(layer: LastLayerCase) -> None:
    check = layer.check(layer.run(textbook_layer, backward=True), ours=False)
    assert check.passed
    assert check.error > 0.01  # the bound is no idle one


@pytest.mark.parametrize("output", range(4))
def test_a_wrong_output_of_the_last_layer_fails(layer: LastLayerCase, output: int) -> None:
    outputs = [x.detach().clone().float() for x in layer.run(textbook_layer, backward=True)]
    outputs[output].view(-1)[-1] += 0.2 * float(outputs[output].abs().max())
    assert not layer.check(tuple(outputs), ours=False).passed


@pytest.mark.parametrize(
    "wrong",
    [
        lambda h, w, b, x: textbook_layer(h, w, 0 * b, x),
        lambda h, w, b, x: textbook_layer(h, w, b, 1 - x),
        lambda h, w, b, x: textbook_layer(h, w.detach(), b, x) + 0 * w.sum(),
    ],
    ids=["no bias", "another target", "no gradient of the weight"],
)
def test_another_formula_of_the_last_layer_fails(
    layer: LastLayerCase, wrong: Callable[..., Tensor]
) -> None:
    assert not layer.check(layer.run(wrong, backward=True), ours=False).passed
