"""The numbers of a study's runs by name: what the rules judge and the report shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# The article's frameworks; the first is its "current method".
CURRENT, ANALYTIC = "elbo/total-derivative/joint", "elbo/analytic/joint"
SEPARATE, SIMULTANEOUS = "kl/total-derivative/separate", "kl/total-derivative/simultaneous"
KL_ALONE = "kl/analytic/separate"
AS_PUBLISHED = "kl/as-published/separate"
RANDN = "randn"

Results = dict[str, Any]
Read = Callable[[Results], float]


def values(results: Results, arm: str, read: Read) -> list[float]:
    """A number from each run of `arm`, one per seed."""
    return [read(run) for run in results["runs"] if run["arm"] == arm]


def number(path: str) -> Read:
    """Reads the number at a dotted path of a run's record; null is NaN."""

    def read(run: Results) -> float:
        place: Any = run
        for key in path.split("."):
            place = place[key]
        return math.nan if place is None else float(place)

    return read


sample_kl = number("latents.sample_kl")
rate = number("test.rate")
distortion = number("test.distortion")
elbo = number("test.elbo")
log_px = number("log_px.value")  # from 5,000 samples
active_units = number("latents.active_units")
rate_of_surgery = number("latents.surgery.rate")
held_out_marginal_kl = number("latents.held_out_marginal_kl.value")
kl_lower = number("latents.law.kl_lower.value")
kl_upper = number("latents.law.kl_upper.value")
shell = number("latents.law.squared_norm.shell")  # var |z|² / 2d


def surgery(part: str) -> Read:
    """A part of the rate: see `vaez_fast.measures.aggregate.Surgery`."""
    return number(f"latents.surgery.{part}.value")


def moment(name: str) -> Read:
    """An extreme of the moments: see `vaez_fast.measures.aggregate.Moments`."""
    return number(f"latents.moments.{name}")


def lower(density: str) -> Read:
    """The lower bound of KL(q(z) ‖ N(0, I)) in nats by one family of densities."""

    def read(run: Results) -> float:
        return float(run["latents"]["law"]["lower"][density]["value"])

    return read


def image_metric(sampler: str, metric: str) -> Read:
    """A metric of the images whose z come from a sampler."""
    return lambda run: float(run["images"][sampler][metric])


def frechet(sampler: str) -> Read:
    return image_metric(sampler, "frechet")


def covariance_gain(run: Results) -> float:
    """What a full covariance adds to a diagonal Gaussian's lower bound, in nats."""
    return lower("full-covariance")(run) - lower("diagonal")(run)


def shape_gain(run: Results) -> float:
    """What the best density adds to a Gaussian's lower bound, in nats."""
    return kl_lower(run) - lower("full-covariance")(run)


def gap_closed(run: Results) -> float:
    """Percent that a mixture closes of the Fréchet gap from N(0, I) to held-out posteriors."""
    standard, fitted, posterior = (
        frechet(name)(run) for name in ("standard-normal", "mixture", "held-out-posterior")
    )
    return 100.0 * (standard - fitted) / (standard - posterior)


QUANTITIES: dict[str, Read] = {
    "sample_kl": sample_kl,
    "rate": rate,
    "distortion": distortion,
    "elbo": elbo,
    "log_px": log_px,
    "kl_lower": kl_lower,
    "kl_upper": kl_upper,
    "covariance_gain": covariance_gain,
    "shape_gain": shape_gain,
    "gap_closed": gap_closed,
    "frechet/mixture": frechet("mixture"),
    "frechet/standard-normal": frechet("standard-normal"),
}
