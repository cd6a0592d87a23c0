"""The law of z as a number: KL(q(z) ‖ N(0, I)) from below and from above, in nats.

From below: for every density r, KL(q ‖ p) ≥ E_q[log r(z) − log p(z)], because KL(q ‖ r) ≥ 0 (Gibbs;
the bound of Donsker and Varadhan with a normalised r). The expectation is over z of images to which
r was not fitted. From above: q(z) as the mixture of all training images' posteriors, see `surgery`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaez_kernels import mixture_log_prob

from ..flows import log_standard_normal
from ..streams import KL_BOUND
from .aggregate import draw_aggregate, log_gaussian, mean_of_draws
from .codes import INFORMATIVE, Codes
from .densities import Density, Embedded, fit_gaussian
from .flow_density import fit_flow
from .mixtures import fit_components, fit_mixtures, supported

KINDS = ("diagonal", "full-covariance", "mixture", "flow")
THRESHOLDS = (0.01, INFORMATIVE, 0.5)  # nats
THRESHOLD_COMPONENTS = (10, 50)
# Draws times images times latents of the bound from above: 500 draws of 50,000 images of 128
# latents, and never more than 10,000 draws.
EXPONENTIALS, MOST_DRAWS = 3_200_000_000, 10_000


class Bound(NamedTuple):
    """A bound in nats, and its standard error over images or draws."""

    value: float
    standard_error: float
    how: str


@dataclass(frozen=True)
class Threshold:
    """The latents above another threshold of "informative", and lower bounds over these."""

    threshold: float  # nats
    informative: int
    lower: dict[str, Bound]  # "full-covariance", and "mixture-50" or what the codes support


@dataclass(frozen=True)
class SquaredNorm:
    """|z|² over d latents; N(0, I) has mean d, variance 2d and shell 1."""

    d: int
    mean: float
    variance: float

    @property
    def shell(self) -> float:
        """Variance / 2d: below 1 if z lies on a shell, above 1 if its tails are heavy."""
        return self.variance / (2 * self.d)

    def as_dict(self) -> dict[str, float]:
        """For JSON: d, mean, variance and shell."""
        return asdict(self) | {"shell": self.shell}


@dataclass(frozen=True)
class LawOfZ:
    """How far q(z) is from N(0, I), and in what way."""

    informative: list[int]
    measured: list[int]
    lower: dict[str, Bound]  # by density, on test codes
    kl_lower: Bound  # of the density that is best on validation codes
    kl_upper: Bound  # the plug-in estimate
    leave_one_out: Bound
    squared_norm: SquaredNorm  # over the measured latents, of test codes
    thresholds: list[Threshold]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bounds are {"value", "standard_error", "how"}."""
        return {
            "informative": self.informative,
            "measured": self.measured,
            "lower": _bounds(self.lower),
            "kl_lower": self.kl_lower._asdict(),
            "kl_upper": self.kl_upper._asdict(),
            "leave_one_out": self.leave_one_out._asdict(),
            "squared_norm": self.squared_norm.as_dict(),
            "thresholds": [vars(t) | {"lower": _bounds(t.lower)} for t in self.thresholds],
        }


def measure_law(codes: Codes, seed: int, densities: dict[str, Embedded] | None = None) -> LawOfZ:
    """KL(q(z) ‖ N(0, I)) as an interval, and the shape of z.

    Args:
        codes: of all splits; densities are fitted to the training codes, compared on the validation
            codes, and bound the KL on the test codes.
        seed: of the flow and of the draws of the upper bound.
        densities: those of `fit_densities(codes, seed)`, if they are there already.

    Raises:
        ValueError: too few codes, see `fit_densities`.
    """
    densities = densities or fit_densities(codes, seed)
    measured, test = codes.measured(), codes.test.z
    lower = {name: lower_bound(density, test) for name, density in densities.items()}
    best = best_density(densities, codes.validation.z)
    noise = KL_BOUND.key(seed, device=test.device)
    plug_in, leave_one_out = upper_bound(codes, noise, draws_within_seconds(*codes.train.mu.shape))
    return LawOfZ(
        informative=codes.informative().tolist(),
        measured=measured.tolist(),
        lower=lower,
        kl_lower=lower[best]._replace(
            how=f"{best}, fitted to {len(codes.train.z):,} codes, chosen on "
            f"{len(codes.validation.z):,} and evaluated on {len(test):,} others"
        ),
        kl_upper=plug_in,
        leave_one_out=leave_one_out,
        squared_norm=squared_norm(codes),
        thresholds=_thresholds(codes, lower),
    )


def squared_norm(codes: Codes) -> SquaredNorm:
    """|z|² of the test codes over the measured latents."""
    measured = codes.measured()
    squares = codes.test.z[:, measured].double().square().sum(1)
    return SquaredNorm(len(measured), float(squares.mean()), float(squares.var()))


def fit_densities(codes: Codes, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Embedded]:
    """Densities of the measured latents, fitted to the training codes, by name.

    The names are "diagonal", "full-covariance", "mixture-10", "mixture-50" and "mixture-200", as
    far as the codes support so many components, and "flow". Under each the latents that are not
    measured are N(0, 1), so they add exactly 0 to a lower bound, which remains valid.

    A flow needs two latents: if one is measured, the one of the next largest KL joins it. A model
    of one latent has no flow.

    Args:
        seed: of the flow.
        kinds: which of `KINDS` to fit.

    Raises:
        ValueError: too few training codes, or a flow was asked for and the model has one latent.
    """
    z, validation_z, measured = codes.train.z, codes.validation.z, codes.measured()
    found: dict[str, tuple[Density, Tensor]] = {}
    if "diagonal" in kinds:
        found["diagonal"] = fit_gaussian(z[:, measured], "diagonal"), measured
    if "full-covariance" in kinds:
        found["full-covariance"] = fit_gaussian(z[:, measured], "full"), measured
    if "mixture" in kinds:
        for K, mixture in fit_mixtures(z[:, measured], validation_z[:, measured]).items():
            found[f"mixture-{K}"] = mixture, measured
    if "flow" in kinds and (z.shape[1] > 1 or kinds == ("flow",)):
        two = measured if len(measured) > 1 else codes.kl.topk(min(2, z.shape[1])).indices.sort()[0]
        found["flow"] = fit_flow(z[:, two], validation_z[:, two], seed), two
    return {name: Embedded(density, of, z.shape[1]) for name, (density, of) in found.items()}


def best_density(densities: dict[str, Embedded], validation_z: Tensor) -> str:
    """The name of the density with the highest mean log density of validation codes (V, D)."""
    return max(densities, key=lambda name: float(densities[name].log_prob(validation_z).mean()))


def lower_bound(density: Density, z: Tensor) -> Bound:
    """E_q[log r(z) − log N(z; 0, I)] ≤ KL(q(z) ‖ N(0, I)), and its standard error over images.

    Args:
        density: r.
        z: (N, D), N ≥ 2, one z of q(z|x) for each of N images to which r was not fitted.
    """
    ratio = density.log_prob(z) - log_standard_normal(z.double())
    value, error = mean_of_draws(ratio)
    return Bound(value, error, f"mean of log r(z) − log p(z) over {len(z):,} codes")


def upper_bound(codes: Codes, noise: Tensor, num_samples: int) -> tuple[Bound, Bound]:
    """The plug-in and the leave-one-out estimate of KL(q(z) ‖ N(0, I)) over all D latents.

    q(z) is the mixture of all N training images' posteriors. In expectation over the images, the
    plug-in estimate is above the KL of the population (convexity), and the leave-one-out estimate,
    which skips the draw's own component, below it; see `surgery`, whose definitions these are.
    Both statements hold for images that the encoder was not trained on. An encoder that treats its
    training images differently makes these estimates of their law, not of the test images'.
    The density with the own component follows from the one without it, so one pass gives both.

    Args:
        noise: (2,) int64 on the codes' device, from `streams.KL_BOUND`.
        num_samples: M ≥ 2 draws of q(z), spread over the images.

    Raises:
        ValueError: fewer than two images or draws.
    """
    mu, logvar, _ = codes.train
    N = len(mu)
    if N < 2 or num_samples < 2:
        raise ValueError(
            f"upper_bound: at least two images and two draws are needed, got {N} and {num_samples}"
        )
    component, z = draw_aggregate(mu, logvar, noise, num_samples)
    own = log_gaussian(z, mu[component], logvar[component])
    others = mixture_log_prob(z, mu, logvar, leave_out=component).double()
    aggregate = torch.logaddexp(others + math.log(N - 1), own) - math.log(N)
    log_p = log_standard_normal(z.double())
    how = f"{num_samples:,} draws of the mixture of {N:,} posteriors"
    return (
        Bound(*mean_of_draws(aggregate - log_p), f"plug-in, {how}"),
        Bound(*mean_of_draws(others - log_p), f"leave-one-out, {how}"),
    )


def draws_within_seconds(N: int, D: int) -> int:
    """The number of draws for `upper_bound` of N images and D latents; two cores take seconds.

    At most N: draws of the same image are not independent, so more would make the standard errors
    too small.
    """
    return min(MOST_DRAWS, N, max(2, EXPONENTIALS // (N * D)))


def _thresholds(codes: Codes, lower: dict[str, Bound]) -> list[Threshold]:
    # Thresholds between which no latent lies share their bounds.
    known: dict[tuple[int, ...], dict[str, Bound]] = {(): {}}
    measured = codes.measured()
    shared = _threshold_densities(len(codes.train.z), len(measured))
    known[(*measured.tolist(),)] = {name: lower[name] for name in shared if name in lower}
    found = []
    for threshold in THRESHOLDS:
        latents = codes.informative(threshold)
        key = (*latents.tolist(),)
        if key not in known:
            known[key] = _lower_bounds(codes, latents)
        found.append(Threshold(threshold, len(latents), known[key]))
    return found


def _threshold_densities(N: int, d: int) -> dict[str, int]:
    # by name, with the number of components
    mixtures = [K for K in THRESHOLD_COMPONENTS if supported(K, N, d)][-1:]
    return {"full-covariance": 1} | {f"mixture-{K}": K for K in mixtures}


def _lower_bounds(codes: Codes, latents: Tensor) -> dict[str, Bound]:
    train, validation, test = (
        part.z[:, latents] for part in (codes.train, codes.validation, codes.test)
    )
    return {
        name: lower_bound(
            fit_gaussian(train) if K == 1 else fit_components(train, validation, K), test
        )
        for name, K in _threshold_densities(*train.shape).items()
    }


def _bounds(bounds: dict[str, Bound]) -> dict[str, Any]:
    return {name: bound._asdict() for name, bound in bounds.items()}
