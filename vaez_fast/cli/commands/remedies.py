"""vaez-fast remedies."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...study.config import REMEDIES, RemedyConfig
from .. import settings, studies
from ..kinds import INTEGER, TEXT

DESCRIPTION = """\
Train the ordinary VAE, and with richer posteriors, learned priors and other ways of training, on
several seeds: which of them raises log p(x), and how much of the mismatch of q(z) and p(z) is left?
Writes DIR/results.json, DIR/remedies.md and DIR/remedies.html. If it was stopped, it continues when
it is started again with the same settings; with more seeds or remedies it adds those.

Several processes share the runs:
  torchrun --nproc-per-node 2 -m vaez_fast remedies --out runs/remedies"""
EXAMPLE = "vaez-fast remedies --data mnist-5k --seeds 3 --steps 2000 --out runs/remedies"
LIGHTER = "a smaller batch_size, or a smaller model"


def add_options(parser: argparse.ArgumentParser) -> None:
    settings.add_data(parser)
    study = parser.add_argument_group("study")
    settings.add_model(study)
    study.add_argument(
        "--seeds",
        type=INTEGER,
        default=5,
        metavar="N",
        help="how many, from 0 on; at least 2 (default 5)",
    )
    study.add_argument(
        "--remedies",
        type=TEXT,
        nargs="*",
        default=list(REMEDIES),
        metavar="NAME",
        help=f"which: {settings.choices(list(REMEDIES))} (default: all; analytic and monte-carlo"
        " are the ordinary VAE, with which those of the same KL are compared)",
    )
    settings.add_test_samples(settings.add_recipe(parser))
    settings.add_machine(parser)
    settings.add_output(parser, "the settings, and the numbers of every run")


def run(options: argparse.Namespace) -> int:
    config = RemedyConfig(settings.train_config(options), options.seeds, tuple(options.remedies))
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...report import remedies as report
    from ...study.remedies import run_remedies
    from .report import show_table

    return studies.run(
        "remedies",
        config,
        out,
        report.FILES,
        lambda config, world: run_remedies(config, out, show_progress=True, world=world),
        lambda: show_table(out, "remedies", as_json=options.json),
    )
