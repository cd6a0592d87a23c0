"""A study's report: report.md with PNG figures, and report.html, one file that opens offline.

Everything is drawn from results.json and the runs beside it; the theory is computed again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..drawing.page import Block, Figure, Heading, Table, Text, html, markdown
from ..measures.intervals import interval
from ..study.study import KIND, SCHEMA, arm_names, images_of
from ..study.verdicts import (
    ANALYTIC,
    Verdict,
    active_units,
    distortion,
    elbo,
    frechet,
    held_out_marginal_kl,
    image_metric,
    log_px,
    moment,
    rate,
    rate_of_surgery,
    sample_kl,
    surgery,
    values,
    verdicts,
)
from ..system.files import OutputError, prepare_files, read_json, reading, write_atomically
from ..theory import record as theory

Results = dict[str, Any]

DISTANCE = "image-distance.png"
QUANTITIES = {
    "sample_kl": sample_kl,
    "rate": rate,
    "distortion": distortion,
    "elbo": elbo,
    "log_px": log_px,
}


def files() -> list[str]:
    """The names of all files that `write` writes."""
    from ..theory.figures import FIGURES
    from .figures import DRAWINGS
    from .images import GRIDS

    of_theory = [f"theory-{name}" for name in FIGURES]
    return [*DRAWINGS, DISTANCE, *GRIDS, *of_theory, "report.md", "report.html"]


def write(out: Path) -> tuple[Results, list[Verdict]]:
    """Write report.md, report.html and their figures into `out`.

    Returns:
        The content of results.json, and the verdicts on the article's claims.

    Raises:
        OutputError: `out` holds no results of a study, or cannot be written.
    """
    from ..theory.figures import FIGURES
    from .figures import DRAWINGS
    from .images import GRIDS, image_distance

    results = read_json(out / "results.json")
    prepare_files(out, *files())
    if (results.get("kind"), results.get("schema")) != (KIND, SCHEMA):
        raise OutputError(f"{out / 'results.json'} holds no study of the article, schema {SCHEMA}")
    with reading(out / "results.json", "article"):
        images = {arm: images_of(out, arm, 0) for arm in arm_names(results)}
        pictures = {name: draw(results) for name, draw in DRAWINGS.items()}
        pictures[DISTANCE] = image_distance(results)
        pictures |= {name: draw(results, images) for name, draw in GRIDS.items()}
    record = theory.compute()
    pictures |= {f"theory-{name}": draw(record) for name, draw in FIGURES.items()}
    with reading(out / "results.json", "article"):
        answers = list(verdicts(results, record))
        page = list(blocks(results, answers))
    for name, picture in pictures.items():
        write_atomically(out / name, picture)
    write_atomically(out / "report.md", markdown(page).encode())
    write_atomically(out / "report.html", html(page, pictures).encode())
    return results, answers


def lines(results: Results, answers: list[Verdict]) -> Iterator[str]:
    """The findings of `write` as lines for a terminal."""
    for verdict in answers:
        yield f"{verdict.verdict:<10} {verdict.claim}"
        yield f"{'':<10} {verdict.measured}"
    yield ""
    table = _arms(results)
    widths = [max(len(row[i]) for row in (table.head, *table.rows)) for i in range(len(table.head))]
    for row in (table.head, *table.rows):
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells)


def summary(results: Results, answers: list[Verdict]) -> dict[str, Any]:
    """The same as JSON values: the verdicts, and the mean and 95 % half-width of each arm."""
    arms = {}
    for arm in arm_names(results):
        found = {name: interval(values(results, arm, read)) for name, read in QUANTITIES.items()}
        arms[arm] = {name: {"mean": i.mean, "half_width": i.half} for name, i in found.items()}
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "config": results["config"],
        "verdicts": [asdict(verdict) for verdict in answers],
        "arms": arms,
    }


def blocks(results: Results, answers: list[Verdict]) -> Iterator[Block]:
    """The page of the report."""
    config, environment = results["config"], results["environment"]
    beside = results["beside"]
    length = f"{config['epochs']} epochs" if config["epochs"] else f"{config['steps']:,} steps"
    yield Heading(1, "On the distribution of a VAE's z: the article's claims, settled")
    yield Text(
        f"{config['model']} on {config['data']} ({config['binarize']} binarisation), "
        f"{config['seeds']} seeds, {length} a phase, batch {config['batch_size']}, "
        f"{config['precision']} products on {environment['device']}, torch "
        f"{environment['torch']}. Numbers are of the test split unless said otherwise, in nats per "
        "image, mean ± 95 % t-interval over seeds; differences are paired by seed, whose arms "
        "share data order, noise and initial weights."
    )
    yield Table(
        ("claim of the article", "measured", "verdict", "why"),
        [(v.claim, v.measured, f"**{v.verdict}**", v.why) for v in answers],
    )
    yield Text("Repeat all of it with one command:")
    yield Text(_command(results), code=True)
    yield Heading(2, "The KL term by itself")
    for name, caption in THEORY:
        yield Figure(f"theory-{name}", caption)
    yield Heading(2, "How close z comes to N(0, I)")
    yield Figure(
        "decay.png",
        f"Sample KL: a diagonal Gaussian fitted to {beside['n']:,} held-out z, one an image, "
        "against N(0, I). The bands span the seeds. The black curve is the same estimator on "
        "exact normal draws, the dotted line its expectation, "
        f"{beside['null_sample_kl']:.5f} nats (about K/n): no sample of this size can be told "
        "from N(0, I) below it. An encoder's curve is the same whether its decoder is trained "
        "separately or simultaneously. Validation split.",
    )
    yield Figure(
        "rate.png",
        "The rate is another quantity: the mean KL of the images' posteriors, not the KL of "
        "their mixture. Validation split.",
    )
    yield _arms(results)
    yield Heading(2, "What that does to the decoder")
    yield Figure("decoder-score.png", "Decoder score by framework, with 95 % intervals.")
    yield Text(_marginal_sentence(results))
    yield Heading(2, "What it does to images")
    yield Figure("images.png", "Means of p(x|z); each column shares its base noise across rows.")
    yield Figure(
        DISTANCE,
        f"Fréchet distance in the features of a classifier trained on the same data (accuracy "
        f"{100 * beside['features']['accuracy_binary']:.1f} % on binary test images), between "
        f"{beside['images']['floor']['count']:,} binary samples and as many test images.",
    )
    yield _image_table(results)
    yield Text(
        "All metrics, means over seeds: Fréchet and kernel distance in features, distance between "
        "label histograms (total variation), and the median distance to the nearest training "
        "image, which is far below that of real images if a decoder has memorised."
    )
    yield _image_metrics(results)
    yield Text(f"Which digits the classifier sees in images of {ANALYTIC}, shares of ten classes:")
    yield _label_histogram(results)
    yield Figure("images-all.png", "Every arm and sampler, seed 0.")
    yield Heading(2, "Beyond the article")
    yield Figure("rate-distortion.png", "Every arm as a point (squares: simultaneous).")
    yield Figure(
        "surgery.png",
        "The rate split into index information, total correlation and dimension-wise KL (Hoffman & "
        "Johnson 2016; Chen et al. 2018), for the aggregate posterior of training images. Index "
        "information cannot exceed log N. If the rate is far above log N, the rest counts as total "
        "correlation. So the plug-in marginal KL is an upper bound of the KL of all images, and "
        "leave-one-out is a lower bound. They are far apart here: N images are too few to know it.",
    )
    yield _surgery_table(results)
    yield Text(
        "Moments of the aggregate posterior over its dimensions, means over seeds. N(0, I) has 0, "
        f"1, 1, 0, 0, 0; the row of randn shows {beside['n']:,} exact draws of it."
    )
    yield _moments(results)
    yield Figure("kl-per-dimension.png", "Which latents carry the rate: KL by dimension.")
    yield Figure("k-curve.png", "log p(x) is a lower bound that more importance samples tighten.")


THEORY = (
    ("derivatives.png", "The derivatives of the KL in mu and sigma, and their only zeros."),
    ("kl-surface.png", "The KL over the (mu, sigma) plane."),
    ("gradient-flow.png", "Its gradient flow: lines integrated, dots in closed form."),
    ("lyapunov.png", "The KL falls along every path: it is its own Lyapunov function."),
    ("spiral.png", "The article's spiral needs momentum; the flow itself cannot turn."),
    ("monte-carlo-kl.png", "Monte Carlo KL minus the analytic one, with 95 % intervals."),
    ("estimator-variance.png", "Gradient variance: sticking the landing over total derivative."),
    ("published-code.png", "What the article's published code minimised: σ where σ² belongs."),
    ("fit-null.png", "What the fit finds in exactly normal draws."),
)


def _command(results: Results) -> str:
    c = results["config"]
    words = ["vaez-fast", "article", "--data", c["data"]]
    words += [] if c["data"] == "mnist-5k" else ["--data-root", "DIR"]
    words += ["--binarize", c["binarize"], "--model", c["model"], "--seeds", c["seeds"]]
    words += ["--epochs", c["epochs"]] if c["epochs"] else ["--steps", c["steps"]]
    words += ["--batch-size", c["batch_size"], "--lr", f"{c['lr']:g}"]
    words += ["--precision", c["precision"], "--beta", *(f"{beta:g}" for beta in c["betas"])]
    # Quoted, because users copy it into a shell.
    return shlex.join(str(word) for word in [*words, "--out", "DIR"])


def _arms(results: Results) -> Table:
    rows = []
    for arm in arm_names(results):
        digits = (4, 3, 2, 2, 2)
        cells = [
            interval(values(results, arm, read)).text(d)
            for read, d in zip(QUANTITIES.values(), digits, strict=True)
        ]
        active = values(results, arm, active_units)
        rows.append((arm, *cells, f"{sum(active) / len(active):.1f}"))
    samples = results["runs"][0]["test"]["log_px_samples"]
    head = ("arm", "sample KL", "rate", "distortion", "ELBO", f"log p(x), k = {samples}", "active")
    return Table(head, rows)


def _marginal_sentence(results: Results) -> str:
    arm = "kl/analytic/separate"
    score = interval([-value for value in values(results, arm, distortion)])
    marginal = results["beside"]["marginal_log_prob"]
    left = interval(values(results, arm, rate))
    return (
        f"With each pixel's frequency in the training split, a decoder that knows nothing of x "
        f"scores {marginal:.2f} nats. The decoder trained after {arm} scores {score.text()}, "
        f"{score.mean - marginal:+.2f} nats from it, with {left.text(5)} nats of rate left in its "
        "encoder."
    )


def _image_table(results: Results) -> Table:
    from ..measures.samplers import SAMPLERS

    rows = [
        (arm, *(interval(values(results, arm, frechet(name))).text() for name in SAMPLERS))
        for arm in arm_names(results)
    ]
    bounds = results["beside"]["images"]
    for name, text in (("floor", "real images (floor)"), ("ceiling", "mean digit (ceiling)")):
        rows.append((text, f"{bounds[name]['frechet']:.2f}", *[""] * (len(SAMPLERS) - 1)))
    return Table(("Fréchet distance, z from", *SAMPLERS), rows)


def _mean(results: Results, arm: str, read: Callable[[Results], float], digits: int) -> str:
    found = values(results, arm, read)
    return f"{sum(found) / len(found):.{digits}f}"


def _image_metrics(results: Results) -> Table:
    from ..measures.samplers import SAMPLERS

    metrics = {"frechet": 2, "kernel": 4, "label_distance": 3, "nearest_train": 2}
    rows = []
    for arm in arm_names(results):
        for name in SAMPLERS:
            cells = [
                _mean(results, arm, image_metric(name, metric), digits)
                for metric, digits in metrics.items()
            ]
            rows.append((f"{arm}, {name}", *cells))
    bounds = results["beside"]["images"]
    for name, text in (("floor", "real images (floor)"), ("ceiling", "mean digit (ceiling)")):
        cells = [f"{bounds[name][metric]:.{digits}f}" for metric, digits in metrics.items()]
        rows.append((text, *cells))
    head = ("arm, z from", "Fréchet", "kernel", "label histogram", "nearest training image")
    return Table(head, rows)


def _label_histogram(results: Results) -> Table:
    from ..measures.samplers import SAMPLERS

    runs = [run for run in results["runs"] if run["arm"] == ANALYTIC]

    def shares(name: str) -> tuple[str, ...]:
        columns = zip(*(run["images"][name]["label_histogram"] for run in runs), strict=True)
        return tuple(f"{sum(column) / len(runs):.3f}" for column in columns)

    rows = [(name, *shares(name)) for name in SAMPLERS]
    floor = results["beside"]["images"]["floor"]["label_histogram"]
    rows.append(("real images", *(f"{share:.3f}" for share in floor)))
    return Table(("z from", *(str(digit) for digit in range(10))), rows)


def _moments(results: Results) -> Table:
    parts = {
        "largest |mean|": "largest_abs_mean",
        "smallest variance": "smallest_variance",
        "largest variance": "largest_variance",
        "largest |correlation|": "largest_abs_correlation",
        "smallest excess kurtosis": "smallest_excess_kurtosis",
        "largest excess kurtosis": "largest_excess_kurtosis",
    }
    rows = [
        (arm, *(_mean(results, arm, moment(name), 3) for name in parts.values()))
        for arm in arm_names(results)
    ]
    return Table(("arm", *parts), rows)


def _surgery_table(results: Results) -> Table:
    parts = {
        "index information": "index_information",
        "total correlation": "total_correlation",
        "dimension-wise KL": "dimension_wise_kl",
        "marginal KL, plug-in": "marginal_kl",
        "marginal KL, leave-one-out": "leave_one_out_marginal_kl",
    }
    rows = [
        (
            arm,
            interval(values(results, arm, rate_of_surgery)).text(),
            *(interval(values(results, arm, surgery(name))).text() for name in parts.values()),
            interval(values(results, arm, held_out_marginal_kl)).text(),
        )
        for arm in arm_names(results)
    ]
    return Table(("arm", "rate (training)", *parts, "marginal KL, held out"), rows)
