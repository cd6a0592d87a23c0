"""What a run writes: metrics.json and checkpoint.pt, each whole or not at all."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .config import TrainConfig
from .environment import environment
from .model import VAE
from .train import Result

SCHEMA = 1


class OutputError(RuntimeError):
    """An output folder that cannot be written, or holds a run already."""


def prepare_folder(path: Path) -> None:
    """Make the folder, before any work is done for it.

    Raises:
        OutputError: it cannot be made or written, or holds a run already.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"out: cannot write in {path}: {error.strerror}") from None
    if (path / "metrics.json").exists():  # written last: the mark of a whole run
        raise OutputError(f"out: {path} holds a run already; name another folder")


def prepare_file(path: Path) -> None:
    """Make the folder of a file that is to be written, before any work is done for it.

    Raises:
        OutputError: the file could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        OutputError: the file could not be written (a full disk, a lost permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"out: cannot write {path}: {error.strerror}") from None
        raise


def metrics(config: TrainConfig, result: Result) -> dict[str, Any]:
    """The content of metrics.json."""
    settings = asdict(config) | {"precision": result.precision, "device": result.device}
    return {
        "schema": SCHEMA,
        "arm": config.arm,
        "config": settings,
        "environment": environment(result.device),
        "curve": result.curve,
        "best_step": result.best_step,
        "test": result.test.as_dict(),
        "speed": result.speed(),
    }


def load_run(folder: Path) -> tuple[VAE, dict[str, Any]]:
    """The model that a training run kept, on the CPU, and the content of its metrics.json.

    Raises:
        OutputError: the folder holds no whole run, or one that cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
        vae = VAE(record["config"]["model"])
        vae.load_state_dict(checkpoint["model"])
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise OutputError(f"{folder} holds no {missing}; `vaez-fast train` writes one") from None
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutputError(f"{folder} holds a run that cannot be read: {reason}") from None
    return vae, record


def save(folder: Path, config: TrainConfig, result: Result) -> None:
    """Write checkpoint.pt, then metrics.json: a folder with metrics holds a whole run."""
    record = metrics(config, result)
    state = {name: p.cpu() for name, p in result.vae.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(
        {
            "schema": SCHEMA,
            "config": record["config"],
            "step": result.best_step,
            "model": state,
        },
        buffer,
    )
    write_atomically(folder / "checkpoint.pt", buffer.getvalue())
    write_atomically(
        folder / "metrics.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    )
