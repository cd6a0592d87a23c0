"""`python -m bench gpu --dry-run`, all parts, from end to end: a row of each kind of rows.

It runs no whole training, because that compiles for two minutes.

Kernels compute nothing here, so the dry run judges no values. It shows that the host side works:
imports, compilation, capture, timing, the journals, the page.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.process import ROOT
from bench.process import environment as process_environment
from tests.rehearsal.build import environment

# One op with all its rivals, of the others our kernels alone: compiling takes most of the time.
OPS = ("latent[float32-128x20", "linear[float32-1x128x256x784", "mixture[128x5000x20")
ROWS = (
    "test_the_mixtures_density_is_the_references[shape0-False]",
    "test_compared[bernoulli_log_prob/uint8, 1\\xd71\\xd71 float32",
    "likelihood[float32-1x128x784-forward+backward",
    *(f"test_{op}-forward+backward-triton]" for op in OPS),
    "test_importance[kernel bfloat16",
    "noise[16384-normal]",
    "test_training_step[lyeoni-products float32]",
    "test_autotuned[1x128x256x784-float32-compiled max-autotune]",
    "test_jax[latent-jax]",
)


@pytest.fixture(scope="module")
def out(stand_in_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of a dry run of all parts."""
    folder = tmp_path_factory.mktemp("gpu")
    random = np.random.default_rng(0)
    # Random images of mnist-5k's shape, for machines without it.
    images = random.integers(0, 256, (5000, 784), dtype=np.uint8)
    np.savez(folder / "mnist-5k.npz", images=images, labels=np.arange(5000) // 500)
    flags = ["--dry-run", "--out", str(folder / "out"), "--data-root", str(folder)]
    flags += [flag for text in ROWS for flag in ("--rows", text)]
    # Neither xdist's variables nor plugins that choose among parameters (tests/project/few.py).
    others = {n: v for n, v in process_environment().items() if not n.startswith("PYTEST_")}
    # Workers that compile would each import torch.
    compiling = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    # Of max-autotune's templates cuBLAS and two of Triton's: each of 17 is compiled for seconds.
    compiling["TORCHINDUCTOR_AUTOTUNE_CHOICE_NAME_REGEX"] = "^(add)?mm$|^triton_mm_[01]$"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "gpu", *flags],
        cwd=ROOT,
        env=others | environment(stand_in_folder) | compiling,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    logs = "".join(log.read_text()[-3000:] for log in (folder / "out" / "log").glob("*.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return folder / "out"


def rows(out: Path, part: str) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / f"{part}.jsonl").read_text().splitlines()]
    return {line["id"]: line["outcome"] for line in lines if line["kind"] == "row"}


def test_every_part_runs_rows_to_their_end(out: Path) -> None:
    assert len(rows(out, "correctness")) == 2
    assert set(rows(out, "correctness").values()) == {"dry run"}
    ops = rows(out, "ops")
    assert set(ops.values()) == {"dry run"}
    providers = ("eager", "compiled", "fallback", "triton")
    graphs = ("eager graph", "compiled graph", "triton graph")
    of_likelihood = [row for row in ops if "likelihood[" in row]
    for provider in (*providers, *graphs):
        assert sum(row.endswith(f"-{provider}]") for row in of_likelihood) == 1, provider
    assert len(of_likelihood) == 7
    assert len(ops) == 7 + len(OPS) + 2
    assert list(rows(out, "training").values()) == ["dry run"]
    rivals = rows(out, "rivals")
    (row,) = (row for row in rivals if row.endswith("-compiled max-autotune]"))
    assert rivals[row] == "dry run"
    assert len(rivals) == 2  # includes JAX's row, which is skipped if jax is not installed


def test_nothing_of_it_can_be_taken_for_a_measurement(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert page.startswith("# DRY RUN on ")
    assert "GB/s" not in page
    assert not [file.name for file in out.glob("*.json")]
    for part in ("correctness", "ops", "training", "rivals"):
        assert "passed" not in rows(out, part).values()
        assert f"| {part} | dry run |" in page
