"""The latent op: z and the analytic KL in one call, against textbook code eager and compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing.accuracy import LatentCase
from bench.timing.clock import CLOCK, available_device
from bench.timing.rivals import Contest, providers
from bench.timing.rows import Bench, Group
from bench.timing.traffic import rsample_kl_floor
from bench.training.baselines import rsample_kl as textbook
from vaez_kernels import noise_key, rsample_kl

LAUNCH_BOUND = ((128, 20), (128, 128))
# A million elements, what the CPU targets are stated for; and 4 × 32 MiB, beyond a CPU's caches.
BANDWIDTH_BOUND = {"cpu": ((8192, 128), (65536, 128)), "cuda": ((8192, 128), (524288, 128))}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = available_device()
    sizes = (*LAUNCH_BOUND, *BANDWIDTH_BOUND[device.type])
    metafunc.parametrize("dtype", list(DTYPES))
    metafunc.parametrize("shape", sizes, ids=lambda s: f"{s[0]}x{s[1]}")
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", providers(device))


@pytest.mark.benchmark(timer=CLOCK)
def test_latent(
    benchmark: Any,
    bench: Bench,
    shape: tuple[int, int],
    dtype: str,
    direction: str,
    provider: str,
) -> None:
    make = partial(_group, shape, dtype, direction, bench.device)
    group = bench.measured((shape, dtype, direction), make, budget=1.0)
    bench.record(benchmark, group, provider)


def case_of(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> LatentCase:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator)).to(device)

    return LatentCase(
        mu=draw(*shape).to(dtype).requires_grad_(),
        logvar=draw(*shape, scale=0.5).to(dtype).requires_grad_(),
        noise=noise_key(0, "train", 1, device=device),
        grad_z=draw(1, *shape).to(dtype),
        grad_kl=draw(shape[0]),
    )


def _group(shape: tuple[int, int], dtype: str, direction: str, device: torch.device) -> Group:
    case = case_of(shape, DTYPES[dtype], device)
    backward = direction == "forward+backward"
    return Contest(
        title=f"latent op, {direction}, {shape[0]:,} × {shape[1]}, {dtype}",
        case=case,
        ours=lambda mu, logvar: rsample_kl(mu, logvar, case.noise),
        textbook=textbook,
        backward=backward,
        device=device,
        floor_bytes=rsample_kl_floor(1, *shape, DTYPES[dtype].itemsize, backward),
        launch_bound=shape in LAUNCH_BOUND,
        cpu_options={"fallback_random": True},  # inductor's own noise is a scalar loop on a CPU
    ).group()
