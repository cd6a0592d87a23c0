"""Code for CUDA machines imports only what such a machine has, where our package is not installed.

It has PyTorch, Triton, NumPy, matplotlib and pytest-benchmark.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.process import ROOT, environment

LACKING = (
    *("mlxtend", "pythae", "pdoc", "torchvision", "sklearn", "scipy", "torchmetrics", "tqdm"),
    *("pandas", "playwright", "mypy", "ruff", "hypothesis", "xdist"),
)
# Imports modules and then runs one, while the packages in `lacking` cannot be found.
BARE = """
import json, runpy, sys
from importlib.machinery import PathFinder

def find(name, path=None, target=None):
    return None if name.partition(".")[0] in lacking else everything(name, path, target)

lacking, modules, words = json.loads(sys.stdin.read())
everything = PathFinder.find_spec
PathFinder.find_spec = find
for name in modules:
    __import__(name)
if words:
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
"""


def run(modules: list[str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BARE], input=json.dumps((LACKING, modules, words)),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules_of(folder: str, pattern: str = "*.py") -> list[str]:
    paths = sorted((ROOT / folder).glob(pattern))
    assert paths
    names = (path.relative_to(ROOT).with_suffix("").parts for path in paths)
    return [".".join(parts) for parts in names if parts[-1] != "__init__"]


def test_the_kernels_the_benchmarks_and_cudas_tests_are_imported() -> None:
    kernels = [name.removeprefix("kernels.") for name in modules_of("kernels/vaez_kernels")]
    benches = modules_of("bench", "*/bench_*.py")
    run([*kernels, *modules_of("bench/gpu"), *benches, *modules_of("tests/cuda")])


def test_a_model_is_trained(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (5000, 784), dtype=np.uint8)
    np.savez(tmp_path / "mnist-5k.npz", images=images, labels=np.arange(5000) % 10)
    out = tmp_path / "run"
    run(
        [],
        *("vaez_fast", "train", "--data-root", str(tmp_path), "--out", str(out)),
        *("--batch-size", "50", "--steps", "4", "--test-samples", "2"),
    )
    record = json.loads((out / "metrics.json").read_text("utf-8"))  # written last
    assert record["config"]["steps"] == 4
