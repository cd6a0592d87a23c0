"""How a training step grows: its time and images a second over batch, hidden and latent size.

`python -m bench growth --out DIR` times the engine, the textbook, the textbook under torch.compile,
and the engine's matrix products alone. It starts from the altosaar VAE, changes one axis at a time,
and writes growth.json and growth.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.command import Parser
from bench.timing.clock import available_device, interleave
from bench.training.baselines import TextbookTraining, TextbookVAE, compiled_training
from bench.training.checks import check_first_step, check_loss
from bench.training.engines import ordinary_engine
from bench.training.products import floor, products_of
from vaez_fast.config import choose_precision
from vaez_fast.data import DataError, binarized, load
from vaez_fast.drawing import style
from vaez_fast.model import MODELS
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import OutputError, prepare_files, write_atomically, write_json
from vaez_fast.training import engine


@dataclass(frozen=True)
class Size:
    """A point; at most one of its sizes differs from the altosaar VAE at batch 128."""

    batch: int = 128
    hidden: int = 256
    latent: int = 128


AXES = {
    "batch": (32, 128, 512, 2048, 8192),
    "hidden": (128, 256, 512, 1024, 2048, 4096),
    "latent": (2, 8, 32, 128, 512),
}
COLOURS = {
    "textbook": style.BLACK,
    "compiled": style.ORANGE,
    "engine": style.BLUE,
    "products": style.GREY,
}


def measure(size: Size, images: Tensor, budget: float) -> dict[str, Any]:
    """Median seconds of a step of each rival at `size`; a rival that fails its check has none.

    Args:
        images: (N, 784) uint8, binary, N ≥ the batch.
    """
    device = images.device
    architecture = replace(
        MODELS["altosaar"], hidden=(size.hidden, size.hidden), latent=size.latent
    )
    precision = choose_precision("auto", device)
    engine.compiled_graphs.clear()  # each size is used once, and 4,096 units take memory
    ours = ordinary_engine(architecture, images, size.batch, precision)
    checks = {"engine": check_first_step(ours, architecture, "elbo")}
    products = products_of(ours)
    works: dict[str, Callable[[], object]] = {"engine": ours.step}
    x = images[: size.batch].float()
    for name, make in (("textbook", TextbookTraining), ("compiled", compiled_training)):
        training = make(TextbookVAE(architecture).to(device), images.cpu(), size.batch)
        checks[name] = check_loss(training.loss, training.vae, x, "elbo")
        works[name] = training.step
    works = {name: work for name, work in works.items() if checks[name].passed}
    works["products"] = floor(products, device).run
    times = interleave(works, device, budget, fewest=5)
    return {
        "batch": size.batch,
        "hidden": size.hidden,
        "latent": size.latent,
        "precision": str(precision).removeprefix("torch."),
        "operations": sum(product.operations for product in products),
        "failed": [name for name, check in checks.items() if not check.passed],
        "seconds": {name: median(taken.of_the_device) for name, taken in times.items()},
    }


def points(quick: bool) -> Iterator[tuple[str, Size]]:
    """Each axis with its sizes; two sizes of each axis in a quick run."""
    for axis, values in AXES.items():
        for value in values[:2] if quick else values:
            yield axis, replace(Size(), **{axis: value})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a row for each point."""
    lines = [
        "| batch | hidden | latent | textbook | compiled | engine | images/s | × textbook "
        "| step/products | products |",
        "|" + " ---: |" * 10,
    ]
    for row in rows:
        seconds = row["seconds"]

        def time(name: str, seconds: dict[str, float] = seconds) -> str:
            return f"{1e3 * seconds[name]:.2f} ms" if name in seconds else "failed its check"

        cells = [f"{row[axis]:,}" for axis in AXES]
        cells += [time(name) for name in ("textbook", "compiled", "engine")]
        step = seconds.get("engine", float("nan"))
        cells.append(f"{row['batch'] / step:,.0f}")
        cells.append(f"{seconds.get('textbook', float('nan')) / step:.2f}")
        cells.append(f"{step / seconds['products']:.2f}")
        cells.append(f"{row['operations'] / seconds['products'] / 1e9:,.0f} GFLOP/s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: dict[str, list[dict[str, Any]]], title: str) -> bytes:
    """A panel for each axis: seconds of a step, as a PNG."""
    with style.figure(3, width=10.5, sharey=True) as (drawn, panels):
        for ax, (axis, points) in zip(panels, rows.items(), strict=True):
            sizes = [point[axis] for point in points]
            for name, colour in COLOURS.items():
                times = [1e3 * point["seconds"].get(name, float("nan")) for point in points]
                line = "--" if name == "products" else "-"
                label = name if ax is panels[0] else None
                ax.plot(sizes, times, line, marker="o", markersize=4, color=colour, label=label)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xlabel({"batch": "batch", "hidden": "hidden units", "latent": "latents"}[axis])
            ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panels[0].set_ylabel("milliseconds a step")
        drawn.suptitle(title)
        drawn.legend(ncol=4, loc="outside lower center", frameon=False)
        return style.png(drawn)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the data or the output failed."""
    parser = Parser("growth", __doc__)
    parser.add_data_root("mnist-5k.npz")
    parser.add_argument("--quick", action="store_true", help="two sizes of each axis")
    parser.add_out_folder()
    options = parser.parse_args(argv)
    expect_no_gpu()
    device = available_device()
    try:
        prepare_files(options.out, "growth.json", "growth.png")
        digits = binarized(load("mnist-5k", options.data_root).to(device), "train", "static")
        images = digits.repeat(-(-max(AXES["batch"]) // len(digits)), 1)
        rows: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
        for axis, size in points(options.quick):
            torch._dynamo.reset()  # dynamo compiles a code object for at most eight shapes
            rows[axis].append(measure(size, images, budget=0.6 if options.quick else 3.0))
            print(f"{size}: done", file=sys.stderr, flush=True)
        machine = environment(device)
        write_json(options.out / "growth.json", {"rows": rows, "environment": machine})
        title = f"A training step as the altosaar VAE grows, {machine['device']}"
        write_atomically(options.out / "growth.png", figure(rows, title))
    except (DataError, OutputError) as error:
        return parser.failed(error)
    print(table([row for of_axis in rows.values() for row in of_axis]))
    return 0
