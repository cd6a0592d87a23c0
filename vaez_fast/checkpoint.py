"""checkpoint.pt: the model that a run keeps and, until it is done, all that it goes on from."""

from __future__ import annotations

import io
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import OutputError, write_atomically
from .stopping import Signals

KIND, SCHEMA = "vaez-fast checkpoint", 2
NAME = "checkpoint.pt"
SECONDS = 60.0  # between checkpoints; one of altosaar's is 12 MB


@dataclass
class Checkpoint:
    """What the file holds, as tensors on the CPU and plain values: loading it runs no code."""

    config: dict[str, Any]  # every setting as run
    environment: dict[str, Any]  # where it was written, and by how many ranks
    step: int  # of the model
    model: dict[str, Tensor]  # the best state so far, float32
    training: dict[str, Any] | None = None  # see `Run.state_dict`; None in a run that is done


@dataclass
class Keeping:
    """Where a run keeps its checkpoint, how often, from which it goes on, and who may stop it."""

    folder: Path
    seconds: float = SECONDS
    resumed: Checkpoint | None = None
    signals: Signals = field(default_factory=Signals)
    kept_step: int | None = None  # the steps done at the last checkpoint that is on the disk
    _kept_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.resumed is not None and self.resumed.training is not None:
            self.kept_step = int(self.resumed.training["done"])

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def due(self) -> bool:
        return time.monotonic() - self._kept_at >= self.seconds

    def keep(self, checkpoint: Checkpoint) -> None:
        """Replace the file.

        Raises:
            OutputError: it cannot be written; the one before is still there.
        """
        assert checkpoint.training is not None
        write(self.path, checkpoint)
        self.kept_step = int(checkpoint.training["done"])
        self._kept_at = time.monotonic()

    def last(self) -> str:
        """The end of a message about a run that broke off."""
        if self.kept_step is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.path}, after step {self.kept_step}"


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "schema": SCHEMA, **vars(checkpoint)}, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors come to the CPU.

    Files of schema 1, which hold a model alone, are read, too.

    Raises:
        OutputError: no such file, a damaged one, or not a checkpoint of ours.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise OutputError(f"{path} does not exist; `vaez-fast train` writes it") from None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise OutputError(
            f"cannot read {path}: expected a checkpoint of tensors and plain values; what else "
            "it holds was not loaded"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways
        raise OutputError(
            f"cannot read {path}: not a checkpoint, or a damaged one ({_first_line(error)})"
        ) from None
    return _checked(path, content)


def _checked(path: Path, content: Any) -> Checkpoint:
    expected = "expected a checkpoint that `vaez-fast train` wrote"
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise OutputError(f"cannot read {path}: {expected}")
    schema = content["schema"]
    if not 1 <= schema <= SCHEMA:
        raise OutputError(
            f"cannot read {path}: it is of schema {schema}, and this version reads 1 to {SCHEMA}"
        )
    if schema == 1:
        content = {"kind": KIND, "environment": {}, "training": None, **content}
    types: dict[str, Any] = {
        "kind": str,
        "config": dict,
        "environment": dict,
        "step": int,
        "model": dict,
        "training": (dict, type(None)),
    }
    for name, kind in types.items():
        if name not in content or not isinstance(content[name], kind):
            raise OutputError(f"cannot read {path}: {expected}; its {name} is missing or damaged")
    if content["kind"] != KIND:
        raise OutputError(f"cannot read {path}: {expected}, not a {content['kind']!r}")
    if not all(isinstance(weight, Tensor) for weight in content["model"].values()):
        raise OutputError(f"cannot read {path}: {expected}; its model is not one of tensors")
    return Checkpoint(**{name: content[name] for name in Checkpoint.__dataclass_fields__})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
