"""vaez-fast article."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...study.config import BETAS, StudyConfig
from .. import settings, studies
from ..kinds import INTEGER, NUMBER

DESCRIPTION = """\
Train every framework of the article on several seeds, measure all in the same way, and write
DIR/results.json, DIR/report.md and DIR/report.html. If it was stopped, it continues when it is
started again with the same settings; with more seeds it adds those.

Several processes share the runs, arms times seeds:
  torchrun --nproc-per-node 2 -m vaez_fast article --out runs/article"""
EXAMPLE = "vaez-fast article --data mnist-5k --seeds 3 --steps 2000 --out runs/article"
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
        "--beta",
        dest="betas",  # their name in the study's records
        type=NUMBER,
        nargs="*",
        default=list(BETAS),
        metavar="WEIGHT",
        help="weights of the rate for the sweep from the ELBO towards the KL alone, beside"
        " 0.1, which every study has (default " + " ".join(f"{beta:g}" for beta in BETAS) + ")",
    )
    settings.add_test_samples(settings.add_recipe(parser))
    settings.add_machine(parser)
    settings.add_output(parser, "what `vaez-fast report --json` prints")


def run(options: argparse.Namespace) -> int:
    config = StudyConfig(settings.train_config(options), options.seeds, tuple(options.betas))
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...report import article as report
    from ...study.study import run_study
    from .report import show

    return studies.run(
        "article",
        config,
        out,
        report.files(),
        lambda config, world: run_study(config, out, show_progress=True, world=world),
        lambda: show(out, as_json=options.json),
    )
