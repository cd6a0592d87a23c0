"""Runs that are killed with SIGKILL at random moments, resumed, and held to one that was not."""

from __future__ import annotations

import json
import os
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

from vaez_fast.training import checkpoint

ROOT = Path(__file__).parents[2]
LONGEST = 600.0  # seconds of one process


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vaez_fast", "train", *arguments]


def environment() -> dict[str, str]:
    """Uninstalled or not, the processes run this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return os.environ | {"PYTHONPATH": path}


@dataclass(frozen=True)
class Killed:
    """One run: when its processes were killed, which checkpoint each kill left, and its end."""

    seconds: list[float]
    steps: list[int | None]  # of the checkpoint after each kill; None: there was none yet
    whole: list[bool]  # whether it had ended before
    identical: bool


def undisturbed(settings: Sequence[str], out: Path) -> float:
    """Run to the end; returns the seconds for which it trained."""
    subprocess.run(
        command(*settings, "--out", str(out)),
        check=True, env=environment(), capture_output=True, timeout=LONGEST,
    )  # fmt: skip
    return float(json.loads((out / "metrics.json").read_text())["speed"]["train_seconds"])


def killed(
    settings: Sequence[str], out: Path, whole: Path, seconds: float, kills: int, draw: random.Random
) -> Killed:
    """Start a run, kill it `kills` times, let it end, and compare it with the undisturbed one.

    Kills come at moments drawn evenly from the `seconds` that an undisturbed process trains for,
    after it has written its first checkpoint; every other kill at a moment from its start on, when
    it loads or compiles. One that comes after the end is a kill no less: the next start finds a
    whole run.
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
    """When the checkpoint was last written, ns; 0 for never."""
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
    """What a run found, to the last bit, and nothing of when: metrics, curve, weights."""
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
