"""The fused last layer: products and Bernoulli log p(x|z) without logits in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing.accuracy import LastLayerCase
from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import NO_BFLOAT16, Contest, providers
from bench.timing.rows import Bench, Group
from bench.timing.traffic import linear_bernoulli_log_prob_floor
from bench.training.baselines import bernoulli_log_prob
from vaez_fast.data import PIXELS
from vaez_kernels import linear_bernoulli_log_prob
from vaez_kernels.backend import has_fast_bfloat16

Shape = tuple[int, int, int, int]  # S, B, H, P

# A training step of altosaar's model; and a step of Burda's IWAE-50, or what fills a GPU: 20 and
# 196 MiB of float32 logits.
SMALL = (1, 128, 256, PIXELS)
LARGE = {"cpu": (50, 128, 200, PIXELS), "cuda": (64, 1024, 256, PIXELS)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = available_device()
    sizes = (SMALL, LARGE[device.type])
    metafunc.parametrize("dtype", list(DTYPES))
    metafunc.parametrize("shape", sizes, ids=lambda s: "x".join(map(str, s)))
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", providers(device))


@pytest.mark.benchmark(timer=CLOCK)
def test_linear(
    benchmark: Any, bench: Bench, shape: Shape, dtype: str, direction: str, provider: str
) -> None:
    if dtype == "bfloat16" and not has_fast_bfloat16(bench.device):
        pytest.skip(NO_BFLOAT16)
    make = partial(_group, shape, dtype, direction, bench.device)
    group = bench.measured((shape, dtype, direction), make, budget=1.0)
    bench.record(benchmark, group, provider)


def textbook(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob((hidden @ weight.t()).float() + bias, x)


def _case(shape: Shape, dtype: torch.dtype, device: torch.device) -> LastLayerCase:
    samples, images, width, pixels = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    hidden = draw(samples, images, width).relu().to(device, dtype).requires_grad_()
    weight = (3 / width**0.5 * draw(pixels, width)).to(device, dtype).requires_grad_()
    bias = draw(pixels).to(device).requires_grad_()
    x = torch.randint(2, (images, pixels), generator=generator, dtype=torch.uint8).to(device)
    return LastLayerCase(hidden, weight, bias, x, draw(samples, images).to(device))


def _group(shape: Shape, dtype: str, direction: str, device: torch.device) -> Group:
    return contest(shape, dtype, direction, device).group()


def contest(shape: Shape, dtype: str, direction: str, device: torch.device) -> Contest:
    """The providers of the last layer at a size, which `bench_autotuned` times, too."""
    backward = direction == "forward+backward"
    sizes = " × ".join(f"{n:,}" for n in shape)
    return Contest(
        title=f"last layer and likelihood, {direction}, {sizes}, {dtype}",
        case=_case(shape, DTYPES[dtype], device),
        ours=linear_bernoulli_log_prob,
        textbook=textbook,
        backward=backward,
        device=device,
        floor_bytes=linear_bernoulli_log_prob_floor(*shape, DTYPES[dtype].itemsize, backward),
        launch_bound=shape == SMALL,
        tiled=True,
    )
