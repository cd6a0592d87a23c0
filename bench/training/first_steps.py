"""Seconds from the start of a process to the end of its first training step.

A cold process finds empty caches. A warm one finds on disk what a process before it compiled.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.process import ROOT, environment
from bench.timing.rivals import NO_BFLOAT16
from bench.timing.rows import Group, Rival
from bench.training.start import BATCH_SIZE, FIRST_STEPS
from vaez_kernels.backend import has_fast_bfloat16
from vaez_kernels.error_bounds import Check

TIMING = "wall clock of a new process"
STEPPED = Check(0.0, "the end of the step")
# Where compilers keep their results. JAX keeps none unless it is told where, and how small ones.
# Inductor keeps its compiled header in the folder for temporary files.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR", "TMPDIR")
JAX_KEEPS_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@cache
def first_steps(rounds: int) -> dict[str, Group]:
    """The groups "cold" and "warm": each round has a cold and a warm process of each provider."""
    unavailable = {} if find_spec("jax") else {"jax": "jax is not installed"}
    if not has_fast_bfloat16(torch.device("cpu")):
        unavailable["engine bfloat16"] = NO_BFLOAT16
    providers = [name for name in FIRST_STEPS if name not in unavailable]
    seconds: dict[str, dict[str, list[float]]] = {
        caches: {name: [] for name in providers} for caches in ("cold", "warm")
    }
    for _ in range(rounds):
        for name in providers:
            with tempfile.TemporaryDirectory() as folder:
                for of_caches in seconds.values():  # the first run fills the caches
                    of_caches[name].append(seconds_to_first_step(name, Path(folder)))
    return {
        caches: Group(
            f"time to the first training step, altosaar, batch {BATCH_SIZE}, {caches} caches",
            {name: Rival(None, STEPPED) for name in providers},
            unavailable,
            floor_bytes=None,
            timing=TIMING,
            seconds=of_caches,
        )
        for caches, of_caches in seconds.items()
    }


def variables(caches: Path) -> dict[str, str]:
    """The environment of a process whose compilers keep their results in this folder."""
    caches.joinpath("TMPDIR").mkdir(exist_ok=True)
    return environment() | JAX_KEEPS_ALL | {name: str(caches / name) for name in CACHES}


def seconds_to_first_step(provider: str, caches: Path) -> float:
    """Start a process, and wait until it has taken its first step.

    Args:
        provider: one of `FIRST_STEPS`.
        caches: the folder of the compilers' caches.

    Raises:
        RuntimeError: it took no step; the message ends with its last line.
    """
    command = [sys.executable, "-m", "bench.training.start", provider]
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables(caches),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if line.strip() != "stepped":
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{' '.join(command)} took no step: {last}")
    return seconds
