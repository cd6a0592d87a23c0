"""A pytest plugin that breaks two rows of bench_noise.

torch.randn of the smaller size kills the process. `normal` of the larger size raises an error, and
after it the device no longer answers.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from bench.ops import bench_noise
from bench.timing import building
from vaez_kernels import normal

randn = torch.randn
SMALL, LARGE = bench_noise.SIZES["cpu"]


def killed(rows: int, columns: int, **where: Any) -> torch.Tensor:
    if rows * columns == SMALL:
        os.kill(os.getpid(), signal.SIGKILL)
    return randn(rows, columns, **where)


def lost(noise: torch.Tensor, S: int, B: int, D: int, **offsets: int) -> torch.Tensor:
    if S * B * D == LARGE:
        building.device_answers = lambda: False
        raise RuntimeError("an illegal memory access\nand more of it")
    return normal(noise, S, B, D, **offsets)


patch = pytest.MonkeyPatch()
patch.setattr(torch, "randn", killed)
patch.setattr(bench_noise, "normal", lost)
