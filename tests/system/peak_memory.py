"""A program that reads files as the commands do and prints how much memory each read takes.

python -m tests.system.peak_memory NAME=PATH … prints a JSON object: name → [MiB, the error].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.records import records
from vaez_fast import data
from vaez_fast.cli import config_file
from vaez_fast.cli.commands import train  # noqa: F401  all that a command imports
from vaez_fast.measures import features
from vaez_fast.study import arrays
from vaez_fast.system import files
from vaez_fast.training import checkpoint

READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": checkpoint.read,
    "classifier": lambda path: features.load_features(path, torch.device("cpu")),
    "record": files.read_json,
    "settings": lambda path: config_file.read_settings(path, "vaez-fast train"),
    "suite": records.read,
    "images": lambda path: arrays.images_of(path.parents[1], "randn", 0),
    "mnist-5k": lambda path: data.load("mnist-5k", path.parent),
    "mnist": lambda path: data.load("mnist", path.parents[2], download=False),
}


def memory(name: str) -> float:
    """MiB of this process: now (VmRSS), or the most since the last reset (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def main() -> None:
    sys.modules["mlxtend"] = None  # type: ignore[assignment]
    found = {}
    for word in sys.argv[1:]:
        name, _, path = word.partition("=")
        Path("/proc/self/clear_refs").write_text("5")
        before, said = memory("VmRSS"), ""
        try:
            READERS[name.split(":")[0]](Path(path))
        except (RuntimeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
        found[name] = (memory("VmHWM") - before, said)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
