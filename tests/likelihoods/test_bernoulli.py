"""The Bernoulli likelihood of events of any shape, against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vaez_fast.likelihoods import Bernoulli, bernoulli_log_prob
from vaez_kernels import bernoulli_log_prob as fused

from .checking import assert_gradients_are_differences, assert_the_same_if_traced, drawn, gradients


def truth(x: Tensor, logits: Tensor) -> Tensor:
    x, logits = x.double(), logits.double()
    terms = x * F.logsigmoid(logits) + (1.0 - x) * F.logsigmoid(-logits)
    return terms.flatten(logits.dim() - x.dim() + 1).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_it_is_the_formula_of_events_of_any_shape(
    lead: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = (drawn(3, 1, 5, 6) > 0).to(torch.uint8)
    logits = 3.0 * drawn(*lead, 3, 1, 5, 6, seed=1)
    found = bernoulli_log_prob(x, logits.to(dtype))
    assert found.shape == (*lead, 3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The op's absolute error of 1.5e-7 for each of 30 pixels.
    torch.testing.assert_close(
        found.double(), truth(x, logits.to(dtype)), rtol=1e-6, atol=30 * 1.5e-7
    )


def test_it_is_the_fused_op_to_the_last_bit() -> None:
    x, logits = torch.rand(3, 2, 5), drawn(4, 3, 2, 5, dtype=torch.float32)
    wanted = fused(logits.flatten(2), x.flatten(1))
    torch.testing.assert_close(bernoulli_log_prob(x, logits), wanted, rtol=0, atol=0)


def test_a_row_may_be_one_number() -> None:
    x, logits = torch.tensor([0.0, 1.0]), torch.tensor([1.0, -2.0])
    torch.testing.assert_close(
        bernoulli_log_prob(x, logits), truth(x[:, None], logits[:, None]).float()
    )


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    x = torch.tensor([[0.0, 1.0]])
    for sign in (-1.0, 1.0):
        logits = torch.tensor([[sign * 1e30, sign * 1e30]])
        values, (found,) = gradients(lambda logits: bernoulli_log_prob(x, logits), logits)
        torch.testing.assert_close(values, torch.tensor([-1e30]))
        torch.testing.assert_close(found, x - float(sign > 0))


def test_gradients_are_differences() -> None:
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double()
    assert_gradients_are_differences(
        lambda logits, x: bernoulli_log_prob(x, logits), drawn(2, 3, 4), x
    )


def test_it_is_the_same_if_traced() -> None:
    x = (drawn(3, 4) > 0).to(torch.uint8)
    logits = drawn(3, 4, dtype=torch.float32)
    assert_the_same_if_traced(lambda logits: bernoulli_log_prob(x, logits), logits)


def test_the_mean_is_the_probability_of_one() -> None:
    p = Bernoulli(torch.tensor([[0.0, 2.0]]).bfloat16())
    assert p.mean.dtype == torch.float32
    torch.testing.assert_close(p.mean, torch.tensor([[0.5, 0.880797]]))
    x = torch.tensor([[1, 0]], dtype=torch.uint8)
    torch.testing.assert_close(p.log_prob(x), torch.log(p.mean[:, 0] * (1 - p.mean[:, 1])))


@pytest.mark.parametrize(
    ("x", "logits", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), ValueError, r"logits must have shape \(B, \*event"),
        (torch.zeros(2, 3), torch.zeros(1, 1, 2, 3), ValueError, "logits must have shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), TypeError, "logits must be float32"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), TypeError, "x must be uint8, bool or float"),
        (torch.zeros(()), torch.zeros(()), ValueError, r"x must have shape \(B, \*event\), got"),
        ([0.0], torch.zeros(1), TypeError, "x must be a tensor, got list"),
    ],
)
def test_a_wrong_argument_is_named(
    x: Tensor, logits: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^bernoulli_log_prob: {message}"):
        bernoulli_log_prob(x, logits)
