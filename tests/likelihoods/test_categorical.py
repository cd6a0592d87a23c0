"""The categorical likelihood against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from vaez_fast.likelihoods import Categorical, categorical_log_prob

from .checking import assert_gradients_are_differences, assert_the_same_if_traced, drawn, gradients

X = torch.randint(0, 7, (3, 4, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_it_is_the_log_softmax_of_the_class(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = 4.0 * drawn(*lead, 3, 4, 5, 7, seed=1).to(dtype)
    log_p = torch.from_numpy(log_softmax(logits.double().numpy(), axis=-1))
    wanted = sum((log_p[..., k] * X.eq(k) for k in range(7)), torch.zeros(())).sum((-1, -2))
    found = categorical_log_prob(X.to(torch.uint8), logits)
    assert found.shape == (*lead, 3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    logits = torch.tensor([[[1e30, -1e30, 0.0]]]).expand(1, 2, 3)
    x = torch.tensor([[0, 2]])
    values, (found,) = gradients(lambda logits: categorical_log_prob(x, logits), logits)
    assert values.tolist() == [pytest.approx(-1e30)]
    assert found.tolist() == [[[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]]


def test_gradients_are_differences() -> None:
    assert_gradients_are_differences(
        lambda logits: categorical_log_prob(X, logits), drawn(2, 3, 4, 5, 7)
    )


def test_it_is_the_same_if_traced() -> None:
    assert_the_same_if_traced(lambda logits: categorical_log_prob(X, logits), drawn(2, 3, 4, 5, 7))


def test_the_mean_is_that_of_the_number_of_the_class() -> None:
    p = Categorical(torch.log(torch.tensor([[[0.5, 0.25, 0.25]]])))
    torch.testing.assert_close(p.mean, torch.tensor([[0.75]]))


def test_rows_may_be_one_class_each() -> None:
    logits = drawn(3, 7)
    wanted = torch.log_softmax(logits, -1)[torch.arange(3), X[:, 0, 0]]
    torch.testing.assert_close(Categorical(logits).log_prob(X[:, 0, 0]), wanted)


@pytest.mark.parametrize(
    ("x", "logits", "error", "message"),
    [
        (
            X.float(),
            torch.zeros(3, 4, 5, 7),
            TypeError,
            "x must be of an integer dtype, got torch.",
        ),
        (
            X,
            torch.zeros(3, 4, 5),
            ValueError,
            r"logits must have shape \(B, \*event, K\) or \(S, B",
        ),
        (X, torch.zeros(3, 4, 5, 0), ValueError, "logits must have K of at least 1"),
        (X, torch.zeros(3, 4, 5, 7).int(), TypeError, "logits must be float32"),
    ],
)
def test_a_wrong_argument_is_named(
    x: Tensor, logits: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^categorical_log_prob: {message}"):
        categorical_log_prob(x, logits)
