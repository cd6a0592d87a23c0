"""The noise stream against torch.randn, which draws other numbers of the same law."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing.building import build
from bench.timing.clock import CLOCK, available_device
from bench.timing.rows import Bench, Group, Rival
from vaez_kernels import noise_key, normal, reference
from vaez_kernels.error_bounds import Check

PROVIDERS = ("torch.randn", "normal")
SIZES = {"cpu": (1 << 14, 1 << 20), "cuda": (1 << 14, 1 << 20, 1 << 26)}
COLUMNS = 128
ROWS_CHECKED = 512


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("size", SIZES[available_device().type])
    metafunc.parametrize("provider", PROVIDERS)


@pytest.mark.benchmark(timer=CLOCK)
def test_noise(benchmark: Any, bench: Bench, size: int, provider: str) -> None:
    group = bench.measured(size, partial(_group, size, bench.device), budget=1.0)
    bench.record(benchmark, group, provider)


def _group(size: int, device: torch.device) -> Group:
    rows = size // COLUMNS
    noise = noise_key(0, "train", 3, device=device)
    works: dict[str, Callable[[], Tensor]] = {
        "torch.randn": lambda: torch.randn(rows, COLUMNS, device=device),
        "normal": lambda: normal(noise, 1, rows, COLUMNS),
    }
    checks: dict[str, Callable[[Tensor], Check]] = {
        "torch.randn": _looks_normal,
        "normal": lambda n: _is_the_stream(n[0], noise),
    }

    def rival(name: str) -> Rival:
        return Rival(works[name], checks[name](works[name]()), moved_bytes=4 * size)

    built = build({name: partial(rival, name) for name in PROVIDERS}, lambda _: False)
    title = f"noise, {size:,} normals, float32"
    return Group(title, built.rivals, {}, floor_bytes=4 * size, broken=built.broken)


def _looks_normal(n: Tensor) -> Check:
    n = n.double()
    errors = (
        n.mean().abs() / (5 / math.sqrt(n.numel())),
        (n.var() - 1).abs() / (5 * math.sqrt(2 / n.numel())),
    )
    return Check(max(float(e) for e in errors), "mean and variance, five standard errors")


def _is_the_stream(n: Tensor, noise: Tensor) -> Check:
    count = min(len(n), ROWS_CHECKED)
    first = len(n) - count
    wanted = reference.normal(noise.cpu(), 1, count, COLUMNS, row_offset=first)[0]
    error = (n[first:].double().cpu() - wanted).abs() / (1e-6 * wanted.abs().clamp(min=1))
    return Check(float(error.max()), "definition of the stream, float64")
