"""ELBO, rate, distortion and importance-sampled log p(x) of any model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sources import Entry
from .elbo import Elbo
from .rows import Rows

# Rows and samples that are decoded at once.
ROWS_AT_ONCE, SAMPLES_AT_ONCE = 64, 16


@dataclass(frozen=True)
class Evaluation:
    """Means over the rows of a data set, in nats per row, with their standard errors.

    `log_px` is log 1/S Σ_s p(x, z_s)/q(z_s|x), a lower bound of log p(x) in expectation (Burda et
    al. 2016, equation 8); the other three are estimated from the same samples.
    """

    rows: int
    samples: int
    elbo: float
    rate: float
    distortion: float
    log_px: float
    elbo_error: float
    log_px_error: float
    dimensions: int  # numbers in a row of what the likelihood scores

    @property
    def bits_per_dimension(self) -> float:
        """−log p(x) in bits for each number of a row: what papers on colour images report."""
        return -self.log_px / (self.dimensions * math.log(2.0))

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.samples:,} samples of z each, nats per row:\n"
            f"  ELBO        {self.elbo:.3f} ± {self.elbo_error:.3f}\n"
            f"  rate        {self.rate:.3f}\n"
            f"  distortion  {self.distortion:.3f}\n"
            f"  log p(x)  ≥ {self.log_px:.3f} ± {self.log_px_error:.3f}"
            f"  ({self.bits_per_dimension:.4f} bits per dimension)"
        )


@torch.no_grad()
def evaluate(
    elbo: Elbo, data: Mapping[str, Entry], noise: Tensor, samples: int, *, bare: bool
) -> Evaluation:
    """Evaluate a model on all rows of `data`, in evaluation mode; memory does not grow with S.

    Args:
        elbo: the model with its prior, on the device of the data.
        data: the entries.
        noise: (2,) int64; row n and sample s have their own numbers, however they are grouped.
        samples: S ≥ 1.
        bare: whether the model gets the only entry itself.
    """
    modes = [(module, module.training) for module in elbo.modules()]
    elbo.eval()
    try:
        rows = Rows(data, 1, bare=bare)
        starts = range(0, rows.size, ROWS_AT_ONCE)
        found = torch.cat([_of_rows(elbo, rows, first, noise, samples) for first in starts], 1)
        dimensions = elbo.scored(rows.at(torch.zeros(1, dtype=torch.int64, device=rows.device)))
    finally:
        for module, training in modes:
            module.training = training
    means = found.mean(1).tolist()
    spread = found.std(1, correction=1 if rows.size > 1 else 0) / math.sqrt(rows.size)
    rate, distortion, log_px, bound = means
    return Evaluation(
        rows=rows.size,
        samples=samples,
        elbo=bound,
        rate=rate,
        distortion=distortion,
        log_px=log_px,
        elbo_error=float(spread[3]),
        log_px_error=float(spread[2]),
        dimensions=dimensions[0].numel(),
    )


def _of_rows(elbo: Elbo, rows: Rows, first: int, noise: Tensor, samples: int) -> Tensor:
    # → (4, B) float64: rate, distortion, log p(x), ELBO
    last = min(first + ROWS_AT_ONCE, rows.size)
    batch = rows.at(torch.arange(first, last, device=rows.device))
    posterior = elbo.encode(batch)
    zeros = torch.zeros(last - first, dtype=torch.float64, device=rows.device)
    rate, distortion, log_sum = zeros, zeros, torch.full_like(zeros, -math.inf)
    for sample in range(0, samples, SAMPLES_AT_ONCE):
        count = min(SAMPLES_AT_ONCE, samples - sample)
        z, log_q = elbo.draw(posterior, noise, count, row_offset=first, sample_offset=sample)
        log_px_z = elbo.log_likelihood(z, batch).double()
        log_ratio = log_q.double() - elbo.log_prior(z).double()
        rate, distortion = rate + log_ratio.sum(0), distortion - log_px_z.sum(0)
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_px_z - log_ratio, 0))
    rate, distortion = rate / samples, distortion / samples
    return torch.stack((rate, distortion, log_sum - math.log(samples), -rate - distortion))
