"""The mixture op: log q(z) of the aggregate posterior, against textbook code in chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bench.timing.accuracy import MixtureCase
from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import Contest, providers
from bench.timing.rows import Bench, Group
from bench.timing.traffic import mixture_log_prob_floor, mixture_log_prob_moved
from bench.training.baselines import mixture_log_prob as textbook
from vaez_kernels import mixture_log_prob

Shape = tuple[int, int, int]  # M, N, D

# A look at a small model while it trains; and posteriors of altosaar's model: a part of the draws
# and images of MNIST, on a GPU all 50,000 images. Textbook code takes an H100 a second a call.
SMALL = (128, 5_000, 20)
LARGE = {"cpu": (256, 10_000, 128), "cuda": (2_000, 50_000, 128)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = available_device()
    sizes = (SMALL, LARGE[device.type])
    metafunc.parametrize("shape", sizes, ids=lambda s: "x".join(map(str, s)))
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", providers(device))


@pytest.mark.benchmark(timer=CLOCK)
def test_mixture(benchmark: Any, bench: Bench, shape: Shape, direction: str, provider: str) -> None:
    make = partial(_group, shape, direction, bench.device)
    group = bench.measured((shape, direction), make, budget=1.0)
    bench.record(benchmark, group, provider)


def _case(shape: Shape, device: torch.device) -> MixtureCase:
    draws, components, D = shape
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn((components, D), generator=generator)
    logvar = -4.0 * torch.rand((components, D), generator=generator)
    eps = torch.randn((draws, D), generator=generator)
    z = mu[:draws] + torch.exp(0.5 * logvar[:draws]) * eps
    grad = torch.randn((draws,), generator=generator)
    z = z.to(device).requires_grad_()
    return MixtureCase(z, mu.to(device), logvar.to(device), grad.to(device))


def _group(shape: Shape, direction: str, device: torch.device) -> Group:
    backward = direction == "forward+backward"
    draws, components, D = shape
    return Contest(
        # In bfloat16 all but the textbook would do the same.
        title=f"mixture op, {direction}, {draws:,} × {components:,} × {D}, float32",
        case=_case(shape, device),
        ours=mixture_log_prob,
        textbook=textbook,
        backward=backward,
        device=device,
        floor_bytes=mixture_log_prob_floor(*shape, backward),
        kernel_bytes=mixture_log_prob_moved(*shape, backward),
        launch_bound=shape == SMALL,
        tiled=True,
    ).group()
