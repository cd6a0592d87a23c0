"""The latent op: z and the analytic KL in one call, against textbook code eager and compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.accuracy import Latent, LatentCase, check_latent
from bench.baselines import rsample_kl as textbook
from bench.measure import CLOCK
from bench.rows import Bench, Group, Rival
from bench.traffic import rsample_kl_floor
from vaez_kernels import noise_key, rsample_kl, use_backend
from vaez_kernels.compiler import has_cpu_compiler

PROVIDERS = ("eager", "compiled", "fallback", "triton")
LAUNCH_BOUND = ((128, 20), (128, 128))
# A million elements, what the CPU targets are stated for; and 4 × 32 MiB, beyond a CPU's caches.
BANDWIDTH_BOUND = {"cpu": ((8192, 128), (65536, 128)), "cuda": ((8192, 128), (524288, 128))}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quick = metafunc.config.getoption("quick")
    large = BANDWIDTH_BOUND[device]
    sizes = (LAUNCH_BOUND[1], large[0]) if quick else (*LAUNCH_BOUND, *large)
    metafunc.parametrize("dtype", ["float32"] if quick else list(DTYPES))
    metafunc.parametrize("shape", sizes, ids=lambda s: f"{s[0]}x{s[1]}")
    metafunc.parametrize("direction", ["forward", "forward+backward"])
    metafunc.parametrize("provider", PROVIDERS)


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


def _case(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> LatentCase:
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


def _fallback(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    # On a CPU the public op as a user calls it; on CUDA that is the row "triton".
    if not mu.is_cuda:
        return rsample_kl(mu, logvar, noise)
    with use_backend("torch"):
        return rsample_kl(mu, logvar, noise)


def _compiled(device: torch.device) -> tuple[Any, dict[str, Any]]:
    # On the CPU the best options: inductor's own noise there is a scalar loop.
    options: dict[str, Any] = {"fallback_random": True} if device.type == "cpu" else {}
    run = torch.compile(textbook, fullgraph=True, dynamic=False, options=options or None)
    return run, {"compile_options": options}


def _group(shape: tuple[int, int], dtype: str, direction: str, device: torch.device) -> Group:
    case = _case(shape, DTYPES[dtype], device)
    backward = direction == "forward+backward"
    forwards: dict[str, tuple[Latent, dict[str, Any]]] = {
        "eager": (textbook, {}),
        "fallback": (lambda mu, logvar: _fallback(mu, logvar, case.noise), {}),
    }
    unavailable = {}
    if device.type == "cuda" or has_cpu_compiler():
        forwards["compiled"] = _compiled(device)
    else:
        unavailable["compiled"] = "torch.compile needs a C++ compiler on a CPU"
    if device.type == "cuda":
        forwards["triton"] = (lambda mu, logvar: rsample_kl(mu, logvar, case.noise), {})
    else:
        unavailable["triton"] = "needs a CUDA device; the kernels' numbers are checked by the tests"
    rivals = {}
    for name, (forward, notes) in forwards.items():
        ours = name not in ("eager", "compiled")
        check = check_latent(case, forward, our_noise=ours)
        work = partial(_forward_backward if backward else _forward, case, forward)
        rivals[name] = Rival(work, check, notes)
    floor = rsample_kl_floor(1, *shape, DTYPES[dtype].itemsize, backward)
    title = f"latent op, {direction}, {shape[0]:,} × {shape[1]}, {dtype}"
    return Group(title, rivals, unavailable, floor)


def _forward(case: LatentCase, forward: Latent) -> None:
    forward(case.mu, case.logvar)


def _forward_backward(case: LatentCase, forward: Latent) -> None:
    case.backward(*forward(case.mu, case.logvar))
