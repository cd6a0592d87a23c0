"""A training step of each preset: the article's eager textbook against the compiled engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.accuracy import check_first_step, check_textbook_loss
from bench.baselines import TextbookTraining, TextbookVAE
from bench.measure import CLOCK
from bench.rows import Bench, Group, Rival
from vaez_fast.config import choose_precision
from vaez_fast.data import binarized, load
from vaez_fast.engine import Engine
from vaez_fast.model import MODELS, VAE
from vaez_fast.objective import NegativeElbo

PROVIDERS = ("textbook", "engine float32", "engine bfloat16")
BATCH_SIZE = 128
# Relative error of the first loss; `check_first_step` says where they come from.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("quick")
    metafunc.parametrize("model", ["altosaar"] if quick else list(MODELS))
    metafunc.parametrize("provider", PROVIDERS)


@pytest.mark.benchmark(timer=CLOCK)
def test_training_step(
    benchmark: Any, bench: Bench, images: Tensor, model: str, provider: str
) -> None:
    make = partial(_group, model, images, bench.device)
    bench.record(benchmark, bench.measured(model, make, budget=4.0), provider)


@pytest.fixture(scope="module")
def images(bench: Bench, data_root: str) -> Tensor:
    return binarized(load("mnist-5k", data_root).to(bench.device), "train", "static")


def _group(model: str, images: Tensor, device: torch.device) -> Group:
    textbook = TextbookTraining(TextbookVAE(model).to(device), images.cpu(), BATCH_SIZE)
    batch = images[:BATCH_SIZE]
    rivals = {
        "textbook": Rival(textbook.step, check_textbook_loss(textbook.vae, model, batch.float()))
    }
    unavailable = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = f"engine {str(dtype).removeprefix('torch.')}"
        if dtype == torch.bfloat16 and choose_precision("auto", device) != dtype:
            unavailable[name] = "this processor does not multiply bfloat16"
            continue
        engine = Engine(
            NegativeElbo(VAE(model).to(device), "analytic"),
            steps=100_000,  # more than are timed
            batch_size=BATCH_SIZE,
            lr=1e-3,
            seed=0,
            precision=dtype,
            pixel_scale=1.0,
            device=device,
        )
        check = check_first_step(engine, model, batch, TOLERANCE[dtype])
        rivals[name] = Rival(_Steps(engine, images), check)
    title = f"training step, {model}, batch {BATCH_SIZE}"
    return Group(title, rivals, unavailable, floor_bytes=None)


class _Steps:
    """Steps through the images in order, gathering each batch as training does."""

    def __init__(self, engine: Engine, images: Tensor) -> None:
        self.engine, self.images = engine, images
        self.order = torch.arange(len(images), device=images.device)
        self.at = 0

    def __call__(self) -> None:
        rows = self.order[self.at : self.at + BATCH_SIZE]
        self.engine.step(self.images.index_select(0, rows))
        self.at = (self.at + BATCH_SIZE) % (len(self.images) - BATCH_SIZE)
