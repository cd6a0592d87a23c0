"""What drives the law of z: latent sizes times weights of the rate, on several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..data import Dataset, Pixels
from ..measures.aggregate import active_units
from ..measures.codes import encode
from ..measures.law import (
    best_density,
    draws_within_seconds,
    fit_densities,
    lower_bound,
    squared_norm,
    upper_bound,
)
from ..streams import KL_BOUND
from ..system.world import ALONE, World
from ..training.train import train
from .config import SweepConfig as SweepConfig
from .grid import Setup, run_grid

KIND, SCHEMA = "vaez-fast sweep", 1
# Mixtures win over the flow at these sizes, and a flow takes ten times as long to fit.
DENSITIES = ("diagonal", "full-covariance", "mixture")


def run_sweep(
    config: SweepConfig, out: Path, *, show_progress: bool = False, world: World = ALONE
) -> None:
    """Do the runs that `out` does not hold yet; several ranks share them.

    Raises:
        As `run_grid`.
    """

    def setup(dataset: Dataset, device: torch.device) -> Setup:
        return Setup(lambda run: (measure(run, dataset), {}))

    header = {"kind": KIND, "schema": SCHEMA}
    run_grid(config, out, header, "sweep", setup, show_progress=show_progress, world=world)


def measure(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Train a run and measure the law of its z: its record, with numbers in nats."""
    result = train(config, dataset)
    with torch.no_grad():
        pixels = Pixels(dataset, config.binarize, config.seed)
        codes = encode(result.vae, pixels, config.seed)
        densities = fit_densities(codes, config.seed, DENSITIES)
        lower = {name: lower_bound(r, codes.test.z)._asdict() for name, r in densities.items()}
        best = best_density(densities, codes.validation.z)
        noise = KL_BOUND.key(config.seed, device=codes.train.mu.device)
        draws = draws_within_seconds(*codes.train.mu.shape)
        plug_in, leave_one_out = upper_bound(codes, noise, draws)
    return {
        "arm": config.arm,
        "seed": config.seed,
        "latent": config.latent,
        "beta": config.beta,
        "steps": result.steps,
        "train_seconds": result.train_seconds,
        "test": result.test.as_dict(),
        "informative": len(codes.informative()),
        "active_units": active_units(codes.test.mu),
        "lower": lower,
        "kl_lower": {**lower[best], "how": best},
        "kl_upper": plug_in._asdict(),
        "leave_one_out": leave_one_out._asdict(),
        "squared_norm": squared_norm(codes).as_dict(),
    }
