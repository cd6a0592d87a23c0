"""A short real training run: speed beside what it reached, the article's metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bench.accuracy import Check
from bench.baselines import TextbookVAE
from bench.measure import CLOCK
from bench.rows import Bench, Group, Rival
from vaez_fast.config import TrainConfig
from vaez_fast.data import binarized, load
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
    }
    rival = Rival(lambda: None, _check(result, config, data_root), notes)
    title = f"training, {config.model}, {config.data}, {steps} steps"
    group = Group(title, {config.arm: rival}, {}, floor_bytes=None)
    group.seconds = {config.arm: [result.train_seconds]}
    bench.record(benchmark, group, config.arm)


def _check(result: Result, config: TrainConfig, data_root: str) -> Check:
    """Hold rate, ELBO and log p(x) of the test split to an evaluation in float64, 8 samples.

    The rate must agree to float32's rounding; a one-image ELBO spreads by some 10 nats over its
    samples, so means over 500 images of 8 and of 128 samples differ by 5·10/√(500·8) = 0.8 at most,
    and log p(x) grows with its samples.
    """
    vae = TextbookVAE(config.model)
    vae.load_state_dict(result.vae.state_dict())
    vae.double()
    x = binarized(load(config.data, data_root), "test", config.binarize).double()
    with torch.no_grad():
        q = vae.posterior(x)
        logvar = 2 * q.scale.log()
        rate = reference.kl_standard_normal(q.loc, logvar)
        eps = reference.normal(noise_key(config.seed, "generate"), 8, *logvar.shape)
        z = reference.rsample(q.loc, logvar, eps)
        logits = vae.decoder(z)
        log_prob = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
        log_ratio = (0.5 * (z.square() - eps.square()) - 0.5 * logvar).sum(-1)
        log_px = (torch.logsumexp(log_prob - log_ratio, 0) - math.log(8)).mean()
    test = result.test
    errors = (
        abs(test.rate - float(rate.mean())) / 1e-4,
        abs(test.elbo - float(log_prob.mean() - rate.mean())) / 0.8,
        (float(log_px) - test.log_px) / 0.8,
    )
    return Check(max(errors), "float64 evaluation")
