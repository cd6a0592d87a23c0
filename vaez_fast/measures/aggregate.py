"""The aggregate posterior q(z) = 1/N Σ_n q(z|x_n): how far it is from N(0, I), and why.

The rate that every ELBO reports is not that distance. Hoffman and Johnson ("ELBO surgery", 2016)
split the rate, and Chen et al. ("Isolating sources of disentanglement", 2018, equation 2) the KL:

    rate = I(z; n) + KL(q(z) ‖ p(z))
    KL(q(z) ‖ p(z)) = KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))

The terms are the index information, the total correlation and the dimension-wise KL, in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vaez_kernels import mixture_log_prob, normal, uniform

from ..flows import log_standard_normal

# Elements of a (draws, components, D) block, 4 MB on a CPU. Blocks of an eighth are 25 % faster on
# idle cores. On busy cores each operation waits for a time slice, so fewer, larger ones are faster.
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
DRAWS_AT_ONCE = 16
# The aggregate posterior of a run is the mixture of this many training images' posteriors.
AGGREGATE_IMAGES = 20_000
LOG_2PI = math.log(2.0 * math.pi)


class Estimate(NamedTuple):
    """A mean over Monte Carlo draws, and the standard error of that mean."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Surgery:
    """The parts of the rate, nats per image, by `num_samples` draws of q(z) over `num_images`."""

    rate: float  # mean analytic KL(q(z|x) ‖ N(0, I)) over all images
    index_information: Estimate  # I(z; n) ≤ log num_images
    marginal_kl: Estimate  # KL(q(z) ‖ N(0, I)) ≥ rate − log num_images
    total_correlation: Estimate  # KL(q(z) ‖ Π_j q(z_j))
    dimension_wise_kl: Estimate  # Σ_j KL(q(z_j) ‖ N(0, 1))
    leave_one_out_marginal_kl: Estimate
    num_images: int
    num_samples: int


@dataclass(frozen=True)
class Moments:
    """Extremes over the D dimensions (or pairs of them) of n draws; N(0, I) has 0, 1, 1, 0, 0, 0.

    Finite draws of N(0, I) deviate too: compare with the extremes of as many `normal` numbers.
    """

    largest_abs_mean: float
    smallest_variance: float
    largest_variance: float
    largest_abs_correlation: float  # over pairs of different dimensions; 0 if D = 1
    smallest_excess_kurtosis: float
    largest_excess_kurtosis: float


def surgery(mu: Tensor, logvar: Tensor, noise: Tensor, num_samples: int) -> Surgery:
    """Split the rate of N images into index information and marginal KL, and split the latter.

    q(z) is the mixture over these N images, so `index_information` cannot exceed log N. If the
    posteriors of the images do not overlap, it equals log N however much more the latents know, and
    the rest of the rate counts as `marginal_kl`. A draw's own component is part of q(z), as in the
    definition.

    The N images are a sample themselves. In expectation over them, `marginal_kl` is above the KL
    of the whole population (convexity). `leave_one_out_marginal_kl`, in which q(z) skips the draw's
    own component, is below it (Gibbs' inequality; for the index information it is the
    leave-one-out bound of Poole et al., "On variational bounds of mutual information", 2019). The
    truth lies between the two; if they are far apart, N is too small.

    Draws m = 0, 1, … go through the images in a random order given by the noise's key, repeatedly
    if num_samples > N. The standard errors are those of the mixture of these N images, slightly
    too large because no image repeats before each was drawn; for the population they hold only if
    num_samples ≤ N. `rate − index_information` also estimates `marginal_kl`, better if I is close
    to log N.

    Args:
        mu, logvar: (N, D) float32 of q(z|x_n), N ≥ 2.
        noise: (2,) int64 from `noise_key(seed, "evaluate", …)`, on mu's device. Its sample 0 orders
            the images, its sample 1 is eps.
        num_samples: M ≥ 2 draws. Time is proportional to M·N·D exponentials.

    Raises:
        ValueError: fewer than two images or draws.
    """
    _check_count_of_draws("surgery", mu, num_samples)
    component, z = draw_aggregate(mu, logvar, noise, num_samples)
    own = log_gaussian(z, mu[component], logvar[component])
    aggregate = mixture_log_prob(z, mu, logvar).double()
    others = mixture_log_prob(z, mu, logvar, leave_out=component).double()
    marginals = _log_marginals(z, mu, logvar)
    log_p = log_standard_normal(z.double())
    return Surgery(
        rate=float(kl_per_dimension(mu, logvar).sum()),
        index_information=mean_of_draws(own - aggregate),
        marginal_kl=mean_of_draws(aggregate - log_p),
        total_correlation=mean_of_draws(aggregate - marginals),
        dimension_wise_kl=mean_of_draws(marginals - log_p),
        leave_one_out_marginal_kl=mean_of_draws(others - log_p),
        num_images=len(mu),
        num_samples=num_samples,
    )


def held_out_marginal_kl(
    mu: Tensor,
    logvar: Tensor,
    held_out_mu: Tensor,
    held_out_logvar: Tensor,
    noise: Tensor,
    num_samples: int,
) -> Estimate:
    """E[log q(z) − log p(z)] in nats: q(z) of N images, z from the posteriors of H other images.

    Like the leave-one-out estimate, it is in expectation a lower bound of the marginal KL of the
    whole population, unless the encoder treats held-out images differently from those it was
    trained on. It may be negative.

    Args:
        mu, logvar: (N, D) float32, whose mixture is q(z).
        held_out_mu, held_out_logvar: (H, D) float32, H ≥ 2, from which z is drawn.
        noise, num_samples: as for `surgery`.
    """
    _check_count_of_draws("held_out_marginal_kl", held_out_mu, num_samples)
    _, z = draw_aggregate(held_out_mu, held_out_logvar, noise, num_samples)
    log_q = mixture_log_prob(z, mu, logvar).double()
    return mean_of_draws(log_q - log_standard_normal(z.double()))


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """Mean over the images of KL(q(z_j|x) ‖ N(0, 1)) in nats: (N, D) → (D,) float64."""
    mu, logvar = mu.double(), logvar.double()
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar).mean(0)


def active_units(mu: Tensor, threshold: float = 0.01) -> int:
    """The number of dimensions with Var_x E[z_j|x] > threshold (Burda et al. 2016, section 5.2)."""
    return int((mu.double().var(0, correction=0) > threshold).sum())


def sample_kl(z: Tensor) -> float:
    """KL(N(m, diag v) ‖ N(0, I)) in nats; m and v are the mean and variance of n draws z (n, D).

    The variance is the biased one (a mean of squares), the maximum-likelihood fit. Draws of N(0, I)
    have a positive value as well: `null_sample_kl` on average.
    """
    z = z.double()
    variance, mean = torch.var_mean(z, 0, correction=0)
    return float(0.5 * (mean.square() + variance - 1.0 - variance.log()).sum())


def null_sample_kl(n: float, D: int) -> float:
    """The exact expectation of `sample_kl` over n draws of N(0, I_D); D/n to first order.

    E[m² + v] = 1, and n·v is chi-squared with n − 1 degrees of freedom, whose mean logarithm is
    log 2 + digamma((n − 1)/2). ValueError for n < 2.
    """
    if n < 2:
        raise ValueError(f"null_sample_kl: n must be at least 2, got {n}")
    half = torch.tensor(0.5 * (n - 1), dtype=torch.float64)
    return 0.5 * D * (math.log(0.5 * n) - float(torch.digamma(half)))


def moments(z: Tensor) -> Moments:
    """Extremes of the moments of z (n, D); constant dimensions make them NaN."""
    z = z.double()
    variance, mean = torch.var_mean(z, 0, correction=0)
    unit = (z - mean) / variance.sqrt()
    correlation = (unit.T @ unit / len(z)).abs().fill_diagonal_(0.0)
    kurtosis = unit.square().square().mean(0) - 3.0
    return Moments(
        largest_abs_mean=float(mean.abs().max()),
        smallest_variance=float(variance.min()),
        largest_variance=float(variance.max()),
        largest_abs_correlation=float(correlation.max()),
        smallest_excess_kurtosis=float(kurtosis.min()),
        largest_excess_kurtosis=float(kurtosis.max()),
    )


def log_gaussian(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z_m; mu_m, diag exp(logvar_m)) in nats, each (M, D) → (M,) float64."""
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    distance = (z - mu) * torch.exp(-0.5 * logvar)
    return -0.5 * (distance.square() + logvar + LOG_2PI).sum(1)


def _log_marginals(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    # z (M, D); mu, logvar (N, D) → Σ_j log q(z_mj) (M,) float64
    # The expanded square would lose most digits to cancellation where σ is small.
    N, D = mu.shape
    scale = math.sqrt(0.5) * torch.exp(-0.5 * logvar)
    # −½ log σ² minus its maximum over n, so that no exponential overflows. It underflows 13 σ away
    # from every component, but no draw is that far from its own.
    top = (-0.5 * logvar).amax(0)
    below = -0.5 * logvar - top
    constant = float(top.double().sum()) - D * (0.5 * LOG_2PI + math.log(N))
    columns = max(1, BLOCK[z.device.type] // (DRAWS_AT_ONCE * D))
    parts = []
    for drawn in z[:, None].split(DRAWS_AT_ONCE):
        density = torch.zeros(len(drawn), D, dtype=torch.float64, device=z.device)
        for n in range(0, N, columns):
            part = slice(n, n + columns)
            distance = (drawn - mu[part]).mul_(scale[part])  # (m, n, D)
            log_q = torch.addcmul(below[part], distance, distance, value=-1.0)
            density += log_q.exp_().sum(1)
        parts.append(density.log().sum(1))
    return torch.cat(parts) + constant


def draw_aggregate(mu: Tensor, logvar: Tensor, noise: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """M draws of the mixture of N posteriors, in `surgery`'s order: component (M,) int64, z (M, D).

    Sample 0 of `noise` orders the images, sample 1 is eps.
    """
    order = uniform(noise, 1, len(mu), 1).flatten().argsort(stable=True)
    component = order[torch.arange(count, device=mu.device) % len(mu)]
    # Sample 1, because uniform and normal numbers of one sample come from the same words.
    eps = normal(noise, 1, count, mu.shape[1], sample_offset=1)[0]
    return component, mu[component] + torch.exp(0.5 * logvar[component]) * eps


def mean_of_draws(draws: Tensor) -> Estimate:
    """The mean of draws (M,) and its standard error, M ≥ 2."""
    spread, mean = torch.std_mean(draws)
    return Estimate(float(mean), float(spread) / math.sqrt(len(draws)))


def _check_count_of_draws(function: str, mu: Tensor, num_samples: int) -> None:
    if len(mu) < 2:
        raise ValueError(f"{function}: at least two images are needed, got {len(mu)}")
    if num_samples < 2:
        raise ValueError(f"{function}: num_samples must be at least 2, got {num_samples}")
