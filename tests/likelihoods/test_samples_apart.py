"""Rows of S samples become a dimension of samples, in the fields that have rows alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vaez_fast.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    LogisticMixture,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    samples_apart,
)

from .checking import drawn

S, B, G = 2, 3, 6  # S·B = G: sizes alone do not tell rows from genes
R = S * B
COUNTS = torch.randint(0, 9, (B, G), generator=torch.Generator().manual_seed(0))
VALUES = COUNTS.double()
LEVELS = torch.randint(0, 256, (B, 2, 3, 4), generator=torch.Generator().manual_seed(0)).byte()
LIBRARY = torch.tensor([20.0, 30.0, 50.0])
IMAGES, MIXTURES, PIXELS = (R, 2, 3, 4), (R, 5, 2, 3, 4), (R, 5, 3, 4)

# Parameters with R rows, and the fields that have none.
CASES: dict[str, tuple[Tensor, Likelihood, set[str]]] = {
    "Bernoulli": (COUNTS / 9.0, Bernoulli(drawn(R, G)), set()),
    "fixed scale": (VALUES, Gaussian(drawn(R, G).float(), -1.0), {"logvar"}),
    "a scale of each gene": (VALUES, Gaussian(drawn(R, G), drawn(G)), {"logvar"}),
    "a scale for all": (VALUES, Gaussian(drawn(R, G), drawn()), {"logvar"}),
    "a scale of one row": (VALUES, Gaussian(drawn(R, G), drawn(1, G)), {"logvar"}),
    "a scale of each row": (VALUES, Gaussian(drawn(R, G), drawn(R, 1)), set()),
    "logistic": (LEVELS, DiscretizedLogistic(drawn(*IMAGES), drawn(*IMAGES)), set()),
    "a scale of channels": (
        LEVELS,
        DiscretizedLogistic(drawn(*IMAGES), drawn(2, 1, 1)),
        {"log_scale"},
    ),
    "mixture": (
        LEVELS,
        LogisticMixture(drawn(*MIXTURES), drawn(*MIXTURES), drawn(*MIXTURES)),
        {"event_dims"},
    ),
    "mixture of pixels": (
        LEVELS,
        LogisticMixture(drawn(*PIXELS), drawn(*MIXTURES), drawn(*MIXTURES)),
        {"event_dims"},
    ),
    "categorical": (COUNTS, Categorical(drawn(R, G, 9)), set()),
    "counts": (COUNTS, NegativeBinomial(drawn(R, G), drawn(G)), {"log_dispersion", "library"}),
    "counts of a library of rows": (
        COUNTS,
        NegativeBinomial(drawn(R, G), drawn(R, G, seed=1), LIBRARY.repeat(S)),
        set(),
    ),
    "counts of a library of the batch": (
        COUNTS,
        ZeroInflatedNegativeBinomial(drawn(R, G), drawn(G), drawn(R, G, seed=2), LIBRARY),
        {"log_dispersion", "library"},
    ),
}


def alone(likelihood: Likelihood, kept: set[str], sample: int) -> Likelihood:
    """The likelihood of one sample's rows."""
    rows = slice(sample * B, (sample + 1) * B)
    fields = vars(likelihood).items()
    return type(likelihood)(**{name: v if name in kept else v[rows] for name, v in fields})


@pytest.mark.parametrize(("x", "likelihood", "kept"), CASES.values(), ids=CASES)
def test_each_samples_log_p_and_mean_are_those_of_its_rows(
    x: Tensor, likelihood: Likelihood, kept: set[str]
) -> None:
    kept = kept | {name for name, value in vars(likelihood).items() if value is None}
    apart = samples_apart(likelihood, S)
    assert type(apart) is type(likelihood)
    for name, value in vars(likelihood).items():
        found = getattr(apart, name)
        if name in kept:
            assert found is value, name
        else:
            assert found.shape == (S, B, *value.shape[1:]), name
            assert found.data_ptr() == value.data_ptr(), f"{name} was copied"
    log_p, mean = apart.log_prob(x), apart.mean
    assert log_p.shape == (S, B)
    assert mean.shape == (S, *x.shape)
    for sample in range(S):
        wanted = alone(likelihood, kept, sample)
        torch.testing.assert_close(log_p[sample], wanted.log_prob(x))
        torch.testing.assert_close(mean[sample], wanted.mean)


def test_one_sample_gives_a_dimension_of_one() -> None:
    p = NegativeBinomial(drawn(B, G), drawn(G), LIBRARY)
    apart = samples_apart(p, 1)
    assert apart.logits.shape == (1, B, G)
    torch.testing.assert_close(apart.log_prob(COUNTS)[0], p.log_prob(COUNTS))


@dataclass(frozen=True, eq=False)
class WithoutRows:
    logits: Tensor


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: samples_apart(Bernoulli(drawn(R, G)), 4),
        ValueError,
        "logits must have a multiple of num_samples = 4 rows, got 6",
    ),
    (
        lambda: samples_apart(Gaussian(drawn(R, G), drawn(4, G)), S),
        ValueError,
        r"logvar must have as many rows as mean, 6, got \(4, 6\)",
    ),
    (
        lambda: samples_apart(Gaussian(drawn(R, G), drawn(1, R, G)), S),
        ValueError,
        r"logvar must have at most 2 dimensions, got \(1, 6, 6\)",
    ),
    (
        lambda: samples_apart(Bernoulli(drawn(R, G)), 0),
        ValueError,
        "num_samples must be at least 1",
    ),
    (
        lambda: samples_apart(WithoutRows(drawn(R, G)), S),  # type: ignore[type-var]
        TypeError,
        "likelihood must be a dataclass with log_prob, mean and row_dims, got WithoutRows",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_cannot_be_taken_apart_is_named(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^samples_apart: {message}"):
        call()
