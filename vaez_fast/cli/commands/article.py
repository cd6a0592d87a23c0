"""vaez-fast article."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ...config import check_backend, choose_device
from ...study.config import BETAS, StudyConfig
from ...system.files import check_place
from ...system.messages import say
from ...system.stopping import KEPT, Signals, Stopped
from .. import settings
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
        help="weights of the rate for the sweep from the ELBO towards the KL alone (default "
        + " ".join(f"{beta:g}" for beta in BETAS)
        + ")",
    )
    settings.add_recipe(parser)
    settings.add_machine(parser)
    settings.add_output(parser, "what `vaez-fast report --json` prints")


def run(options: argparse.Namespace) -> int:
    config = StudyConfig(settings.train_config(options), options.seeds, tuple(options.betas))
    out: Path = settings.needed(options, "out", "a folder for the results")

    from ...report import article as report
    from ...study.study import run_study
    from ...system.world import LONG_SECONDS, joined, own_device
    from .report import show

    with Signals() as signals, joined(signals, _say_stopped, LONG_SECONDS) as world:
        device = own_device(choose_device(config.base.device))
        check_backend(device)
        config = replace(config, base=replace(config.base, device=str(device)))
        if world.rank == 0:
            for name in report.files():  # fails now rather than after the study
                check_place(out / name)
        run_study(config, out, show_progress=True, world=world)
    return show(out, as_json=options.json) if world.rank == 0 else 0


def _say_stopped(stopped: Stopped) -> None:
    say("article", f"{stopped}; {KEPT}")
