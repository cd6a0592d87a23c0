"""The Gaussian likelihood with fixed and learned variances, against SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from vaez_fast.likelihoods import Gaussian, gaussian_log_prob

from .checking import assert_gradients_are_differences, assert_the_same_if_traced, drawn, gradients

SHAPE = (3, 2, 4, 5)
# What a logvar may be: a number, and tensors of all that broadcasts to (S, B, C, H, W).
LOGVARS: dict[str, Any] = {
    "a number": -1.3,
    "a parameter": torch.tensor(-1.3),
    "one of each channel": drawn(2, 1, 1, seed=3),
    "one of each element": drawn(2, 4, 5, seed=3),
    "one of each row": drawn(3, 1, 1, 1, seed=3),
    "rows of the batch": drawn(*SHAPE, seed=3),
}


def truth(x: Tensor, mean: Tensor, logvar: Tensor | float) -> Tensor:
    scale = np.exp(0.5 * np.asarray(logvar, dtype=np.float64))
    terms = scipy.stats.norm.logpdf(x.double().numpy(), mean.double().numpy(), scale)
    return torch.from_numpy(terms.sum((-3, -2, -1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (4,)])
@pytest.mark.parametrize("logvar", LOGVARS.values(), ids=LOGVARS)
def test_it_is_scipys_for_every_kind_of_variance(
    logvar: Any, lead: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, mean = drawn(*SHAPE), drawn(*lead, *SHAPE, seed=1).to(dtype)
    if isinstance(logvar, Tensor):
        logvar = logvar.to(torch.float64 if dtype == torch.float64 else torch.float32)
    found = gaussian_log_prob(x, mean, logvar)
    assert found.shape == (*lead, 3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Some roundings of 40 terms of up to 40 nats.
    bound = 3e-5 if found.dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found.double(), truth(x, mean, logvar), rtol=0, atol=bound)


def test_gradients_are_differences_of_a_variance_of_each_channel_and_of_x() -> None:
    x, mean, logvar = drawn(2, 2, 3), drawn(4, 2, 2, 3, seed=1), drawn(2, 1, seed=2)
    assert_gradients_are_differences(lambda m, v: gaussian_log_prob(x, m, v), mean, logvar)
    assert_gradients_are_differences(lambda m, v, x: gaussian_log_prob(x, m, v), mean, logvar, x)


def test_a_gradient_of_x_changes_no_value() -> None:
    x, mean = drawn(2, 3, dtype=torch.float32), drawn(4, 2, 3, dtype=torch.float32)
    with_gradient = gaussian_log_prob(x.requires_grad_(), mean, 0.5)
    torch.testing.assert_close(with_gradient, gaussian_log_prob(x.detach(), mean, 0.5))
    (found,) = torch.autograd.grad(with_gradient.sum(), x)
    torch.testing.assert_close(found, (mean - x).sum(0) * np.exp(-0.5))


@pytest.mark.parametrize("logvar", [-60.0, 60.0])
def test_extreme_variances_keep_their_digits(logvar: float) -> None:
    x = torch.tensor([[1.0, -2.0]])
    values, found = gradients(
        lambda m, v: gaussian_log_prob(x, m, v), torch.tensor([[0.5, 3.0]]), torch.tensor(logvar)
    )
    precision = np.exp(-logvar)
    squares = 0.25 + 25.0
    wanted = -0.5 * (squares * precision + 2 * logvar + 2 * np.log(2 * np.pi))
    assert values.item() == pytest.approx(wanted, rel=1e-6)
    assert found[0][0].tolist() == pytest.approx([0.5 * precision, -5.0 * precision], rel=1e-5)
    assert found[1].item() == pytest.approx(0.5 * (squares * precision - 2.0), rel=1e-5)


def test_it_is_the_same_if_traced() -> None:
    x, mean = drawn(3, 4, dtype=torch.float32), drawn(2, 3, 4, dtype=torch.float32)
    logvar = torch.zeros(4)
    assert_the_same_if_traced(lambda m, v: gaussian_log_prob(x, m, v), mean, logvar)


def test_unless_given_the_variance_is_one() -> None:
    p = Gaussian(torch.zeros(2, 3))
    torch.testing.assert_close(p.log_prob(torch.zeros(2, 3)), torch.full((2,), -2.7568156))
    assert p.mean.shape == (2, 3)


@pytest.mark.parametrize(
    ("x", "mean", "logvar", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3), 0.0, ValueError, r"mean must have shape \(B, \*event"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), ValueError, "logvar must broadcast"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 2, 3), ValueError, "logvar must br"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "1", TypeError, "logvar must be a tensor or a num"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), 0.0, TypeError, "x must be uint8, bool or f"),
    ],
)
def test_a_wrong_argument_is_named(
    x: Tensor, mean: Tensor, logvar: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^gaussian_log_prob: {message}"):
        gaussian_log_prob(x, mean, logvar)
