"""Truncated libraries in torch.compile's cache, as left by a killed process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.process import environment
from vaez_kernels.compiler import with_whole_libraries

# One op for each of the two ways in which ops are compiled.
PROGRAM = """
import torch
from vaez_kernels import kl_standard_normal, noise_key, uniform
u = uniform(noise_key(0, "train"), 1, 3, 5)[0]
print(u.tolist(), kl_standard_normal(u, u).tolist())
"""


def run(cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment() | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_libraries_that_were_cut_short_are_built_anew(tmp_path: Path) -> None:
    first = run(tmp_path)
    libraries = list(tmp_path.rglob("*.so"))
    assert len(libraries) >= 2
    for number, library in enumerate(libraries):
        library.write_bytes(library.read_bytes()[: 100 * (number % 2)])
    assert run(tmp_path) == first


def test_other_errors_are_not_taken_for_a_damaged_library() -> None:
    def build() -> None:
        raise ImportError("/cache/x.so: undefined symbol: y")

    with pytest.raises(ImportError, match="undefined symbol"):
        with_whole_libraries(build)
