"""The report of one training run: report.md with PNG figures, and report.html, one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..drawing import style
from ..drawing.page import Block, Figure, Heading, Table, Text, html, markdown
from ..measures.evaluate import Metrics, kind_of_rate
from ..runs.samples import grid
from ..runs.trained import Trained, draw, open_run
from ..system.files import prepare_files, reading, write_atomically

Point = dict[str, Any]

SHOWN = 50
PICTURES = ("curve.png", "samples.png")
COLOURS = {"train": style.SKY, "validation": style.VERMILLION}


def write(folder: Path) -> Trained:
    """Write report.md, report.html, curve.png and samples.png into a run's folder.

    They need only the folder's files, neither the data set nor the device of the run.

    Raises:
        OutputError: no finished run, one that cannot be read, or a file that cannot be written.
    """
    run = open_run(folder, device="cpu")
    prepare_files(folder, *PICTURES, "report.md", "report.html")
    _, means = draw(run, "prior", SHOWN, run.config.seed)
    with reading(folder / "metrics.json", "train"):
        drawn = (curve(run.record["curve"]), grid(means.numpy(), columns=10))
        pictures = dict(zip(PICTURES, drawn, strict=True))
        blocks = list(_blocks(run))
    for name, picture in pictures.items():
        write_atomically(folder / name, picture)
    write_atomically(folder / "report.md", markdown(blocks).encode())
    write_atomically(folder / "report.html", html(blocks, pictures).encode())
    return run


def curve(points: Sequence[dict[str, Any]]) -> bytes:
    """The bound, the rate and the distortion of both splits over the steps."""
    panels = {"elbo": "bound", "rate": "rate", "distortion": "distortion"}
    with style.figure(len(panels), height=3.4) as (fig, axes):
        for ax, (name, title) in zip(axes, panels.items(), strict=True):
            for split, colour in COLOURS.items():
                shown = [p for p in points if p["split"] == split and _is_trained(p, name, points)]
                steps, values = [p["step"] for p in shown], [p[name] for p in shown]
                ax.plot(steps, values, color=colour, marker="o", markersize=3, label=split)
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.set_xlim(0, 1.04 * points[-1]["step"])
            ax.locator_params(axis="x", nbins=4)
        axes[0].set_ylabel("nats per image")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                   frameon=False)  # fmt: skip
        return style.png(fig)


def _is_trained(point: Point, name: str, points: Sequence[Point]) -> bool:
    """Whether a number of the curve is meaningful: whether its phase trains that term.

    A phase that trains only the encoder has no meaningful bound or distortion. Terms that a phase
    does not train are 0 in the points of the training split.
    """
    part = "rate" if name == "rate" else "distortion"
    phase = [p for p in points if p["phase"] == point["phase"] and p["split"] == "train"]
    whole = name != "elbo" or point["split"] != "train" or point["rate"] != 0.0
    return whole and any(p[part] != 0.0 for p in phase)


def _blocks(run: Trained) -> Iterator[Block]:
    record, config = run.record, run.record["config"]
    test, environment = Metrics(**record["test"]), record["environment"]
    yield Heading(1, f"{record['arm']} on {config['data']}")
    yield Text(
        f"The {config['model']} VAE on {config['data']} ({config['binarize']} binarisation), seed "
        f"{config['seed']}, {config['precision']} products on {environment['device']}. Numbers are "
        f"in nats per image; the state kept is that of step {record['best_step']:,}."
    )
    yield Table(
        ("test split", "nats per image", "what it is"),
        [
            ("ELBO", f"{test.elbo:.2f}", "−(rate + distortion)"),
            ("rate", f"{test.rate:.2f}", kind_of_rate(run.config, test.log_px_samples)),
            (
                "distortion",
                f"{test.distortion:.2f}",
                f"−E log p(x|z), {test.log_px_samples} samples",
            ),
            (
                "log p(x)",
                f"{test.log_px:.2f} ± {test.log_px_standard_error:.2f}",
                f"{test.log_px_samples} importance samples ± standard error over the images",
            ),
        ],
    )
    yield Figure(
        "curve.png",
        "The learning curve, one sample an image (for iwae as many as in training); terms that a "
        "phase does not train are left out."
        + (
            " With free bits, the training curve's rate is the sum of max(λ, KL) over the latents."
            if run.config.free_bits
            else ""
        ),
    )
    prior = run.config.prior
    drawn_from = "N(0, I)" if prior == "standard-normal" else f"the learned prior ({prior})"
    yield Figure("samples.png", f"Means of p(x|z), z drawn from {drawn_from}.")
    yield Heading(2, "How it was run")
    yield Text("Run it again from the file that it wrote:")
    yield Text("vaez-fast train --config metrics.json --out DIR", code=True)
    yield Table(("setting", "value"), [(name, _value(v)) for name, v in config.items()])
    yield Heading(2, "Where, and how fast")
    speed = record["speed"]
    yield Table(
        ("what", "value"),
        [
            ("training", f"{speed['steps']:,} steps in {speed['train_seconds']:.1f} s"),
            ("images a second", f"{speed['images_per_second']:,.0f}"),
            ("compiling", f"{speed['compile_seconds']:.1f} s"),
            ("evaluating", f"{speed['eval_seconds']:.1f} s"),
            *((name, _value(value)) for name, value in environment.items()),
        ],
    )


def _value(value: object) -> str:
    return "–" if value is None else str(value)
