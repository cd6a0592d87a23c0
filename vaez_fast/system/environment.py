"""Where a number was measured."""

from __future__ import annotations

import logging
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What the last digits of a result depend on, beside the code and its settings.
SAME_DIGITS = ("torch", "triton", "device", "cpu", "cpu_id", "threads")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, device, processor, threads and git state, as JSON values.

    `revision` and `dirty` are None where the package does not run from a git checkout of its own.
    """
    import torch

    from vaez_kernels.backend import triton

    device = torch.device(device)
    cpu = cpu_name()
    revision, dirty = git_state(Path(__file__).parents[2])
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # else a class of torch's own
        "triton": triton.__version__ if triton is not None else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cpu_id": cpu_id(),
        "threads": torch.get_num_threads(),
        "revision": revision,
        "dirty": dirty,
    }


def expect_no_gpu() -> None:
    """Keep torch from logging that a CUDA toolkit is installed and no GPU, when it compiles."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def cpu_name() -> str:
    """The processor's model name, or as much as the platform tells."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def cpu_id() -> str | None:
    """The processor's vendor, family, model and stepping, which its name may not tell; x86 Linux.

    Cloud machines call processors of several generations by one name, and these round differently.
    """
    fields = _cpu_fields()
    names = ("vendor_id", "cpu family", "model", "stepping")
    return "/".join(fields[name] for name in names) if fields.keys() >= set(names) else None


def _cpu_fields() -> dict[str, str]:
    # what Linux says of the first processor; nothing elsewhere
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout whose top is `root`, and whether files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None, None
        return git("rev-parse", "HEAD"), git("status", "--porcelain") != ""
    except (OSError, subprocess.CalledProcessError):
        return None, None
