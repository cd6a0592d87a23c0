"""vaez-fast article."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import TrainConfig
from ..study import BETAS, StudyConfig, run_study
from . import settings

HELP = "run the article's study: every framework on several seeds; write its report"
DESCRIPTION = """\
Train every framework of the article on several seeds, measure all of them alike, and write
DIR/results.json, DIR/report.md and DIR/report.html. Stopped, it goes on where it was when it is
started again with the same settings; with more seeds it adds those."""
EXAMPLE = "vaez-fast article --data mnist-5k --seeds 3 --steps 2000 --out runs/article"


def add_options(parser: argparse.ArgumentParser) -> None:
    settings.add_data(parser)
    study = parser.add_argument_group("study")
    settings.add_model(study)
    study.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (default 5)")
    study.add_argument(
        "--beta",
        type=float,
        nargs="*",
        default=list(BETAS),
        metavar="WEIGHT",
        help="weights of the rate for the sweep from the ELBO towards the KL alone (default "
        + " ".join(f"{beta:g}" for beta in BETAS)
        + ")",
    )
    settings.add_recipe(parser)
    settings.add_machine(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a folder for the results"
    )


def run(options: argparse.Namespace) -> int:
    from .. import report

    values = vars(options).copy()
    for name in ("command", "out", "seeds", "beta"):
        del values[name]
    if values["steps"] is None and values["epochs"] is None:
        values["epochs"] = TrainConfig().epochs
    config = StudyConfig(TrainConfig(**values), options.seeds, tuple(options.beta))
    run_study(config, options.out, show_progress=True)
    print("\n".join(report.write(options.out)))
    print(f"wrote {options.out / 'report.html'}, report.md and results.json")
    return 0
