"""The report of remedies: remedies.md with its figure, and remedies.html, which opens offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..drawing import style
from ..drawing.page import Block, Figure, Heading, Table, Text
from ..measures.intervals import Interval, interval, paired
from ..measures.two_stage import SAMPLES
from ..study.config import ordinary_remedy
from ..study.readings import ANALYTIC, Read, elbo, number, rate, values
from ..study.remedies import SCHEMA
from . import table_page

Results = dict[str, Any]
FILES = table_page.files("remedies")
FIGURE = FILES[0]
WHAT = {
    "analytic": "the ordinary VAE, analytic KL",
    "monte-carlo": "the ordinary VAE, Monte Carlo KL",
    "full-covariance": "full-covariance q(z|x)",
    "iaf": "inverse autoregressive flow q(z|x) (Kingma et al. 2016)",
    "mixture": "learned mixture p(z)",
    "vamp": "VampPrior p(z) (Tomczak & Welling 2018)",
    "flow": "learned RealNVP p(z)",
    "free-bits": "free bits, 0.1 nat a latent",
    "kl-warmup": "analytic KL, warm-up over a fifth of the steps",
    "half-beta": "β = 0.5",
    "rmsprop": "the article's optimizer: centred RMSprop, constant rate",
    "monte-carlo-warmup": "Monte Carlo KL, warm-up",
    "iaf-warmup": "inverse autoregressive flow q(z|x), warm-up",
    "flow-warmup": "learned RealNVP p(z), warm-up",
    "full-covariance-warmup": "full-covariance q(z|x), warm-up",
}
AFTERWARDS = {
    "full-covariance": "a Gaussian with a full covariance",
    "mixture": "a mixture of Gaussians",
    "two-stage": "a second VAE (Dai & Wipf 2019)",
}
frechet = number("images.frechet")
log_px = number("test.log_px")


def write(out: Path) -> Results:
    """Write remedies.md, remedies.html and remedies.png into `out`; returns the results.

    Raises:
        OutputError: `out` holds no results of remedies, or cannot be written.
    """
    return table_page.write(out, "remedies", SCHEMA, figure, blocks)


def arms(results: Results) -> dict[str, str]:
    """The arm of each remedy that the study has."""
    found = list(dict.fromkeys(run["arm"] for run in results["runs"]))
    return dict(zip(results["config"]["remedies"], found, strict=True))


def difference(results: Results, remedy: str, read: Read) -> Interval | None:
    """A remedy minus its ordinary VAE (`ordinary_remedy`), paired by seed.

    None for the ordinary VAEs, and where their runs are missing.
    """
    named = arms(results)
    ordinary = ordinary_remedy(remedy)
    if remedy == ordinary or ordinary not in named:
        return None
    return paired(*(values(results, named[name], read) for name in (remedy, ordinary)))


def sentences(results: Results) -> list[str]:
    """Which remedies raise log p(x), which lower it, and which do neither, by their intervals."""
    all_of_them = {name: difference(results, name, log_px) for name in arms(results)}
    found = {name: d for name, d in all_of_them.items() if d is not None}
    if not found:
        return ["The ordinary VAE is not among these runs, so nothing is compared."]

    def told(names: list[str]) -> str:
        return "; ".join(f"{WHAT[name]} {found[name].text()}" for name in names)

    by_gain = sorted(found, key=lambda name: -found[name].mean)
    raised = [name for name in by_gain if found[name].low > 0]
    lowered = [name for name in by_gain if found[name].high < 0]
    neither = [name for name in by_gain if name not in raised and name not in lowered]
    beside = "over that of the ordinary VAE with the same KL estimate and warm-up, in nats"
    said = [f"log p(x) rises {beside}: {told(raised)}."] if raised else []
    said += [f"It falls: {told(lowered)}."] if lowered else []
    said += [f"The interval holds zero: {told(neither)}."] if neither else []
    return said


def blocks(results: Results) -> Iterator[Block]:
    """The page of the report."""
    config, environment = results["config"], results["environment"]
    length = f"{config['epochs']} epochs" if config["epochs"] else f"{config['steps']:,} steps"
    yield Heading(1, "Who mends it: posteriors, priors and training")
    yield Text(
        f"{config['model']} on {config['data']} ({config['binarize']} binarisation), "
        f"{config['seeds']} seeds, {length}, batch {config['batch_size']}, "
        f"{config['precision']} products on {environment['device']}, torch "
        f"{environment['torch']}. Test split, nats per image, {config['test_samples']:,} "
        "importance samples, mean ± 95 % t-interval over seeds; differences are paired by seed."
    )
    for sentence in sentences(results):
        yield Text(sentence)
    yield Figure(FIGURE, "log p(x) of every remedy, with 95 % intervals.")
    yield table(results)
    yield Text(
        "Left is the lower bound of KL(q(z) ‖ p(z)), p the run's own prior: what a better prior "
        "could still gain; below zero it says nothing. A dash stands where q(z|x) is not "
        "diagonal. Fréchet is the distance of images whose z come from the run's own prior. The "
        "ELBO of β = 0.5 is −(rate + distortion), too, so it can be compared."
    )
    yield from replaced(results)


def table(results: Results) -> Table:
    """Every remedy's numbers, and its differences from the ordinary VAE."""
    rows = []
    for remedy, arm in arms(results).items():
        gain = difference(results, remedy, log_px)
        left = [run["left"] for run in results["runs"] if run["arm"] == arm]
        rows.append(
            (
                WHAT[remedy],
                *(interval(values(results, arm, read)).text() for read in (elbo, rate, log_px)),
                "–" if gain is None else gain.text(),
                "–" if None in left else interval([one["value"] for one in left]).text(),
                interval(values(results, arm, frechet)).text(),
            )
        )
    return Table(("remedy", "ELBO", "rate", "log p(x)", "difference", "left", "Fréchet"), rows)


def replaced(results: Results) -> Iterator[Block]:
    """What priors gain that replace N(0, I) after training, if the study has the ordinary VAE."""
    if ANALYTIC not in arms(results).values():
        return
    rows = []
    for name, words in AFTERWARDS.items():
        reads = (f"afterwards.{name}.{of}" for of in ("elbo.value", "log_px.value"))
        gains = (interval(values(results, ANALYTIC, number(read))).text() for read in reads)
        read = number(f"afterwards.{name}.images.frechet")
        rows.append((words, *gains, interval(values(results, ANALYTIC, read)).text()))
    first = next(run["afterwards"] for run in results["runs"] if run["arm"] == ANALYTIC)
    of = next(iter(first.values()))
    yield Heading(2, "Without retraining")
    yield Text(
        f"The ordinary VAE ({ANALYTIC}), its N(0, I) replaced after training by a density of its "
        f"training images' z. The gains are of the first {of['num_images']:,} test images, with "
        f"{of['num_samples']:,} importance samples; Fréchet is the distance of images whose z come "
        f"from the density. The second VAE's density is bounded from below with {SAMPLES} samples."
    )
    yield Table(("prior", "gain in ELBO", "gain in log p(x)", "Fréchet"), rows)


def figure(results: Results) -> bytes:
    """log p(x) by remedy."""
    named = arms(results)
    with style.figure(height=0.42 * len(named) + 1.2) as (drawn, (ax,)):
        for i, arm in enumerate(named.values()):
            point = interval(values(results, arm, log_px))
            colour = style.colour(arm)
            ax.errorbar(point.mean, -i, xerr=point.half, color=colour, marker="o", markersize=5)
            ax.annotate(
                f"{point.mean:.1f}", (point.mean, -i), xytext=(0, 6), textcoords="offset points",
                ha="center", fontsize=9, color=colour,
            )  # fmt: skip
        ax.set_yticks([-i for i in range(len(named))], list(named))
        ax.set_ylim(-len(named) + 0.4, 0.7)
        ax.set_xlabel("log p(x), nats per image")
        ax.set_title("Who mends it, test split")
        return style.png(drawn)
