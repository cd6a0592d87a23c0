"""A pytest plugin that makes rows of bench_noise end badly, each in a way of its own.

The first size's torch.randn kills its process; the second's `normal` fails, and with it the device
stops answering.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from bench.ops import bench_noise
from bench.timing import building

looks_normal, is_the_stream = bench_noise._looks_normal, bench_noise._is_the_stream
SMALL, LARGE = bench_noise.SIZES["cpu"]


def killed(n: torch.Tensor) -> Any:
    if n.numel() == SMALL:
        os.kill(os.getpid(), signal.SIGKILL)
    return looks_normal(n)


def lost(n: torch.Tensor, noise: torch.Tensor) -> Any:
    if n.numel() == LARGE:
        building.device_answers = lambda: False
        raise RuntimeError("an illegal memory access\nand more of it")
    return is_the_stream(n, noise)


bench_noise._looks_normal, bench_noise._is_the_stream = killed, lost
