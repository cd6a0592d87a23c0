"""The JSON that the suite writes, with chosen times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MACHINE = {
    "device": "a CPU",
    "cpu": "a CPU",
    "threads": 2,
    "python": "3.11.7",
    "torch": "2.15.0",
    "triton": None,
    "revision": "c9ddd57c762071b71c3c2457ffe1ba7807823698",
    "dirty": False,
}

Medians = Mapping[str, Mapping[str, float]]  # group → provider → seconds


def content(
    medians: Medians, seed: int, rounds: int = 61, noise: float = 0.02, **machine: Any
) -> dict[str, Any]:
    """A run whose rounds scatter around these medians, by `noise` relative to them."""
    random = np.random.default_rng(seed)
    return {
        "machine_info": MACHINE | machine,
        "datetime": f"2026-11-{1 + seed % 28:02d}T07:11:50+00:00",
        "command": "pytest bench --benchmark-only",
        "quick": False,
        "benchmarks": [
            _benchmark(group, provider, median * np.exp(noise * random.normal(size=rounds)))
            for group, providers in medians.items()
            for provider, median in providers.items()
        ],
    }


def _benchmark(group: str, provider: str, seconds: np.ndarray[Any, Any]) -> dict[str, Any]:
    middle = float(np.median(seconds))
    info = {
        "provider": provider,
        "timing": "wall clock",
        "check": "passed",
        "check_error_over_tolerance": 0.05,
        "peak_memory_bytes": 2048,
        "moved_bytes": 30_000_000,
        "floor_bytes": 10_000_000,
        "gb_per_second": 1e-2 / middle,
        "copy_gb_per_second": 25.0,
        "percent_of_copy": 4e-2 / middle,
    }
    low, high = np.percentile(seconds, [25, 75])
    stats = {"data": list(map(float, seconds)), "median": middle, "iqr": float(high - low)}
    return {"group": group, "extra_info": info, "stats": stats}


def on_a_gpu(run: dict[str, Any], launches: float = 250e-6) -> dict[str, Any]:
    """The same run on a GPU: the times are the device's, and each call takes at least `launches`.

    The textbook's work waits for the GPU, so it has no device time.
    """
    for benchmark in run["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        info["device"] = "cuda"
        waits = info["provider"] == "textbook"
        info["device_seconds"] = None if waits else stats["data"]
        stats["data"] = [max(launches, time) for time in stats["data"]]
        stats["median"] = max(launches, stats["median"])
    return run


def write(path: Path, record: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path
