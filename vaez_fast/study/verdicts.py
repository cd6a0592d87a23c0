"""The article's claims, each answered by a number of the study and a sentence that explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measures.intervals import Interval, interval, paired
from ..theory.sampling import fit_kl_sd

# The article's frameworks; the first is its "current method".
CURRENT, ANALYTIC = "elbo/total-derivative/joint", "elbo/analytic/joint"
SEPARATE, SIMULTANEOUS = "kl/total-derivative/separate", "kl/total-derivative/simultaneous"
RANDN = "randn"

CONFIRMED, REFUTED, UNCLEAR = "confirmed", "refuted", "unclear"
# "Slightly" better and "equal" mean up to this many nats of decoder score per image.
SLIGHT, EQUAL = 10.0, 1.0
# A rate or total correlation below this many nats counts as zero.
AT_ZERO = 0.1

Results = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    claim: str
    measured: str
    verdict: str  # confirmed, refuted or unclear
    why: str


def values(results: Results, arm: str, read: Callable[[Results], float]) -> list[float]:
    """A number from each run of `arm`, one per seed."""
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


def rate_of_surgery(run: Results) -> float:
    return float(run["latents"]["surgery"]["rate"])


def held_out_marginal_kl(run: Results) -> float:
    return float(run["latents"]["held_out_marginal_kl"]["value"])


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
    """Whether the first of a pair is smaller; the interval of the difference must exclude zero."""
    if difference.high < 0:
        return CONFIRMED
    return REFUTED if difference.low > 0 else UNCLEAR


def verdicts(results: Results, theory: Results) -> Iterator[Verdict]:
    """The report's first table; `theory` is the record of `vaez_fast.theory.record`."""
    yield _minimum(results, theory)
    yield _whole_elbo(results)
    yield _diagonal_alone(results)
    yield _diagonal_elbo(results)
    yield _monte_carlo(results, theory)
    yield _encoder_only(results)
    yield _than_randn(results)
    yield _decoder(results)
    yield _simultaneous(results)
    yield _images(results)


OPEN = "The interval leaves it open: more seeds would tell."


def _answer(claim: str, measured: str, verdict: str, confirmed: str, refuted: str) -> Verdict:
    return Verdict(
        claim, measured, verdict, {CONFIRMED: confirmed, REFUTED: refuted, UNCLEAR: OPEN}[verdict]
    )


def _minimum(results: Results, theory: Results) -> Verdict:
    end = interval(values(results, "kl/analytic/separate", rate))
    zeros = theory["derivatives"]
    mu, sigma = zeros["zeros_of_F"], zeros["zeros_of_G"]
    eigenvalues = theory["spiral"]["flow_eigenvalues"]  # (real, imaginary) each
    unique = len(mu) == len(sigma) == 1 and abs(mu[0]) < 1e-6 and abs(sigma[0] - 1) < 1e-6
    stable = all(real < 0 and imaginary == 0 for real, imaginary in eigenvalues)
    holds = unique and stable and end.high < AT_ZERO
    return _answer(
        "(0, 1) is the only minimum of the KL term, and stable",
        f"zeros of F at mu = {', '.join(f'{x:g}' for x in mu)}, of G at sigma = "
        f"{', '.join(f'{x:g}' for x in sigma)}; eigenvalues of the flow "
        f"{', '.join(f'{real:g}' for real, _ in eigenvalues)}; encoders trained on the KL end at a "
        f"rate of {end.text(5)} nats",
        CONFIRMED if holds else UNCLEAR if unique and stable else REFUTED,
        "The KL term is convex, and its gradient flow decays to (0, 1) without turning.",
        "The derivatives have other zeros, or the flow does not decay.",
    )


def _whole_elbo(results: Results) -> Verdict:
    end = interval(values(results, ANALYTIC, rate))
    gain = paired(values(results, ANALYTIC, elbo), values(results, "kl/analytic/separate", elbo))
    return _answer(
        "(0, 1) is also the optimum of the whole ELBO",
        f"training on the ELBO ends at a rate of {end.text()} nats, with an ELBO {gain.text()} "
        "nats above that of an encoder at (0, 1)",
        REFUTED if gain.low > 0 else CONFIRMED if gain.high < 0 else UNCLEAR,
        "Nothing that z could tell the decoder was worth its KL.",
        "The decoder needs to know x: what z tells of it costs KL and gains more likelihood.",
    )


def _full_against_diagonal(results: Results, arm: str) -> Interval:
    full, diagonal = (
        values(results, arm, frechet(name)) for name in ("full-covariance", "diagonal")
    )
    return paired(full, diagonal)


def _diagonal_alone(results: Results) -> Verdict:
    arm = "kl/analytic/separate"
    tc = interval(values(results, arm, surgery("total_correlation")))
    return _answer(
        "A diagonal covariance suffices for the KL alone",
        f"total correlation of q(z) {tc.text(4)} nats; a full covariance changes the Fréchet "
        f"distance of images by {_full_against_diagonal(results, arm).text()}",
        CONFIRMED if tc.high < AT_ZERO else REFUTED if tc.low > AT_ZERO else UNCLEAR,
        "All posteriors become one standard normal, whose dimensions are independent.",
        "The dimensions of z depend on each other although the KL alone was minimised.",
    )


def _diagonal_elbo(results: Results) -> Verdict:
    # Not by total correlation: for N images it is an upper bound that rate − log N inflates.
    better = _full_against_diagonal(results, ANALYTIC)
    margin = float(results["beside"]["images"]["floor"]["frechet"])
    correlation = interval(values(results, ANALYTIC, moment("largest_abs_correlation")))
    verdict = REFUTED if better.high < 0 else CONFIRMED if better.low > -margin else UNCLEAR
    return _answer(
        "A diagonal covariance suffices for the ELBO",
        f"largest correlation of two latents over images {correlation.text(3)}; fitting a full "
        f"covariance instead of a diagonal one changes the Fréchet distance of images by "
        f"{better.text()} (real images: {margin:.2f})",
        verdict,
        "Correlations of the latents over images do not matter to the decoder.",
        "Each q(z|x) is diagonal, but over the images the latents are correlated, and a decoder "
        "that is given independent ones shows worse images.",
    )


def _monte_carlo(results: Results, theory: Results) -> Verdict:
    kl, gradients = theory["monte_carlo_kl"], theory["estimators"]
    score = max(kl["largest_z"], gradients["largest_z_of_mean"])
    ends = paired(values(results, CURRENT, log_px), values(results, ANALYTIC, log_px))
    return _answer(
        "The Monte Carlo KL agrees with the analytic one",
        f"in expectation at {kl['points']} points, gradients too (largest z-score {score:.2f}); "
        f"trained on, log p(x) differs by {ends.text()} nats (Monte Carlo minus analytic)",
        CONFIRMED if score < 4 else REFUTED,
        "Value and gradient have the same expectation; what differs after training is the price of "
        "the gradient's noise.",
        "Their expectations differ.",
    )


def _encoder_only(results: Results) -> Verdict:
    apart, joint = (values(results, arm, sample_kl) for arm in (SEPARATE, CURRENT))
    return _answer(
        "Encoder-only training brings z closer to N(0, I) than the ELBO does",
        f"sample KL {interval(apart).text(4)} against {interval(joint).text(4)} nats, difference "
        f"{paired(apart, joint).text(4)}",
        below(paired(apart, joint)),
        "Nothing holds these encoders back: all they can do is to forget x.",
        "The ELBO's z are the closer ones.",
    )


def _than_randn(results: Results) -> Verdict:
    beside = results["beside"]
    n, null = beside["n"], beside["null_sample_kl"]
    # The spread between samples of exact normals; smaller differences cannot be told from zero.
    spread = float(fit_kl_sd(np.array([float(n)]), beside["latent"])[0])
    difference = paired(values(results, SEPARATE, sample_kl), values(results, RANDN, sample_kl))
    closer, no_closer = difference.high < -spread, difference.low > -spread
    return _answer(
        "It even gets closer to N(0, I) than torch.randn",
        f"sample KL minus that of exact normals with the same eps {difference.text(5)} nats, "
        f"n = {n:,}; exact normals have {null:.5f} on average, with a spread of {spread:.5f}",
        CONFIRMED if closer else REFUTED if no_closer else UNCLEAR,
        "These z fit N(0, I) better than samples of it do.",
        "No sample is closer to N(0, I) than its own draws are on average, K/n: where an estimate "
        "seems to be, it is set against a sample.",
    )


def _decoder(results: Results) -> Verdict:
    gain = paired(values(results, SEPARATE, distortion), values(results, CURRENT, distortion))
    slight = gain.low > 0 and gain.high <= SLIGHT
    return _answer(
        "The decoder of the current method is slightly better",
        f"its score E log p(x|z) is {gain.text()} nats an image above that of a decoder trained "
        "after an encoder-only encoder",
        CONFIRMED if slight else REFUTED if gain.low > SLIGHT or gain.high < 0 else UNCLEAR,
        f"It gains less than {SLIGHT:g} nats.",
        f"Not slightly, which here is up to {SLIGHT:g} nats: without information on x a decoder "
        "cannot do better than each pixel's frequency."
        if gain.mean > 0
        else "It is worse.",
    )


def _simultaneous(results: Results) -> Verdict:
    def fingerprint(run: Results) -> list[float]:
        return [*run["latents"]["kl_per_dimension"], run["latents"]["sample_kl"]]

    encoders = [
        [fingerprint(run) for run in results["runs"] if run["arm"] == arm]
        for arm in (SEPARATE, SIMULTANEOUS)
    ]
    same = encoders[0] == encoders[1]
    difference = paired(
        values(results, SIMULTANEOUS, distortion), values(results, SEPARATE, distortion)
    )
    close = max(abs(difference.low), abs(difference.high)) < EQUAL
    apart = difference.low > EQUAL or difference.high < -EQUAL
    return _answer(
        "Simultaneous training equals separate training",
        f"every latent's KL on the test split {'equal to the last bit' if same else 'differs'}; "
        f"decoder scores {(-difference.mean):+.3f} ± {difference.half:.3f} nats apart",
        CONFIRMED if same and close else REFUTED if apart or not same else UNCLEAR,
        "The encoder never hears of the decoder, and the decoder ends on the same encoder.",
        "The decoder that was trained simultaneously is another one.",
    )


def _images(results: Results) -> Verdict:
    fitted, standard = (
        values(results, ANALYTIC, frechet(name)) for name in ("mixture", "standard-normal")
    )
    difference = paired(fitted, standard)
    floor = results["beside"]["images"]["floor"]["frechet"]
    return _answer(
        "The best images come from z that are not standard normal",
        f"Fréchet distance {interval(fitted).text()} from a mixture fitted to q(z), "
        f"{interval(standard).text()} from N(0, I), difference {difference.text()}; real images "
        f"{floor:.2f}",
        below(difference),
        "A trained decoder knows the z that it was shown, which N(0, I) meets only in part.",
        "N(0, I) gives the better images.",
    )
