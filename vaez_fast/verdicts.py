"""The article's claims, each answered by a number of the study and one sentence of why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .intervals import Interval, interval, paired

# The article's frameworks; "current method" is the first.
CURRENT, ANALYTIC = "elbo/total-derivative/joint", "elbo/analytic/joint"
SEPARATE, SIMULTANEOUS = "kl/total-derivative/separate", "kl/total-derivative/simultaneous"
RANDN = "randn"

CONFIRMED, REFUTED, UNCLEAR = "confirmed", "refuted", "unclear"
# "Slightly" better, and "equal": up to so many nats of decoder score an image.
SLIGHT, EQUAL = 10.0, 1.0
# A total correlation up to so many nats counts as none: what 400 draws of a Gaussian can show.
NO_CORRELATION = 0.5

Results = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    claim: str
    measured: str
    verdict: str  # confirmed, refuted or unclear
    why: str


def values(results: Results, arm: str, read: Callable[[Results], float]) -> list[float]:
    """A number of each seed's run of `arm`."""
    return [read(run) for run in results["runs"] if run["arm"] == arm]


def sample_kl(run: Results) -> float:
    return float(run["latents"]["sample_kl"])


def rate(run: Results) -> float:
    return float(run["test"]["rate"])


def distortion(run: Results) -> float:
    return float(run["test"]["distortion"])


def elbo(run: Results) -> float:
    return float(run["test"]["elbo"])


def log_px(run: Results) -> float:
    return float(run["test"]["log_px"])


def active_units(run: Results) -> float:
    return float(run["latents"]["active_units"])


def surgery(part: str) -> Callable[[Results], float]:
    return lambda run: float(run["latents"]["surgery"][part]["value"])


def moment(name: str) -> Callable[[Results], float]:
    def read(run: Results) -> float:
        value = run["latents"]["moments"][name]
        return math.nan if value is None else float(value)

    return read


def image_metric(sampler: str, metric: str) -> Callable[[Results], float]:
    return lambda run: float(run["images"][sampler][metric])


def frechet(sampler: str) -> Callable[[Results], float]:
    return image_metric(sampler, "frechet")


def below(difference: Interval) -> str:
    """Whether the first of a paired difference is the smaller: its interval must leave zero out."""
    if difference.high < 0:
        return CONFIRMED
    return REFUTED if difference.low > 0 else UNCLEAR


def verdicts(results: Results, theory: Results) -> Iterator[Verdict]:
    """The table that opens the report; `theory` is the record of `vaez_fast.theory`."""
    yield _minimum(results, theory)
    yield _whole_elbo(results)
    yield from _diagonal(results)
    yield _monte_carlo(results, theory)
    yield _encoder_only(results)
    yield _than_randn(results)
    yield _decoder(results)
    yield _simultaneous(results)
    yield _images(results)


def _minimum(results: Results, theory: Results) -> Verdict:
    end = interval(values(results, "kl/analytic/separate", rate))
    flow = theory["spiral"]["flow_eigenvalues"]
    eigenvalues = " and ".join(f"{pair[0]:g}" for pair in flow)
    return Verdict(
        "(0, 1) is the only minimum of the KL term, and stable",
        f"zeros of F and G at mu = 0 and sigma = 1 alone; eigenvalues of the flow {eigenvalues}; "
        f"encoders trained on it end at a rate of {end.text(4)} nats",
        CONFIRMED if end.high < 0.5 else UNCLEAR,
        "The KL term is convex, and its gradient flow decays to (0, 1) without turning.",
    )


def _whole_elbo(results: Results) -> Verdict:
    end = interval(values(results, ANALYTIC, rate))
    gain = paired(values(results, ANALYTIC, elbo), values(results, "kl/analytic/separate", elbo))
    return Verdict(
        "(0, 1) is also the optimum of the whole ELBO",
        f"the ELBO's encoder ends at a rate of {end.text()} nats, and its ELBO is "
        f"{gain.text()} nats above that of the encoder at (0, 1)",
        REFUTED if gain.low > 0 else CONFIRMED if gain.high < 0 else UNCLEAR,
        "The decoder needs to know x: what z tells of it costs KL and gains more likelihood.",
    )


def _diagonal(results: Results) -> Iterator[Verdict]:
    for name, arm, why in (
        (
            "the KL alone",
            "kl/analytic/separate",
            "All posteriors become one standard normal, whose dimensions are independent.",
        ),
        (
            "the ELBO",
            ANALYTIC,
            "Each q(z|x) is diagonal, but over the images the latents depend on each other.",
        ),
    ):
        tc = interval(values(results, arm, surgery("total_correlation")))
        better = paired(
            values(results, arm, frechet("full-covariance")),
            values(results, arm, frechet("diagonal")),
        )
        needs = tc.low > NO_CORRELATION
        yield Verdict(
            f"A diagonal covariance suffices for {name}",
            f"total correlation of q(z) {tc.text()} nats; Fréchet distance of images from a fitted "
            f"full covariance minus that from a diagonal one {better.text()}",
            REFUTED if needs else CONFIRMED if tc.high < NO_CORRELATION else UNCLEAR,
            why,
        )


def _monte_carlo(results: Results, theory: Results) -> Verdict:
    score = theory["monte_carlo_kl"]["largest_z"]
    ends = paired(values(results, CURRENT, log_px), values(results, ANALYTIC, log_px))
    return Verdict(
        "The Monte Carlo KL agrees with the analytic one",
        f"in expectation at 16 points (largest z-score {score:.2f}); trained on, log p(x) ends "
        f"{ends.text()} nats apart (Monte Carlo minus analytic)",
        CONFIRMED if score < 4 else REFUTED,
        "Same expectation, value and gradient; the noise of its gradient makes the difference "
        "in training, if there is one.",
    )


def _encoder_only(results: Results) -> Verdict:
    difference = paired(values(results, SEPARATE, sample_kl), values(results, CURRENT, sample_kl))
    return Verdict(
        "Encoder-only training brings z closer to N(0, I) than the ELBO does",
        f"sample KL {interval(values(results, SEPARATE, sample_kl)).text(4)} against "
        f"{interval(values(results, CURRENT, sample_kl)).text(4)} nats, difference "
        f"{difference.text(4)}",
        below(difference),
        "Nothing holds these encoders back: all they can do is to forget x.",
    )


def _than_randn(results: Results) -> Verdict:
    null, n = results["beside"]["null_sample_kl"], results["beside"]["n"]
    best = min(
        ("kl/analytic/separate", SEPARATE, "kl/sticking-the-landing/separate"),
        key=lambda arm: interval(values(results, arm, sample_kl)).mean,
    )
    difference = paired(values(results, best, sample_kl), values(results, RANDN, sample_kl))
    verdict = below(difference)
    return Verdict(
        "It even gets closer to N(0, I) than torch.randn",
        f"best of them ({best}): sample KL minus that of N(0, I) itself {difference.text(5)} nats, "
        f"n = {n:,}; exact draws have {null:.5f} on average",
        verdict,
        "A finite sample of exact normals fits no better than K/n; the article compared an "
        "estimate with such a sample."
        if verdict != CONFIRMED
        else "The difference is smaller than what a finite sample of exact normals shows.",
    )


def _decoder(results: Results) -> Verdict:
    gain = paired(values(results, SEPARATE, distortion), values(results, CURRENT, distortion))
    return Verdict(
        "The decoder of the current method is slightly better",
        f"its score E log p(x|z) is {gain.text()} nats an image above that of a decoder trained "
        "after an encoder-only encoder",
        CONFIRMED if gain.low > 0 and gain.high <= SLIGHT else REFUTED,
        f"Much better than slightly (here: up to {SLIGHT:g} nats): without information on x a "
        "decoder cannot do better than each pixel's frequency.",
    )


def _simultaneous(results: Results) -> Verdict:
    encoders = values(results, SEPARATE, sample_kl) == values(results, SIMULTANEOUS, sample_kl)
    difference = paired(
        values(results, SIMULTANEOUS, distortion), values(results, SEPARATE, distortion)
    )
    same = max(abs(difference.low), abs(difference.high)) < EQUAL
    return Verdict(
        "Simultaneous training equals separate training",
        f"encoders {'equal to the last bit' if encoders else 'differ'}; decoder scores "
        f"{difference.text(3)} nats apart",
        CONFIRMED if encoders and same else UNCLEAR if same else REFUTED,
        "The encoder never hears of the decoder; the decoder only starts on an encoder that "
        "still learns.",
    )


def _images(results: Results) -> Verdict:
    standard, fitted = "standard-normal", "mixture"
    difference = paired(
        values(results, ANALYTIC, frechet(fitted)), values(results, ANALYTIC, frechet(standard))
    )
    floor = results["beside"]["images"]["floor"]["frechet"]
    return Verdict(
        "The best images come from z that are not standard normal",
        f"Fréchet distance {interval(values(results, ANALYTIC, frechet(fitted))).text()} from a "
        f"mixture fitted to q(z), "
        f"{interval(values(results, ANALYTIC, frechet(standard))).text()} from N(0, I), difference "
        f"{difference.text()}; real images {floor:.2f}",
        below(difference),
        "A trained decoder knows the z that it was shown, which N(0, I) meets only in part.",
    )
