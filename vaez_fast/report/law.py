"""The first section of a study's report: what z looks like, and how far it is from N(0, I)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ..drawing import style
from ..drawing.page import Block, Figure, Heading, Table, Text
from ..measures.intervals import interval
from ..study.readings import (
    ANALYTIC,
    KL_ALONE,
    RANDN,
    Read,
    covariance_gain,
    frechet,
    kl_lower,
    kl_upper,
    lower,
    shape_gain,
    shell,
    values,
)
from ..study.study import arm_names
from ..study.verdicts import CONFIRMED, REFUTED, UNCLEAR

Results = dict[str, Any]

# The arms whose z are shown: the picture's file, and the words for them.
PANELS = {ANALYTIC: "z-elbo.png", KL_ALONE: "z-kl.png", RANDN: "z-randn.png"}
SAID = {
    ANALYTIC: "a VAE trained on the ELBO",
    KL_ALONE: "an encoder trained on the KL alone",
    RANDN: "torch.randn",
}
CLOSED = "what-closes.png"
# A Gaussian's mean and scale, then its covariance, then what no Gaussian has; the sampler that
# follows q(z) that far.
STEPS: tuple[tuple[str, Read, str], ...] = (
    ("mean and scale", lower("diagonal"), "diagonal"),
    ("covariance", covariance_gain, "full-covariance"),
    ("shape", shape_gain, "mixture"),
)


def blocks(results: Results, normal: str) -> Iterator[Block]:
    """What z looks like, the bounds of its KL, what each part is worth, and the tests.

    `normal` is the verdict on the claim that a VAE's z are standard normal.
    """
    yield Heading(2, "What z looks like")
    yield Text(answer(results, normal))
    for arm, file in PANELS.items():
        yield Figure(
            file,
            f"{SAID[arm]}, {arm}, seed 0, test images: a marginal, its quantiles with the 95 % "
            "band of as many exact normals, |z|² against χ² of as many degrees of freedom, and "
            "two latents by class. The black lines are N(0, I).",
        )
    yield Text(
        "Bounds of KL(q(z) ‖ N(0, I)) in nats, mean ± 95 % t-interval over seeds; in brackets the "
        "standard error over the images of one seed. A density fitted to the z of training images "
        "gives a lower bound on those of test images: a Gaussian with a diagonal or a full "
        "covariance, or the best of all by validation images, which mixtures and a normalising "
        "flow compete for. The mixture of all training images' posteriors gives the upper bound. "
        "A latent is informative if its mean KL exceeds 0.1 nat. A shell has var |z|² below 2d, "
        "heavy tails above."
    )
    yield bounds(results)
    yield Text(
        f"Bounds of {ANALYTIC} over the latents above other thresholds, to show how far the result "
        "hangs on the rule of 0.1 nat."
    )
    yield thresholds(results)
    yield Figure(
        CLOSED,
        "What each part of q(z) is worth, in nats of test ELBO (replacing N(0, I) by the fitted "
        "density without retraining gains exactly its lower bound) and in Fréchet distance of "
        "images.",
    )
    yield Text(gain(results))
    yield Text(
        f"Tests of normality of the z of {ANALYTIC}, each beside exact normals of the same size, "
        "with Holm's correction over all tests of a seed, at 5 %."
    )
    yield tests(results)


ANSWERS = {
    CONFIRMED: f"No density that was tried tells the z of {ANALYTIC} from N(0, I) by 0.1 nat",
    REFUTED: f"The z of {ANALYTIC} are not standard normal",
    UNCLEAR: f"These seeds do not settle whether the z of {ANALYTIC} are standard normal",
}


def answer(results: Results, normal: str) -> str:
    """The answer to the article's title with its numbers; see `blocks`."""
    low, high = (interval(values(results, ANALYTIC, read)) for read in (kl_lower, kl_upper))
    around = interval(values(results, ANALYTIC, shell))
    informative = [
        len(run["latents"]["law"]["informative"])
        for run in results["runs"]
        if run["arm"] == ANALYTIC
    ]
    gaussian = interval(values(results, ANALYTIC, lower("full-covariance")))
    where = (
        "on a shell"
        if around.high < 1
        else "with heavy tails"
        if around.low > 1
        else "with no clear shell"
    )
    return (
        f"{ANSWERS[normal]}: KL(q(z) ‖ N(0, I)) is between {low.text()} and {high.text()} nats. "
        f"A Gaussian with a full covariance sees {gaussian.text()} of them. "
        f"The {sum(informative) / len(informative):.1f} informative latents lie {where}: "
        f"the variance of |z|² is {around.text()} times that of N(0, I)."
    )


def gain(results: Results) -> str:
    """What the fitted prior gains in log p(x), in one sentence."""
    of_seeds = [run["latents"]["gain"] for run in results["runs"] if run["arm"] == ANALYTIC]
    log_px, elbo = (
        interval([one[name]["value"] for one in of_seeds]).text() for name in ("log_px", "elbo")
    )
    error = sum(one["log_px"]["standard_error"] for one in of_seeds) / len(of_seeds)
    return (
        f"With the best density as the prior of the same decoder, log p(x) rises by {log_px} nats "
        f"(standard error over images {error:.2g}; {of_seeds[0]['num_samples']:,} importance "
        f"samples of {of_seeds[0]['num_images']:,} test images, the same for both priors), and the "
        f"ELBO of these images by {elbo}."
    )


def bounds(results: Results) -> Table:
    """The bounds of every arm."""
    rows = []
    for arm in arm_names(results):
        law = [run["latents"]["law"] for run in results["runs"] if run["arm"] == arm]
        rows.append(
            (
                arm,
                f"{sum(len(one['informative']) for one in law) / len(law):.1f}",
                interval(values(results, arm, lower("diagonal"))).text(),
                interval(values(results, arm, lower("full-covariance"))).text(),
                _with_error(law, "kl_lower"),
                _with_error(law, "kl_upper"),
                _with_error(law, "leave_one_out"),
                interval(values(results, arm, shell)).text(),
            )
        )
    head = (
        *("arm", "informative", "diagonal Gaussian", "full Gaussian", "best density"),
        *("upper, plug-in", "leave-one-out", "var |z|² / 2d"),
    )
    return Table(head, rows)


def _with_error(law: list[dict[str, Any]], name: str) -> str:
    mean_error = sum(one[name]["standard_error"] for one in law) / len(law)
    return f"{interval([one[name]['value'] for one in law]).text()} ({mean_error:.2g})"


def thresholds(results: Results) -> Table:
    """The lower bounds of the ordinary VAE by the threshold of an informative latent."""
    runs = [run for run in results["runs"] if run["arm"] == ANALYTIC]
    by_threshold = zip(*(run["latents"]["law"]["thresholds"] for run in runs), strict=True)
    rows = []
    for of_runs in by_threshold:
        count = sum(one["informative"] for one in of_runs) / len(of_runs)
        cells = [_of_every_seed(of_runs, name) for name in ("full-covariance", "mixture-50")]
        rows.append((f"{of_runs[0]['threshold']:g}", f"{count:.1f}", *cells))
    return Table(("threshold, nats", "latents", "full Gaussian", "50 components"), rows)


def _of_every_seed(thresholds: tuple[dict[str, Any], ...], density: str) -> str:
    # A density is missing where too few codes or no latents were there to fit it.
    bounds = [one["lower"][density]["value"] for one in thresholds if density in one["lower"]]
    return interval(bounds).text() if len(bounds) == len(thresholds) else "–"


def tests(results: Results) -> Table:
    """In how many seeds each test rejects the ordinary VAE's z, and exact normals."""
    of_seeds = [run["latents"]["tests"] for run in results["runs"] if run["arm"] == ANALYTIC]
    names = {name.partition("/")[0]: None for found in of_seeds for name in found}
    rows = []
    for name in names:
        found = [
            test for one in of_seeds for key, test in one.items() if key.partition("/")[0] == name
        ]
        rejected = sum(test["rejected"] for test in found)
        false_alarms = sum(test["false_alarm"] for test in found)
        statistics = [test["statistic"] for test in found]
        spread = f"{min(statistics):.3g} to {max(statistics):.3g}"
        total = len(found)
        rows.append((name, spread, f"{rejected} of {total}", f"{false_alarms} of {total}"))
    return Table(("test", "statistic", "z rejected", "exact normals rejected"), rows)


def what_each_closes(results: Results) -> bytes:
    """Two stacked bars: the lower bound in nats, and the gap of the images, by part of the law."""
    colours = (style.SKY, style.BLUE, style.ORANGE)
    nats = [interval(values(results, ANALYTIC, read)).mean for _, read, _ in STEPS]
    distances = [
        interval(values(results, ANALYTIC, frechet(name))).mean
        for name in ("standard-normal", *(sampler for *_, sampler in STEPS))
    ]
    posterior = interval(values(results, ANALYTIC, frechet("held-out-posterior"))).mean
    closed = [before - after for before, after in pairwise(distances)]
    with style.figure(2, columns=1, height=3.6) as (drawn, (above, below)):
        for ax, widths, start in ((above, nats, 0.0), (below, closed, 0.0)):
            left = start
            for (label, *_), width, colour in zip(STEPS, widths, colours, strict=True):
                ax.barh(0, width, left=left, color=colour, label=label)
                left += width
            ax.set_yticks([])
            ax.grid(visible=False)
        above.set_title(f"{ANALYTIC}: what each part of q(z) is worth")
        above.set_xlabel("gain in test ELBO, nats an image")
        below.axvline(distances[0] - posterior, color=style.BLACK, linewidth=1.0, linestyle=":")
        below.set_xlabel(
            f"Fréchet distance closed, of {distances[0]:.2f} with N(0, I) "
            "(dotted: posteriors of held-out images)"
        )
        drawn.legend(
            *above.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
        )
        return style.png(drawn)
