"""A training step: the baselines, the engine, and the fastest code for its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing import building
from bench.timing.building import Maker, build
from bench.timing.clock import CLOCK
from bench.timing.graphs import captured
from bench.timing.rivals import NO_BFLOAT16
from bench.timing.rows import Bench, Group, Rival
from bench.training.baselines import (
    CarefulTraining,
    TextbookTraining,
    TextbookVAE,
    compiled_training,
)
from bench.training.checks import check_first_step, check_loss, check_products
from bench.training.products import floor, peak, products_of
from vaez_fast.data import binarized, load
from vaez_fast.model import VAE
from vaez_fast.objective import Distortion, NegativeElbo, Objective, Rate
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, constant
from vaez_fast.training.phases import STEPS_PER_REPLAY, Phase
from vaez_kernels.backend import has_fast_bfloat16

BATCH_SIZE = 128
STEPS = {"cpu": 100_000, "cuda": 1_000_000}  # more than the benchmark takes

# Case → the model, and the kind of loss. The KL is analytic for the engine, and the mean of
# log q − log p over samples for the textbook.
CASES = {
    "altosaar": ("altosaar", "elbo"),
    "lyeoni": ("lyeoni", "elbo"),
    "burda": ("burda", "elbo"),
    "altosaar, the encoder alone (kl)": ("altosaar", "kl"),
    "altosaar, the decoder after it": ("altosaar", "decoder"),
}
OBJECTIVES: dict[str, Callable[[VAE], Objective]] = {
    "elbo": lambda vae: NegativeElbo(vae, "analytic"),
    "kl": lambda vae: Rate(vae, "analytic"),
    "decoder": lambda vae: Distortion(vae, "encoder"),
}
OURS = tuple(
    f"{what} {dtype}" for dtype in ("float32", "bfloat16") for what in ("engine", "products")
)
PROVIDERS = {
    "elbo": ("textbook", "compiled", "careful", *OURS),
    "kl": ("textbook", *OURS),
    "decoder": ("textbook", *OURS),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = [(case, provider) for case in CASES for provider in PROVIDERS[CASES[case][1]]]
    metafunc.parametrize(("case", "provider"), rows)


@pytest.mark.benchmark(timer=CLOCK)
def test_training_step(
    benchmark: Any, bench: Bench, images: Tensor, case: str, provider: str
) -> None:
    make = partial(_group, case, images, bench.device)
    bench.record(benchmark, bench.measured(case, make, budget=6.0), provider)


@pytest.fixture(scope="module")
def images(bench: Bench, data_root: str) -> Tensor:
    return binarized(load("mnist-5k", data_root).to(bench.device), "train", "static")


def _group(case: str, images: Tensor, device: torch.device) -> Group:
    model, trains = CASES[case]
    makers = baselines(model, trains, images, device)
    products: dict[str, str] = {}
    for dtype in (torch.float32, torch.bfloat16):
        engine_row, products_row = (f"{what} {dtype}".replace("torch.", "") for what in ROWS)
        if dtype == torch.bfloat16 and not has_fast_bfloat16(device):
            makers |= {engine_row: NO_BFLOAT16, products_row: NO_BFLOAT16}
            continue
        products[engine_row] = products_row
        engine = cache(partial(engine_of, model, trains, images, dtype))  # shared by both rows
        makers[engine_row] = partial(_of_engine, engine, partial(steps, model=model, trains=trains))
        makers[products_row] = partial(_of_engine, engine, partial(_products, device=device))
    built = build(makers, lambda name: name == "compiled")
    title = f"training step, {case}, batch {BATCH_SIZE}"
    return Group(
        title, built.rivals, built.unavailable, None, broken=built.broken, products=products
    )


ROWS = ("engine", "products")


def _of_engine(engine: Callable[[], Engine], make: Callable[[Engine], Rival]) -> Rival:
    return make(engine())


def baselines(
    model: str, trains: str, images: Tensor, device: torch.device
) -> dict[str, Maker | str]:
    """The makers of the rivals that are not ours: `images` (N, 784) uint8, binary."""

    def checked(make: Callable[[], TextbookTraining | CarefulTraining], loss: str) -> Maker:
        def rival() -> Rival:
            training, x = make(), images[:BATCH_SIZE].float()
            return Rival(training.step, check_loss(training.loss, training.vae, x, loss))

        return rival

    def vae() -> TextbookVAE:
        return TextbookVAE(model).to(device)

    on_cpu = images.cpu()
    if trains == "elbo":
        return {
            "textbook": checked(lambda: TextbookTraining(vae(), on_cpu, BATCH_SIZE), "elbo"),
            "compiled": checked(lambda: compiled_training(vae(), on_cpu, BATCH_SIZE), "elbo"),
            "careful": checked(lambda: CarefulTraining(vae(), images, BATCH_SIZE), "analytic elbo"),
        }

    def half() -> TextbookTraining:
        one = vae()
        loss, trained = (
            (one.monte_carlo_kl, one.encoder) if trains == "kl" else (one.distortion, one.decoder)
        )
        return TextbookTraining(one, on_cpu, BATCH_SIZE, loss, trained)

    return {"textbook": checked(half, trains)}


def engine_of(model: str, trains: str, images: Tensor, dtype: torch.dtype) -> Engine:
    vae = VAE(model).to(images.device)
    make = partial(
        Engine,
        batches=Batches(images, BATCH_SIZE),
        optimizer=Adam(),
        learning_rates=constant(1e-3, STEPS[images.device.type]),
        seed=0,
        precision=dtype,
        pixel_scale=1.0,
    )
    encoder = make(Rate(vae, "analytic")) if trains == "decoder" else None
    return make(OBJECTIVES[trains](vae), encoder=encoder)


def steps(engine: Engine, model: str, trains: str) -> Rival:
    check = check_first_step(engine, model, trains)
    if engine.batches.images.device.type == "cpu":
        return Rival(engine.step, check)
    advance = partial(Phase("steps", [engine]).advance, STEPS_PER_REPLAY)
    return Rival(advance, check, own_memory=False, calls=STEPS_PER_REPLAY)


def _products(engine: Engine, device: torch.device) -> Rival:
    products = products_of(engine)
    of_step = floor(products, device)
    notes: dict[str, Any] = {
        "operations": sum(product.operations for product in products),
        "libraries": of_step.libraries,
    }
    if not building.watcher.short:
        notes["peak_operations_per_second"] = peak(products[0].dtype, device)
    check = check_products(of_step.jobs)
    if device.type == "cpu":
        return Rival(of_step.run, check, notes)
    graph = captured([of_step.run] * STEPS_PER_REPLAY)
    return Rival(graph.replay, check, notes, own_memory=False, calls=STEPS_PER_REPLAY)
