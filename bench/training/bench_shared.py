"""A training step alone and beside a busy process, as on a laptop or a CI runner. On a CPU only."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.timing.building import Maker, build
from bench.timing.clock import CLOCK
from bench.timing.rivals import NO_BFLOAT16
from bench.timing.rows import Bench, Group
from bench.timing.sharing import NO_GPU, shared_group
from bench.training.bench_step import BATCH_SIZE, baselines, engine_of, steps
from vaez_fast.data import binarized, load
from vaez_kernels.backend import has_fast_bfloat16

MODEL, LOSS = "altosaar", "elbo"
PROVIDERS = ("textbook", "compiled", "careful", "engine float32", "engine bfloat16")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.benchmark(timer=CLOCK)
def test_shared_cores(benchmark: Any, bench: Bench, data_root: str, provider: str) -> None:
    if bench.device.type != "cpu":
        pytest.skip(NO_GPU)
    make = partial(_group, data_root, bench)
    bench.record(benchmark, bench.measured("shared cores", make, budget=0.0), provider)


def _group(data_root: str, bench: Bench) -> Group:
    images = binarized(load("mnist-5k", data_root), "train", "static")
    makers = baselines(MODEL, LOSS, images, bench.device)
    for dtype in (torch.float32, torch.bfloat16):
        makers[f"engine {dtype}".replace("torch.", "")] = _engine_maker(images, dtype)
    built = build(makers, lambda name: name == "compiled")
    title = f"training step beside a busy process, {MODEL}, batch {BATCH_SIZE}"
    return shared_group(title, built, "engine", bench.quick)


def _engine_maker(images: Tensor, dtype: torch.dtype) -> Maker | str:
    if dtype == torch.bfloat16 and not has_fast_bfloat16(images.device):
        return NO_BFLOAT16
    return lambda: steps(engine_of(MODEL, LOSS, images, dtype), MODEL, LOSS)
