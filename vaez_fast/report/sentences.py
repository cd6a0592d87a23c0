"""What a study's report says of the decoder in whole sentences."""

from __future__ import annotations

from typing import Any

from ..measures.intervals import Interval, interval, paired
from ..study.readings import (
    ANALYTIC,
    AS_PUBLISHED,
    CURRENT,
    KL_ALONE,
    distortion,
    number,
    rate,
    values,
)

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


def of_the_published_code(results: Results) -> str:
    """How much of the decoders' difference the published code's checkpoint explains."""

    def kept(run: str, name: str) -> Interval:
        return interval(values(results, AS_PUBLISHED, number(f"kept.{run}.{name}")))

    def steps(run: str) -> str:
        found = sorted({int(s) for s in values(results, AS_PUBLISHED, number(f"kept.{run}.step"))})
        return " or ".join(map(str, found))

    last = values(results, AS_PUBLISHED, distortion)
    whole = paired(last, values(results, CURRENT, distortion))
    explained = {
        run: paired(last, values(results, AS_PUBLISHED, number(f"kept.{run}.decoder_retrained")))
        for run in ("encoder", "joint")
    }
    share = 100 * explained["encoder"].mean / whole.mean
    return (
        "Does its published code explain why the article saw a decoder that is only slightly "
        f"worse? It explains {share:.0f} %. The code takes the test loss for a bound and keeps the "
        "state where it is highest, if its loop over batches never ends, as in the code that it "
        f"builds on: of encoder-only training the state after step {steps('encoder')}. A second "
        "script trains the decoder of that state on the z of its hardly trained encoder, which "
        "still tell a little of x. Trained as this study trains decoders, its distortion ends at "
        f"{kept('encoder', 'decoder_retrained').text()} nats. So the wrong checkpoint makes "
        f"{explained['encoder'].text()} of the {whole.text()} nats between the decoders of "
        f"{AS_PUBLISHED} and {CURRENT}. Ordinary training writes to the same file: the state "
        f"after step {steps('joint')}, with a distortion of {kept('joint', 'distortion').text()} "
        "nats. A decoder that is trained on that encoder's z makes "
        f"{explained['joint'].text()} nats. σ in place of σ² makes none: that KL has the same "
        "minimum."
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
