"""The study of the article: every arm on many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Dataset
from ..system.world import ALONE, World
from . import rules
from .config import StudyConfig as StudyConfig
from .grid import FEATURES, Setup, run_grid
from .measure import Measure

KIND, SCHEMA = "vaez-fast article", 3
OBSERVATIONS = 24  # of the decay, evenly spaced in the logarithm of the step


def run_study(
    config: StudyConfig, out: Path, *, show_progress: bool = False, world: World = ALONE
) -> None:
    """Do the runs that `out` does not hold yet; several ranks share them.

    Beside the files of `run_grid`: features.pt, the networks in whose features images are compared.
    study.json and results.json name the rules by which the study will be judged. results.json also
    holds the references of `Measure.beside`, and the .npz files images and the law of z.

    Raises:
        As `run_grid`.
    """

    def setup(dataset: Dataset, device: torch.device) -> Setup:
        measure = Measure(config.base, dataset, device, out / FEATURES)
        measure.networks  # noqa: B018  # trained or read now, in the first rank's turn
        observed = _observation_steps(measure.steps)
        return Setup(lambda run: measure.run(run, observed), lambda: {"beside": measure.beside()})

    header = {"kind": KIND, "schema": SCHEMA, "rules_sha256": rules.sha256()}
    run_grid(config, out, header, "article", setup, show_progress=show_progress, world=world)


def _observation_steps(steps: int) -> frozenset[int]:
    spaced = np.geomspace(1, steps, OBSERVATIONS).round().astype(int)
    return frozenset({0, *spaced.tolist()})


def arm_names(results: dict[str, Any]) -> Sequence[str]:
    """The arms of a study's results, in the order of `StudyConfig.arms`."""
    return list(dict.fromkeys(run["arm"] for run in results["runs"]))
