"""The likelihood op: Bernoulli log p(x|z) of images, against textbook code eager and compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bench.timing.accuracy import LikelihoodCase
from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import Contest, providers
from bench.timing.rows import Bench, Group
from bench.timing.traffic import bernoulli_log_prob_floor
from bench.training.baselines import bernoulli_log_prob as textbook
from vaez_fast.data import PIXELS
from vaez_kernels import bernoulli_log_prob

Shape = tuple[int, int, int]  # S, B, P

# A training step's batch; and an evaluation's samples: 25 and 392 MiB of float32 logits.
LAUNCH_BOUND = (1, 128, PIXELS)
BANDWIDTH_BOUND = {"cpu": (8, 1024, PIXELS), "cuda": (8, 16384, PIXELS)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = available_device()
    sizes = (LAUNCH_BOUND, BANDWIDTH_BOUND[device.type])
    metafunc.parametrize("dtype", list(DTYPES))
    metafunc.parametrize("shape", sizes, ids=lambda s: "x".join(map(str, s)))
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", providers(device))


@pytest.mark.benchmark(timer=CLOCK)
def test_likelihood(
    benchmark: Any, bench: Bench, shape: Shape, dtype: str, direction: str, provider: str
) -> None:
    make = partial(_group, shape, dtype, direction, bench.device)
    group = bench.measured((shape, dtype, direction), make, budget=1.0)
    bench.record(benchmark, group, provider)


def case_of(shape: Shape, dtype: torch.dtype, device: torch.device) -> LikelihoodCase:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator)).to(device, dtype)
    x = torch.randint(2, shape[1:], generator=generator, dtype=torch.uint8)
    grad = torch.randn(shape[:2], generator=generator)
    return LikelihoodCase(logits.requires_grad_(), x.to(device), grad.to(device))


def _group(shape: Shape, dtype: str, direction: str, device: torch.device) -> Group:
    backward = direction == "forward+backward"
    samples, rows, pixels = shape
    return Contest(
        title=f"likelihood op, {direction}, {samples} × {rows:,} × {pixels}, {dtype}",
        case=case_of(shape, DTYPES[dtype], device),
        ours=bernoulli_log_prob,
        textbook=textbook,
        backward=backward,
        device=device,
        floor_bytes=bernoulli_log_prob_floor(*shape, DTYPES[dtype].itemsize, backward),
        launch_bound=shape == LAUNCH_BOUND,
    ).group()
