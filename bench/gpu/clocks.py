"""The GPU's clocks, power, temperature and throttling, sampled while rows are timed."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

EVERY_MS = 100
STOP_SECONDS = 2.0
FIELDS = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
# nvidia-smi's reasons for a reduced clock that slow a benchmark down. Idling (0x1) and clocks set
# by a user (0x2, 0x100) do not count as throttling.
THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "temperature, by software",
    0x40: "temperature, by hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Sample:
    """One line of nvidia-smi; None for a value that this GPU does not report."""

    time: float  # seconds since 1970
    sm_mhz: float | None
    memory_mhz: float | None
    watts: float | None
    celsius: float | None
    reasons: int


@contextmanager
def sampled(file: Path, gpu_id: str) -> Iterator[None]:
    """While the block runs, nvidia-smi appends a line to `file` every 100 ms, if it is installed.

    Args:
        gpu_id: of the GPU, from `pci_id`.
    """
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    command += [f"--id={gpu_id}", f"--loop-ms={EVERY_MS}"]
    with file.open("ab") as lines:
        try:
            process = subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL)
        except OSError:
            yield
            return
    try:
        yield
    finally:
        process.terminate()  # then it flushes its output, unless it hangs
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read(file: Path) -> list[Sample]:
    """The samples in a file that `sampled` wrote; other lines are ignored."""
    if not file.exists():
        return []
    with file.open(errors="replace", newline="") as lines:
        return [s for line in csv.reader(lines, skipinitialspace=True) if (s := _sample(line))]


def _sample(cells: Sequence[str]) -> Sample | None:
    try:
        at, sm_mhz, memory_mhz, watts, celsius, reasons = cells
        time = datetime.strptime(at, "%Y/%m/%d %H:%M:%S.%f").timestamp()
        return Sample(
            time,
            _number(sm_mhz),
            _number(memory_mhz),
            _number(watts),
            _number(celsius),
            int(reasons, 16),
        )
    except ValueError:
        return None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # [N/A]
        return None


def during(samples: Sequence[Sample], begin: float, end: float) -> dict[str, Any] | None:
    """The record of the GPU from `begin` to `end`, seconds since 1970.

    Includes one extra sample on each side, because a row can be shorter than the sampling interval.
    None if there are no samples.
    """
    margin = EVERY_MS * 1e-3
    within = [s for s in samples if begin - margin <= s.time <= end + margin]
    if not within:
        return None
    reasons = 0
    for sample in within:
        reasons |= sample.reasons
    return {
        "samples": len(within),
        "sm_mhz": _spread([s.sm_mhz for s in within]),
        "memory_mhz": _spread([s.memory_mhz for s in within]),
        "watts": _spread([s.watts for s in within]),
        "celsius": _spread([s.celsius for s in within]),
        "throttled": [says for bit, says in THROTTLING.items() if reasons & bit],
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"min": min(known), "median": median(known), "max": max(known)}


def pci_id() -> str:
    """The PCI id of torch's GPU, whose number nvidia-smi may count in another way.

    nvidia-smi also counts GPUs that CUDA_VISIBLE_DEVICES hides.
    """
    of: Any = torch.cuda.get_device_properties(0)  # torch's stub lacks these names
    return f"{of.pci_domain_id:08x}:{of.pci_bus_id:02x}:{of.pci_device_id:02x}.0"


def gpu(gpu_id: str) -> str:
    """Name, driver and power limit from nvidia-smi; empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    command.append(f"--id={gpu_id}")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
