"""Folders of training runs, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vaez_fast.config import TrainConfig
from vaez_fast.measures.evaluate import Metrics
from vaez_fast.model import VAE, Linear
from vaez_fast.runs.folder import save
from vaez_fast.training.train import Result

CONFIG = TrainConfig(
    model="lyeoni", epochs=None, steps=30, batch_size=50, precision="float32", seed=4,
    test_samples=3, device="cpu",
)  # fmt: skip
METRICS = Metrics(-150.25, 10.0, 140.25, -145.5, 1.25, 3)


def point(phase: str, step: int, split: str, rate: float, distortion: float) -> dict[str, Any]:
    return {
        "phase": phase, "step": step, "seconds": 0.1 * step, "split": split,
        "elbo": -rate - distortion, "rate": rate, "distortion": distortion,
    }  # fmt: skip


CURVE = [
    point("vae", 20, "train", 5.0, 300.0),
    point("vae", 20, "validation", 6.0, 200.0),
    point("vae", 30, "train", 8.0, 160.0),
    point("vae", 30, "validation", 9.0, 150.0),
]


def make_run(folder: Path, config: TrainConfig = CONFIG) -> Path:
    """Write the folder of a run with untrained weights, whose posteriors differ by image."""
    vae = VAE(config.model, config.seed)
    with torch.no_grad():
        last = vae.encoder[-1]
        assert isinstance(last, Linear)
        last.weight.mul_(20.0)
    result = Result(
        vae=vae, best_step=30, test=METRICS, steps=30, batch_size=50, precision="float32",
        device="cpu", train_seconds=2.0, compile_seconds=10.0, eval_seconds=1.0, ranks=1,
        curve=CURVE,
    )  # fmt: skip
    folder.mkdir(parents=True)
    save(folder, config, result)
    return folder
