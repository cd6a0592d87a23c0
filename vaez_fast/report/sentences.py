"""What a study's report says of the decoder in whole sentences."""

from __future__ import annotations

from typing import Any

from ..measures.intervals import interval
from ..study.readings import ANALYTIC, KL_ALONE, distortion, rate, values

Results = dict[str, Any]


def beside_marginals(results: Results) -> str:
    """The decoder that knows nothing of x beside each pixel's frequency."""
    score = interval([-value for value in values(results, KL_ALONE, distortion)])
    marginal = results["beside"]["marginal_log_prob"]
    left = interval(values(results, KL_ALONE, rate))
    return (
        f"With each pixel's frequency in the training split, a decoder that knows nothing of x "
        f"scores {marginal:.2f} nats. The decoder trained after {KL_ALONE} scores {score.text()}, "
        f"{score.mean - marginal:+.2f} nats from it, with {left.text()} nats of rate left in its "
        "encoder."
    )


def from_both_sides(results: Results) -> str:
    """log p(x) of the ordinary VAE's first seed, from below and from above."""
    found = next(run["both_sides"] for run in results["runs"] if "both_sides" in run)

    def said(images: str, name: str) -> str:
        return f"{found[images][name]['value']:.2f}"

    gap = found["test"]["gap"]
    return (
        f"Of the first {found['images']} test images, {ANALYTIC}, seed 0, importance sampling "
        f"with {found['samples']:,} samples finds {said('test', 'importance')} nats, annealed "
        f"importance sampling ({found['temperatures']} temperatures, {found['chains']} chains) a "
        f"lower bound of {said('test', 'lower')} and, reversed, an upper bound of "
        f"{said('test', 'upper')}. The upper bound is rigorous for images that the model itself "
        f"made: there the two are {said('simulated', 'lower')} and {said('simulated', 'upper')}, "
        f"importance sampling {said('simulated', 'importance')}. So KL(q(z|x) ‖ p(z|x)) = "
        f"log p(x) − ELBO is {gap['value']:.2f} ± {gap['standard_error']:.2f} nats on test images "
        "(standard error over images)."
    )
