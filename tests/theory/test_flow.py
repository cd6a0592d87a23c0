"""The KL, its derivatives and its gradient flow, compared with autograd in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.theory.gaussians import POINTS, as_coded, distance, point
from vaez_fast.theory import flow


@pytest.mark.parametrize(("mu", "sigma"), POINTS)
def test_the_kl_its_gradient_and_its_hessian_are_those_of_autograd(mu: float, sigma: float) -> None:
    x = point(mu, sigma)
    value = distance(x[0], x[1])
    (slope,) = torch.autograd.grad(value, x)
    second = torch.autograd.functional.hessian(lambda x: distance(x[0], x[1]), x)
    at = np.array((mu, sigma))
    assert float(flow.kl(at[0], at[1])) == pytest.approx(value.item(), rel=1e-9, abs=1e-15)
    np.testing.assert_allclose(flow.gradient(at), slope.numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(flow.hessian(at), second.numpy(), rtol=1e-12)


def test_the_search_finds_every_zero() -> None:
    found = flow.zeros(lambda x: (x - 1.0) * (x + 2.0) * (x - 5.5), np.linspace(-9.3, 9.1, 400))
    assert found == pytest.approx([-2.0, 1.0, 5.5], abs=1e-12)
    assert flow.zeros(lambda x: x * x + 1.0, np.linspace(-3.0, 3.0, 50)) == []


def test_the_closed_forms_solve_their_equations() -> None:
    starts, t = np.array(flow.STARTS).T, np.linspace(0.1, 4.0, 30)
    in_logvar = np.stack((starts[0], 2.0 * np.log(starts[1])))
    for closed, field, start in (
        (flow.closed_form, flow.flow, starts),
        (flow.closed_form_logvar, flow.flow_logvar, in_logvar),
    ):
        np.testing.assert_allclose(closed(start, np.zeros(1))[0], start, rtol=1e-14, atol=1e-14)
        h = 1e-5
        slope = (closed(start, t + h) - closed(start, t - h)) / (2.0 * h)
        expected = np.moveaxis(field(np.moveaxis(closed(start, t), 1, 0)), 0, 1)
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)


def test_the_flow_in_logvar_descends_the_kl_as_a_function_of_logvar() -> None:
    for mu, sigma in POINTS:
        x = point(mu, 2.0 * math.log(sigma))
        (slope,) = torch.autograd.grad(distance(x[0], torch.exp(0.5 * x[1])), x)
        np.testing.assert_allclose(
            flow.flow_logvar(x.detach().numpy()), -slope.numpy(), rtol=1e-12, atol=1e-15
        )


def test_the_integrator_is_of_order_4() -> None:
    start = np.array((2.0, 0.5))
    errors = []
    for steps in (100, 200):
        path = flow.rk4(flow.flow, start, 1.0 / steps, steps)
        errors.append(
            np.abs(path[-1] - flow.closed_form(start[:, None], np.ones(1))[0, :, 0]).max()
        )
    assert 14.0 < errors[0] / errors[1] < 18.0  # 2⁴


def test_the_published_code_has_the_right_minimum_and_the_wrong_slope() -> None:
    for mu, sigma in POINTS:
        x = point(mu, sigma)
        coded = as_coded(x[:1], x[1:])
        at = x.detach().numpy()
        assert float(flow.as_published(at[0], at[1])) == pytest.approx(coded.item(), abs=1e-14)
        (slope,) = torch.autograd.grad(coded, x)
        np.testing.assert_allclose(
            flow.flow_as_published(at), -slope.numpy(), rtol=1e-12, atol=1e-15
        )
    assert flow.flow_as_published(np.array((0.0, 1.0))).tolist() == [0.0, 0.0]
