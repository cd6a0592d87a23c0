"""Burda et al. 2016 repeated, one stochastic layer: VAE, IWAE-5 and IWAE-50 on MNIST.

`python -m bench reproduction --data-root DIR --out DIR` trains each model on static and on dynamic
MNIST, and estimates log p(x) of the test split from 5,000 importance samples. A cell is a
binarisation and K, such as "static/50". DIR/static-50 holds the training run of this cell,
DIR/results.json all finished cells, DIR/README.md a table with the paper's values, and
DIR/k-curve.png log p(x) against k. A second call does the cells that are missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.command import Parser
from bench.likelihood.run import SAMPLES, mean_of, threads
from vaez_fast.config import ConfigError, TrainConfig, choose_device, choose_precision
from vaez_fast.data import DataError, Dataset, load
from vaez_fast.drawing import style
from vaez_fast.drawing.page import Block, Figure, Heading, Table, Text, markdown
from vaez_fast.measures.evaluate import evaluator
from vaez_fast.model import VAE
from vaez_fast.runs.folder import load_run, save
from vaez_fast.system.environment import environment, expect_no_gpu
from vaez_fast.system.files import (
    OutputError,
    prepare_files,
    prepare_folder,
    read_json,
    write_atomically,
    write_json,
)
from vaez_fast.training.train import TrainingError, train

SCHEMA = 1
# log p(x) of the test split in nats an image, 5,000 samples: the paper's values as quoted in the
# README of github.com/nbip/IWAE.
PUBLISHED = {
    "static/1": -88.71,
    "static/5": -87.63,
    "static/50": -87.10,
    "dynamic/1": -86.76,
    "dynamic/5": -85.54,
    "dynamic/50": -84.78,
}
NAMES = {1: "VAE", 5: "IWAE-5", 50: "IWAE-50"}
# For each K. They are equal, so that the models differ in K alone. Half an hour of training allows
# 25: an epoch of K = 50 takes 28 s (batch 50, bfloat16, two cores of an AMD EPYC).
EPOCHS = {1: 25, 5: 25, 50: 25}
# Two epochs of K = 50 reach -121 nats on the validation split with these, and -143 with batch 128
# and a learning rate of 4e-3 (64 importance samples).
BATCH_SIZE, LR = 50, 3e-3
LOOK_EVERY = 2  # epochs between evaluations, which choose the state with the best validation bound

Record = dict[str, Any]


def config_of(cell: str) -> TrainConfig:
    """The training settings of a cell; the caller loads the data set.

    Raises:
        ConfigError: there is no such cell.
    """
    if cell not in PUBLISHED:
        raise ConfigError(f"cells must be among {', '.join(PUBLISHED)}, got {cell!r}")
    binarize, k = cell.split("/")
    return TrainConfig(
        data="mnist",
        binarize=binarize,
        model="burda",
        objective="elbo" if k == "1" else "iwae",
        num_samples=int(k),
        epochs=EPOCHS[int(k)],
        batch_size=BATCH_SIZE,
        lr=LR,
    )


def trained(cell: str, folder: Path, dataset: Dataset) -> tuple[VAE, Record]:
    """A cell's model and the record of its training; trained now if the folder does not hold them.

    Raises:
        OutputError: the folder holds a run of other settings, or cannot be written.
        TrainingError: as `train`.
    """
    config = config_of(cell)
    if not (folder / "metrics.json").exists():
        prepare_folder(folder)
        save(folder, config, train(config, dataset, show_progress=True, look_every=LOOK_EVERY))
    vae, record = load_run(folder)
    precision = choose_precision(config.precision, choose_device(config.device))
    settings = asdict(config) | {"precision": str(precision).removeprefix("torch.")}
    del settings["device"]
    for name, value in settings.items():
        if record["config"].get(name) != value:
            raise OutputError(
                f"out: {folder} holds a run with {name} {record['config'].get(name)!r}, "
                f"{value!r} is wanted; name another folder"
            )
    return vae, record


def k_curve(log_px: Tensor) -> list[Record]:
    """log p(x) (len(SAMPLES), N) in nats → for each k its mean and standard error over images."""
    points = []
    for k, values in zip(SAMPLES, log_px, strict=True):
        of = mean_of(values)
        points.append({"k": k, "log_px": of["mean"], "standard_error": of["standard_error"]})
    return points


def reproduce(cells: Sequence[str], dataset: Dataset, out: Path) -> Record:
    """Do the cells that `out` lacks, write results.json after each, and return its content.

    Raises:
        ConfigError: there is no such cell.
        OutputError, TrainingError: as `trained`.
    """
    configs = {cell: config_of(cell) for cell in cells}
    prepare_files(out, "results.json", "k-curve.png", "README.md")
    done: Record = {"schema": SCHEMA, "cells": {}}
    if (out / "results.json").exists():
        done = read_json(out / "results.json")
    device = choose_device("auto")
    dataset = dataset.to(device)
    for cell, config in configs.items():
        vae, run = trained(cell, out / cell.replace("/", "-"), dataset)
        if cell not in done["cells"]:
            evaluate = evaluator(config, dataset, "test")
            clock = time.perf_counter()
            curve = k_curve(evaluate.log_px_curve(vae.to(device), SAMPLES))
            names = ("arm", "config", "environment", "best_step", "speed")
            done["cells"][cell] = {name: run[name] for name in names} | {
                "images": len(dataset.test.images),
                "k_curve": curve,
                "k_curve_seconds": time.perf_counter() - clock,
                "evaluated_on": environment(device),
            }
            write_json(out / "results.json", done)
            print(f"{cell}: log p(x) {curve[-1]['log_px']:.2f}", file=sys.stderr, flush=True)
    return done


def page(results: Record) -> list[Block]:
    """The table with the paper's values, and how the training differs from the paper's."""
    done = {cell: results["cells"][cell] for cell in PUBLISHED if cell in results["cells"]}
    rows = []
    for cell, run in done.items():
        end, config = run["k_curve"][-1], run["config"]
        rows.append(
            (
                config["binarize"],
                NAMES[config["num_samples"]],
                f"{PUBLISHED[cell]:.2f}",
                f"{end['log_px']:.2f} ± {end['standard_error']:.2f}",
                f"{end['log_px'] - PUBLISHED[cell]:+.2f}",
                str(config["epochs"]),
                f"{run['best_step']:,} of {run['speed']['steps']:,}",
                f"{run['speed']['train_seconds']:.0f} s",
            )
        )
    first = next(iter(done.values()))
    config, machine = first["config"], first["environment"]
    return [
        Heading(1, "Burda et al. 2016 again: one stochastic layer on MNIST"),
        Text(
            "Test log p(x) in nats an image, from "
            f"{first['k_curve'][-1]['k']:,} importance samples on {first['images']:,} images; "
            "± is the standard error over the images, of one model, seed 0. Architecture "
            "784-200-200-50 and back, tanh. The VAE takes the analytic KL, IWAE the plain gradient "
            "of its bound."
        ),
        Table(
            ("MNIST", "model", "Burda et al.", "here", "difference", "epochs", "step", "training"),
            rows,
        ),
        Text(
            f"Batch {config['batch_size']}, Adam with a learning rate of {config['lr']:g} (warm-up "
            f"over 5 % of the steps, then a cosine to zero), {config['precision']} products, "
            f"{threads(machine)} of {machine['device']}, torch {machine['torch']}. "
            "Step: that of the state with the best bound on the validation split, which is kept, "
            "of all steps. Training: the time of the loop alone."
        ),
        Text(
            "Differences from the paper: it trains for 3,280 epochs (Σ 3^i, i = 0 … 7, at a "
            "learning rate of 0.001·10^(−i/7) each), with batch 20, Adam with epsilon 1e-4 and "
            "Glorot's initial weights; here they are PyTorch's. Static MNIST is binarised by the "
            "same law as Larochelle's file, with other random draws."
        ),
        Text("python -m bench reproduction --data-root DIR --out reports/reproduction", code=True),
        Figure(
            "k-curve.png",
            "log p(x) against the importance samples k; crosses: Burda et al., 5,000 samples",
        ),
    ]


def k_curves(results: Record) -> bytes:
    """The curves of all cells, a PNG."""
    with style.figure() as (figure, (ax,)):
        for cell, run in results["cells"].items():
            config, curve = run["config"], run["k_curve"]
            colour = style.colour(run["arm"])
            line = "-" if config["binarize"] == "static" else "--"
            label = f"{NAMES[config['num_samples']]}, {config['binarize']}"
            k, log_px = ([point[name] for point in curve] for name in ("k", "log_px"))
            ax.plot(k, log_px, color=colour, linestyle=line, label=label)
            ax.plot(k[-1], PUBLISHED[cell], color=colour, marker="x", linestyle="none")
        ax.set_xscale("log")
        ax.set_xlabel("importance samples k")
        ax.set_ylabel("log p(x), nats per image")
        ax.set_title("Test split of MNIST: a bound that k tightens")
        ax.legend(fontsize=9, frameon=False)
        return style.png(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 data, output or training failed, 2 a wrong setting."""
    parser = Parser("reproduction", __doc__)
    parser.add_data_root("torchvision's MNIST")
    parser.add_argument(
        "--cells",
        default=",".join(PUBLISHED),
        metavar="CELL,…",
        help="cells to do, in this order (default %(default)s)",
    )
    parser.add_out_folder()
    options = parser.parse_args(argv)
    expect_no_gpu()
    try:
        cells = options.cells.split(",")
        for cell in cells:
            config_of(cell)
        results = reproduce(cells, load("mnist", options.data_root), options.out)
        write_atomically(options.out / "k-curve.png", k_curves(results))
        text = markdown(page(results))
        write_atomically(options.out / "README.md", text.encode())
        print(text)
    except ConfigError as error:
        parser.error(str(error))
    except (DataError, OutputError, TrainingError) as error:
        return parser.failed(error)
    return 0
