"""vaez-fast sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...study.config import LATENTS, SWEPT_BETAS, SweepConfig
from .. import settings, studies
from ..kinds import INTEGER, NUMBER

DESCRIPTION = """\
Train a VAE of every latent size and every weight of the rate on several seeds, and measure how far
z is from N(0, I): what drives it? Writes DIR/results.json, DIR/sweep.md and DIR/sweep.html. If it
was stopped, it continues when it is started again with the same settings.

Several processes share the runs:
  torchrun --nproc-per-node 2 -m vaez_fast sweep --out runs/sweep"""
EXAMPLE = "vaez-fast sweep --data mnist-5k --seeds 3 --steps 2000 --out runs/sweep"
LIGHTER = "a smaller batch_size, or a smaller model"


def add_options(parser: argparse.ArgumentParser) -> None:
    settings.add_data(parser)
    sweep = parser.add_argument_group("sweep")
    settings.add_model(sweep)
    sweep.add_argument(
        "--seeds",
        type=INTEGER,
        default=3,
        metavar="N",
        help="how many, from 0 on (default 3)",
    )
    sweep.add_argument(
        "--latents",
        type=INTEGER,
        nargs="*",
        default=list(LATENTS),
        metavar="D",
        help=f"latent sizes (default {' '.join(map(str, LATENTS))})",
    )
    sweep.add_argument(
        "--beta",
        dest="betas",  # their name in the sweep's records
        type=NUMBER,
        nargs="*",
        default=list(SWEPT_BETAS),
        metavar="WEIGHT",
        help=f"weights of the rate (default {' '.join(f'{beta:g}' for beta in SWEPT_BETAS)})",
    )
    settings.add_recipe(parser)
    settings.add_machine(parser)
    settings.add_output(parser, "the settings, and the numbers of every run")


def run(options: argparse.Namespace) -> int:
    latents, betas = tuple(options.latents), tuple(options.betas)
    config = SweepConfig(settings.train_config(options), options.seeds, latents, betas)
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...report import sweep as report
    from ...study.sweep import run_sweep
    from .report import show_table

    return studies.run(
        "sweep",
        config,
        out,
        report.FILES,
        lambda config, world: run_sweep(config, out, show_progress=True, world=world),
        lambda: show_table(out, "sweep", as_json=options.json),
    )
