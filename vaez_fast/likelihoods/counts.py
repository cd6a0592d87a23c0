"""Counts: the negative binomial law, and the same with extra zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels.checks import check_device, check_tensor

from .negative_binomial import log_pmf
from .shapes import check_broadcast, check_parameter, check_rows, softplus, sum_last, wide

NB, ZINB = "negative_binomial_log_prob", "zero_inflated_negative_binomial_log_prob"
COUNTS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
)
WANTED = "of an integer or floating-point dtype"


def negative_binomial_log_prob(
    x: Tensor, logits: Tensor, log_dispersion: Tensor, library: Tensor | None = None
) -> Tensor:
    """log p(x|z) of counts with mean m and variance m + m²/θ, in nats, summed over the event:

        lgamma(x + θ) − lgamma(θ) − lgamma(x + 1) + θ·log(θ/(θ + m)) + x·log(m/(θ + m)),

    evaluated so that digits remain at every θ; θ → ∞ gives the Poisson law. Lopez et al., "Deep
    generative modeling for single-cell transcriptomics", 2018.

    Args:
        x: (B, *event), counts in any integer or floating-point dtype. Values are not checked.
        logits: (B, *event) or (S, B, *event). m = exp(logits), or with `library`
            library·softmax(logits) over the G genes.
        log_dispersion: log θ, broadcasts to the shape of logits: (G,) for one of each gene.
        library: the total of each row of x (B, G), 0 for a row of zeros: (B,) or (S, B), of any
            dtype that x can have.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 parameters). Gradients flow to all parameters,
        not to x. Where m or θ would overflow as a float32 (above e⁸⁰; in float64 e⁷⁰¹), it counts
        as that. `negative_binomial.log_pmf` states the error of an element.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    log_mean, log_theta = _parameters(NB, x, logits, log_dispersion, library)
    return sum_last(log_pmf(x, log_mean, log_theta), x.dim() - 1)


def zero_inflated_negative_binomial_log_prob(
    x: Tensor,
    logits: Tensor,
    log_dispersion: Tensor,
    zero_logits: Tensor,
    library: Tensor | None = None,
) -> Tensor:
    """log p(x|z) in nats where a count is 0 with probability π = σ(zero_logits), and is else drawn
    from a negative binomial p: log(π + (1 − π)·p(0)) for a zero, log(1 − π) + log p(x) for others.

    Args:
        x, logits, log_dispersion, library: those of `negative_binomial_log_prob`.
        zero_logits: log π/(1 − π), broadcasts to the shape of logits.

    Returns:
        (B,) or (S, B), float32 (float64 for float64 parameters). Gradients flow to all parameters,
        not to x.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or device.
    """
    log_mean, log_theta = _parameters(ZINB, x, logits, log_dispersion, library)
    check_broadcast(ZINB, "zero_logits", zero_logits, "logits", logits)
    zero_logits = zero_logits.to(torch.promote_types(log_mean.dtype, zero_logits.dtype))
    drawn = log_pmf(x, log_mean, log_theta) - softplus(zero_logits)
    zero = torch.logaddexp(-softplus(-zero_logits), drawn)
    return sum_last(torch.where(x == 0, zero, drawn), x.dim() - 1)


@dataclass(frozen=True, eq=False)
class NegativeBinomial:
    """p(x|z) of independent counts; see `negative_binomial_log_prob`."""

    logits: Tensor
    log_dispersion: Tensor
    library: Tensor | None = None

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return negative_binomial_log_prob(x, self.logits, self.log_dispersion, self.library)

    @property
    def mean(self) -> Tensor:
        """m, of the shape of logits."""
        return torch.exp(_log_mean(self.logits, self.library, wide(self.logits)))

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return _row_dims(self.logits, "log_dispersion")


@dataclass(frozen=True, eq=False)
class ZeroInflatedNegativeBinomial:
    """p(x|z) of counts with extra zeros; see `zero_inflated_negative_binomial_log_prob`."""

    logits: Tensor
    log_dispersion: Tensor
    zero_logits: Tensor
    library: Tensor | None = None

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Likelihood`."""
        return zero_inflated_negative_binomial_log_prob(
            x, self.logits, self.log_dispersion, self.zero_logits, self.library
        )

    @property
    def mean(self) -> Tensor:
        """(1 − π)·m, of the shape of logits."""
        log_mean = _log_mean(self.logits, self.library, wide(self.logits, self.zero_logits))
        return torch.exp(log_mean - softplus(self.zero_logits.to(log_mean.dtype)))

    def row_dims(self) -> Mapping[str, int]:
        """See `Likelihood`."""
        return _row_dims(self.logits, "log_dispersion", "zero_logits")


def _row_dims(logits: Tensor, *others: str) -> dict[str, int]:
    # One library size is a row's, so that its only dimension is that of rows.
    return {**dict.fromkeys(("logits", *others), logits.dim()), "library": 1}


def _parameters(
    op: str, x: Tensor, logits: Tensor, log_dispersion: Tensor, library: Tensor | None
) -> tuple[Tensor, Tensor]:
    """log m and log θ, after the checks."""
    check_rows(op, x, COUNTS, WANTED)
    check_parameter(op, "logits", logits, x)
    check_broadcast(op, "log_dispersion", log_dispersion, "logits", logits)
    if library is not None:
        check_tensor(op, "library", library)
        if library.dtype not in COUNTS:
            raise TypeError(f"{op}: library must be {WANTED}, got {library.dtype}")
        if x.dim() != 2:
            raise ValueError(f"{op}: library needs x of shape (B, G), got {tuple(x.shape)}")
        rows = tuple(logits.shape[: logits.dim() - x.dim() + 1])
        if tuple(library.shape) not in (rows, rows[-1:]):
            raise ValueError(
                f"{op}: library must have the shape of logits' rows {rows}, or {rows[-1:]}, "
                f"got {tuple(library.shape)}"
            )
        check_device(op, "library", library, "logits", logits)
    dtype = wide(logits, log_dispersion)
    return _log_mean(logits, library, dtype), log_dispersion.to(dtype)


def _log_mean(logits: Tensor, library: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = logits.to(dtype)
    if library is None:
        return logits
    return torch.log(library.to(dtype))[..., None] + torch.log_softmax(logits, -1)
