"""A study's report: report.md with PNG figures, and report.html, one file that opens offline.

Everything is drawn from results.json and the runs beside it; the theory is computed again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..drawing import latents as law_pictures
from ..drawing.page import Block, Figure, Heading, Table, Text, html, markdown, plain
from ..measures.intervals import interval
from ..study import rules
from ..study.arrays import images_of, law_of
from ..study.readings import ANALYTIC, values
from ..study.study import KIND, SCHEMA, arm_names
from ..study.verdicts import Verdict, verdicts
from ..system.files import OutputError, prepare_files, read_json, reading, write_atomically
from ..theory import record as theory
from . import law, tables
from .captions import THEORY
from .published import NOTE, published_table
from .sentences import beside_marginals, from_both_sides, of_the_published_code

Results = dict[str, Any]

DISTANCE = "image-distance.png"


def files() -> list[str]:
    """The names of all files that `write` writes."""
    from ..theory.figures import FIGURES
    from .figures import DRAWINGS
    from .images import GRIDS

    of_theory = [f"theory-{name}" for name in FIGURES]
    of_law = [*law.PANELS.values(), law.CLOSED]
    return [*of_law, *DRAWINGS, DISTANCE, *GRIDS, *of_theory, "report.md", "report.html"]


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
    if results.get("rules_sha256") != rules.sha256():
        raise OutputError(
            f"{out / 'results.json'} is of a study that began under other rules than those of this "
            "version (rules.toml); draw it with the version that ran it"
        )
    with reading(out / "results.json", "article"):
        images = {arm: images_of(out, arm, 0) for arm in arm_names(results)}
        pictures = {name: draw(results) for name, draw in DRAWINGS.items()}
        pictures |= {
            file: law_pictures.panel(law_of(out, arm, 0), f"z of {law.SAID[arm]}")
            for arm, file in law.PANELS.items()
        }
        pictures[law.CLOSED] = law.what_each_closes(results)
        pictures[DISTANCE] = image_distance(results)
        pictures |= {name: draw(results, images) for name, draw in GRIDS.items()}
    record = theory.compute()
    pictures |= {f"theory-{name}": draw(record) for name, draw in FIGURES.items()}
    with reading(out / "results.json", "article"):
        answers = verdicts(results, record)
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
    yield from plain(tables.arms(results))


def summary(results: Results, answers: list[Verdict]) -> dict[str, Any]:
    """The same as JSON values: the verdicts, and the mean and 95 % half-width of each arm."""
    arms = {}
    for arm in arm_names(results):
        found = {
            name: interval(values(results, arm, read)) for name, read in tables.QUANTITIES.items()
        }
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
    yield from law.blocks(results, next(v.verdict for v in answers if v.name == "normal"))
    yield Heading(2, "The article's claims")
    yield Table(
        ("claim of the article", "measured", "margin", "verdict", "p", "why"),
        [(v.claim, v.measured, v.margin, f"**{v.verdict}**", p_text(v.p), v.why) for v in answers],
    )
    yield Text(
        "Each claim has one statistic, one range in which it holds and one test, all frozen in a "
        "file before the runs (vaez_fast/study/rules.toml, SHA-256 "
        f"{results['rules_sha256'][:12]}…). p is the p-value of what the verdict rejects, after "
        "Holm's correction over all claims: a verdict needs p < 0.05. The correction assumes "
        "that claims of the same arms do not conspire; a dash stands where an exact fact decides."
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
    yield tables.arms(results)
    yield Text(tables.samples_of_log_px(results))
    yield Heading(2, "What that does to the decoder")
    yield Figure("decoder-score.png", "Decoder score by framework, with 95 % intervals.")
    yield Figure(
        "decoder-curve.png",
        "The distortion, minus the score, during training, on training images. The bands span the "
        "seeds. A decoder that is trained separately starts when its encoder is done.",
    )
    yield Text(beside_marginals(results))
    yield Text(of_the_published_code(results))
    yield Figure(
        "reconstructions.png",
        "Test images, and means of p(x|z) for one z from each image's posterior, seed 0.",
    )
    yield Heading(2, "What it does to images")
    yield Figure("images.png", "Means of p(x|z); each column shares its base noise across rows.")
    yield Figure(
        DISTANCE,
        f"Fréchet distance in the features of three classifiers trained on the same data (mean "
        f"accuracy {100 * beside['features']['accuracy_binary']:.1f} % on binary test images), "
        f"between {beside['images']['floor']['count']:,} binary samples and as many test images, "
        "mean over the three.",
    )
    yield tables.image_distances(results)
    splits = beside["images"]["floor"]["frechet_splits"]
    yield Text(
        "The floor is the distance of validation images from test images, which other people "
        f"wrote. Random splits of both have {splits['mean']:.3f} ± {splits['deviation']:.3f} "
        "(standard deviation over ten). “Posterior” decodes z of training images, "
        "“held-out-posterior” z of validation images. Reconstructions of the test images would "
        f"share their chance with the reference. A dash: a flow is fitted for {ANALYTIC} alone."
    )
    yield Text(
        "All metrics, means over seeds: Fréchet and kernel distance in features, precision and "
        "recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), the distance "
        "between label histograms (total variation), and the median distance to the nearest "
        "training image, which is far below that of real images if a decoder has memorised."
    )
    yield tables.image_metrics(results)
    yield Text(f"Which digits the classifiers see in images of {ANALYTIC}, shares of ten classes:")
    yield tables.label_histogram(results)
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
    yield tables.parts_of_rate(results)
    yield Text(
        "Moments of the aggregate posterior over its dimensions, means over seeds. N(0, I) has 0, "
        f"1, 1, 0, 0, 0; the row of randn shows {beside['n']:,} exact draws of it."
    )
    yield tables.moments(results)
    yield Figure("kl-per-dimension.png", "Which latents carry the rate: KL by dimension.")
    yield Figure("k-curve.png", "log p(x) is a lower bound that more importance samples tighten.")
    yield Text(from_both_sides(results))
    yield Heading(2, "The latents of today's VAEs")
    yield Text(NOTE)
    yield published_table()


def p_text(p: float | None) -> str:
    """A p-value of two significant digits; a dash for what a fact decides."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _command(results: Results) -> str:
    c = results["config"]
    words = ["vaez-fast", "article", "--data", c["data"]]
    words += [] if c["data"] == "mnist-5k" else ["--data-root", "DIR"]
    words += ["--binarize", c["binarize"], "--model", c["model"], "--seeds", c["seeds"]]
    words += ["--epochs", c["epochs"]] if c["epochs"] else ["--steps", c["steps"]]
    words += ["--batch-size", c["batch_size"], "--lr", f"{c['lr']:g}"]
    words += ["--test-samples", c["test_samples"]]
    words += ["--precision", c["precision"], "--beta", *(f"{beta:g}" for beta in c["betas"])]
    # Quoted, because users copy it into a shell.
    return shlex.join(str(word) for word in [*words, "--out", "DIR"])
