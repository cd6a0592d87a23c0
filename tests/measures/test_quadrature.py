"""Quadrature against closed forms and a plain Riemann sum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.measures.made_codes import grid_kl
from vaez_fast.measures import quadrature
from vaez_fast.measures.quadrature import kl_by_quadrature


def posteriors(N: int, D: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=generator), torch.randn(N, D, generator=generator) - 2


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0])
def test_one_gaussian_has_its_closed_form(D: int, sigma: float) -> None:
    mu = torch.tensor([[0.7, -1.5]])[:, :D]
    logvar = torch.tensor([[2 * math.log(sigma), 0.3]])[:, :D]
    expected = 0.5 * float((mu.square() + logvar.exp() - 1 - logvar).sum())
    assert kl_by_quadrature(mu, logvar) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("block", [1 << 23, 3_000])
def test_a_mixture_over_the_plane_agrees_with_a_plain_sum(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadrature, "BLOCK", block)
    mu, logvar = posteriors(12, 2)
    components = Independent(Normal(mu.double(), torch.exp(0.5 * logvar.double())), 1)
    expected = grid_kl(MixtureSameFamily(Categorical(torch.ones(12).double()), components))
    # log q of a mixture has singularities near the real axis, so its sums converge more slowly.
    assert kl_by_quadrature(mu, logvar) == pytest.approx(expected, abs=2e-5)


def test_two_posteriors_far_apart_have_one_bit_less_than_their_rate() -> None:
    mu, logvar = torch.tensor([[-4.0], [4.0]]), torch.full((2, 1), -4.0)
    rate = 0.5 * (16 + math.exp(-4) - 1 + 4)
    assert kl_by_quadrature(mu, logvar) == pytest.approx(rate - math.log(2), abs=1e-6)


def test_what_a_grid_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\(N, 1\) or \(N, 2\).*got \(5, 3\)"):
        kl_by_quadrature(*posteriors(5, 3))
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        kl_by_quadrature(*posteriors(0, 2))
    mu = torch.tensor([[0.0], [10.0]])
    with pytest.raises(
        ValueError, match=r"σ = 0.001, needs 8,347 points of an axis, at most 4,096"
    ):
        kl_by_quadrature(mu, torch.full_like(mu, 2 * math.log(1e-3)))
    monkeypatch.setattr(quadrature, "STEPS_IN_SIGMA", (8.0, 1.0))
    with pytest.raises(ArithmeticError, match="two grids disagree, "):
        kl_by_quadrature(*posteriors(3, 2))
