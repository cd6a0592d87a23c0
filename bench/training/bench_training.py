"""A short real training run: its speed beside the article's metrics of the trained model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch

from bench.timing import building
from bench.timing.busy import Watch
from bench.timing.clock import CLOCK, interleave
from bench.timing.rows import Bench, Group, Rival
from bench.training.baselines import TextbookVAE
from bench.training.checks import check_metrics, float64_metrics, worse
from bench.training.engines import ordinary_engine
from bench.training.products import floor, products_of
from vaez_fast.config import TrainConfig, choose_device, choose_precision
from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures.evaluate import Evaluator
from vaez_fast.model import VAE
from vaez_fast.streams import EVALUATION
from vaez_fast.training.phases import STEPS_PER_REPLAY
from vaez_fast.training.train import Result, train
from vaez_kernels.error_bounds import Check

KLS = ("analytic", "total-derivative", "sticking-the-landing")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("kl", KLS)


@pytest.mark.benchmark(timer=CLOCK)
def test_training(benchmark: Any, bench: Bench, data_root: str, kl: str) -> None:
    steps = 62 if bench.quick else 620  # 2 or 20 epochs of 31
    config = TrainConfig(
        epochs=None, steps=steps, kl=kl, data_root=data_root, device=str(bench.device)
    )
    if building.watcher.short:  # one graph and one single step, which use every kernel
        config = replace(config, steps=STEPS_PER_REPLAY + 1, test_samples=2)
    title = f"training, {config.model}, {config.data}, {config.steps} steps"
    timing = "wall clock of the training loop alone"
    group = Group(title, {}, {}, floor_bytes=None, timing=timing)
    # Through `build` like other rivals, so that compiling ahead stops here.
    built = building.build({config.arm: partial(_trained, config, group)}, lambda _: False)
    group.rivals, group.broken = built.rivals, built.broken
    bench.record(benchmark, group, config.arm)


def _trained(config: TrainConfig, group: Group) -> Rival:
    """Train, and write the seconds and the load of the machine into `group`."""
    assert config.steps is not None
    watches: list[Watch] = []

    def observe(_: str, done: int, __: VAE) -> None:
        if done == 0:
            watches.append(Watch())
        else:
            group.load = watches[0].record()

    dataset = load(config.data, config.data_root)
    result = train(config, dataset, observe=observe, observe_at=(0, config.steps))
    group.seconds = {config.arm: [result.train_seconds]}
    notes = {
        "metrics": result.test.as_dict(),
        "data": f"{config.data} ({config.binarize}), test split",
        "precision": result.precision,
        "steps": config.steps,
        "images_per_second": result.speed()["images_per_second"],
        "compile_seconds": result.compile_seconds,
        "step_over_products": result.train_seconds / config.steps / _products(config),
    }
    return Rival(None, _check(result, config, dataset), notes)


def _products(config: TrainConfig) -> float:
    """Seconds of the matrix products of a step alone, timed right after the training."""
    device = choose_device(config.device)
    images = binarized(load(config.data, config.data_root).to(device), "train", config.binarize)
    precision = choose_precision(config.precision, device)
    engine = ordinary_engine(config.model, images, config.batch_size, precision, config.kl)
    products = floor(products_of(engine), device).run
    times = interleave({"products": products}, device, budget=1.0)["products"]
    return median(times.of_the_device)


def _check(result: Result, config: TrainConfig, dataset: Dataset) -> Check:
    """Check the metrics of the test split as the run reports them, and again with float32 products.

    A run uses bfloat16 products if the processor has them. The second evaluation is the same on
    every machine, and must be within the tolerance of float32.
    """
    pixels = binarized(dataset, "test", config.binarize)
    noise = EVALUATION["test"].key(config.seed)
    vae = TextbookVAE(config.model)
    vae.load_state_dict(result.vae.state_dict())
    truth = float64_metrics(vae, pixels, noise, config.test_samples)
    device = torch.device(result.device)
    of_float32 = Evaluator(pixels.to(device), 1.0, noise.to(device), "float32")
    return worse(
        check_metrics(result.test, truth, getattr(torch, result.precision), len(pixels)),
        check_metrics(
            of_float32(result.vae, config.test_samples), truth, torch.float32, len(pixels)
        ),
    )
