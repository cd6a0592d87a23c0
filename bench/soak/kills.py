"""Runs that are killed with SIGKILL at random moments, resumed, and compared with a whole one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.process import environment
from vaez_fast.training import checkpoint

LONGEST = 600.0  # seconds of one process


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vaez_fast", "train", *arguments]


@dataclass(frozen=True)
class Killed:
    """One run: when its processes were killed, what each kill left, and how the run ended."""

    seconds: list[float]
    steps: list[int | None]  # of the checkpoint after each kill; None: no checkpoint yet
    whole: list[bool]  # whether the run had ended before each kill
    identical: bool  # to the undisturbed run


def undisturbed(settings: Sequence[str], out: Path) -> float:
    """Train a run to its end; returns its seconds of training."""
    subprocess.run(
        command(*settings, "--out", str(out)),
        check=True, env=environment(), capture_output=True, timeout=LONGEST,
    )  # fmt: skip
    return float(json.loads((out / "metrics.json").read_text())["speed"]["train_seconds"])


def killed(
    settings: Sequence[str], out: Path, whole: Path, seconds: float, kills: int, draw: random.Random
) -> Killed:
    """Start a run, kill it `kills` times, let it end, and compare it with the undisturbed one.

    Each moment is drawn uniformly from the `seconds` that an undisturbed process trains. The first
    kill and every second one after it count from the first checkpoint that the process writes; the
    others count from its start, so that some hit loading and compiling. A kill may come after the
    end of the run: then the next start finds a whole run.
    """
    times, steps, whole_runs = [], [], []
    for number in range(kills):
        before = _written(out)
        start = time.monotonic()
        process = subprocess.Popen(
            command(*_begin_or_resume(settings, out)),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while number % 2 == 0 and process.poll() is None and _written(out) == before:
            time.sleep(0.02)
        try:
            process.wait(draw.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        times.append(time.monotonic() - start)
        steps.append(_step(out))
        whole_runs.append((out / "metrics.json").exists())
    done = subprocess.run(
        command(*_begin_or_resume(settings, out)),
        env=environment(), capture_output=True, text=True, timeout=LONGEST,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"a run that was killed after {times} s does not go on: {done.stderr}")
    return Killed(times, steps, whole_runs, outcome(out) == outcome(whole))


def _written(out: Path) -> int:
    """When the checkpoint was last written, in ns; 0 if there is none."""
    path = out / checkpoint.NAME
    return path.stat().st_mtime_ns if path.exists() else 0


def _begin_or_resume(settings: Sequence[str], out: Path) -> list[str]:
    begun = (out / "config.json").exists()
    return ["--resume", str(out)] if begun else [*settings, "--out", str(out)]


def _step(out: Path) -> int | None:
    path = out / checkpoint.NAME
    training = checkpoint.read(path).training if path.exists() else None
    return training["done"] if training is not None else None


def outcome(out: Path) -> dict[str, Any]:
    """The results of a run to the last bit, without its times: metrics, curve, weights."""
    record = json.loads((out / "metrics.json").read_text())
    kept = checkpoint.read(out / checkpoint.NAME)
    model = {name: w.view(torch.uint8).numpy().tobytes() for name, w in kept.model.items()}
    curve = [{k: v for k, v in p.items() if k != "seconds"} for p in record["curve"]]
    return {
        "test": record["test"],
        "best_step": record["best_step"],
        "config": {k: v for k, v in record["config"].items() if k != "data_root"},
        "curve": curve,
        "model": model,
    }
