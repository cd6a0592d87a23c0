"""A short real training run: speed beside what it reached, the article's metrics."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import pytest
import torch

from bench.accuracy import Check
from bench.baselines import TextbookVAE
from bench.engines import ordinary_engine
from bench.measure import CLOCK, interleave
from bench.products import products_of, replay
from bench.rows import Bench, Group, Rival
from vaez_fast.config import LOG_PX_SAMPLES, TrainConfig, choose_device, choose_precision
from vaez_fast.data import binarized, load
from vaez_fast.run import EVALUATION_STEP
from vaez_fast.train import Result, train
from vaez_kernels import noise_key, reference

KLS = ("analytic", "total-derivative", "sticking-the-landing")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("kl", KLS[:1] if metafunc.config.getoption("quick") else KLS)


@pytest.mark.benchmark(timer=CLOCK)
def test_training(benchmark: Any, bench: Bench, data_root: str, kl: str) -> None:
    steps = 124 if bench.quick else 620  # 4 or 20 epochs of 31
    config = TrainConfig(
        epochs=None, steps=steps, kl=kl, data_root=data_root, device=str(bench.device)
    )
    result = train(config, load(config.data, data_root))
    notes = {
        "metrics": result.test.as_dict(),
        "data": f"{config.data} ({config.binarize}), test split",
        "precision": result.precision,
        "steps": steps,
        "images_per_second": result.speed()["images_per_second"],
        "compile_seconds": result.compile_seconds,
        "step_over_products": result.train_seconds / steps / _products(config, data_root),
    }
    rival = Rival(None, _check(result, config, data_root), notes)
    title = f"training, {config.model}, {config.data}, {steps} steps"
    timing = "wall clock of the training loop alone"
    group = Group(title, {config.arm: rival}, {}, floor_bytes=None, timing=timing)
    group.seconds = {config.arm: [result.train_seconds]}
    bench.record(benchmark, group, config.arm)


def _products(config: TrainConfig, data_root: str) -> float:
    """Seconds of a step's matrix products, alone and right after the training."""
    device = choose_device(config.device)
    images = binarized(load(config.data, data_root).to(device), "train", config.binarize)
    precision = choose_precision(config.precision, device)
    engine = ordinary_engine(config.model, images, config.batch_size, precision, config.kl)
    products = replay(products_of(engine), device)
    return median(interleave({"products": products}, device, budget=1.0)["products"])


def _check(result: Result, config: TrainConfig, data_root: str) -> Check:
    """Hold rate, ELBO and log p(x) of the test split to float64, with the same 128 samples.

    Tolerance 5e-3 nats: float32 rounds 784 terms a sample, whose sum is near 160.
    """
    vae = TextbookVAE(config.model)
    vae.load_state_dict(result.vae.state_dict())
    vae.double()
    x = binarized(load(config.data, data_root), "test", config.binarize).double()
    key = noise_key(config.seed, "evaluate", EVALUATION_STEP["test"])
    log_probs, log_weights = [], []
    with torch.no_grad():
        q = vae.posterior(x)
        logvar = 2 * q.scale.log()
        rows, columns = logvar.shape
        for s in range(LOG_PX_SAMPLES):
            eps = reference.normal(key, 1, rows, columns, sample_offset=s)[0]
            z = q.loc + q.scale * eps
            log_prob = reference.bernoulli_log_prob(vae.decoder(z)[None], x)[0]
            log_probs.append(log_prob)
            log_weights.append(log_prob - (0.5 * (z.square() - eps.square()) - 0.5 * logvar).sum(1))
        rate = float(reference.kl_standard_normal(q.loc, logvar).mean())
        elbo = float(torch.stack(log_probs).mean()) - rate
        log_px = torch.logsumexp(torch.stack(log_weights), 0) - math.log(LOG_PX_SAMPLES)
    test = result.test
    truths = ((test.rate, rate), (test.elbo, elbo), (test.log_px, float(log_px.mean())))
    errors = [abs(ours - truth) / 5e-3 for ours, truth in truths]
    worst = math.nan if any(math.isnan(e) for e in errors) else max(errors)
    return Check(worst, "float64 evaluation, same samples")
