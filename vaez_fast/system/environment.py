"""The software and the machine on which a number was measured."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The last digits of a result depend on these, besides the code and its settings.
SAME_DIGITS = ("torch", "triton", "device", "cpu", "cpu_id", "threads")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, device, processor, threads and git state, as JSON values.

    `revision` and `dirty` are None if the package does not run from its own git checkout.
    """
    import torch

    from vaez_kernels.backend import triton

    device = torch.device(device)
    cpu = cpu_name()
    revision, dirty = git_state(Path(__file__).parents[2])
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str subclass
        "triton": triton.__version__ if triton is not None else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cpu_id": cpu_id(),
        "threads": torch.get_num_threads(),
        "revision": revision,
        "dirty": dirty,
    }


def expect_no_gpu() -> None:
    """Keep torch from logging, when it compiles, that a CUDA toolkit is installed but no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def cpu_name() -> str:
    """The processor's model name, or what the platform module says instead."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """How many cores this process may run on, if the system tells, else how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def cpu_id() -> str | None:
    """The processor's vendor, family, model and stepping, on x86 Linux.

    Cloud machines give processors of several generations one name, and these round differently.
    """
    fields = _cpu_fields()
    names = ("vendor_id", "cpu family", "model", "stepping")
    return "/".join(fields[name] for name in names) if fields.keys() >= set(names) else None


def _cpu_fields() -> dict[str, str]:
    # Linux's description of the first processor; empty on other systems
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout at `root`, and whether files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None, None
        return git("rev-parse", "HEAD"), git("status", "--porcelain") != ""
    except (OSError, subprocess.CalledProcessError):
        return None, None
