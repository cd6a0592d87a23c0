"""checkpoint.pt: a run's best model and, until the run is done, the state to resume from."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CHECKPOINT_SECONDS
from ..system.archives import read_tensors
from ..system.errors import shown
from ..system.files import OutputError, write_atomically
from ..system.stopping import Signals

KIND, SCHEMA = "vaez-fast checkpoint", 2
NAME = "checkpoint.pt"
MOST_BYTES = 2**28  # altosaar's 10 MB and a curve of three million points


@dataclass
class Checkpoint:
    """The content of the file: tensors on the CPU and plain values, so loading it runs no code."""

    config: dict[str, Any]  # every setting as run
    environment: dict[str, Any]  # where it was written and by how many ranks
    step: int  # of the model
    model: dict[str, Tensor]  # the best state so far, float32
    training: dict[str, Any] | None = None  # see `RunState`; None if the run is done


@dataclass
class Keeping:
    """Where and how often a run writes checkpoints, which it resumes, and which signals stop it."""

    folder: Path
    seconds: float = CHECKPOINT_SECONDS
    resumed: Checkpoint | None = None
    signals: Signals = field(default_factory=Signals)
    _kept_at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def due(self) -> bool:
        return time.monotonic() - self._kept_at >= self.seconds

    def keep(self, checkpoint: Checkpoint) -> None:
        """Replace the file.

        Raises:
            OutputError: it cannot be written; the previous file is still there.
        """
        try:
            write(self.path, checkpoint)
        except OutputError as error:
            raise OutputError(f"{error}; {self.last()}") from None
        self._kept_at = time.monotonic()

    def last(self) -> str:
        """The end of a message about an interrupted run: where its last checkpoint is.

        It reads the file, because another rank may have written it.
        """
        try:
            training = read(self.path).training
        except OutputError:
            training = None
        if training is None:
            return "there is no checkpoint yet"
        return (
            f"the last good checkpoint is {self.path}, after step {training['done']}: go on with "
            f"--resume {self.folder}"
        )


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, completely or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "schema": SCHEMA, **vars(checkpoint)}, buffer)
    write_atomically(path, buffer.getvalue())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Files of schema 1, which hold only a model, can be read too.

    Raises:
        OutputError: the file is missing, damaged or not a checkpoint of ours.
    """
    return _checked(path, read_tensors(path, MOST_BYTES))


def _checked(path: Path, content: Any) -> Checkpoint:
    expected = "expected a checkpoint that `vaez-fast train` wrote"
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise OutputError(f"cannot read {path}: {expected}")
    schema = content["schema"]
    if not 1 <= schema <= SCHEMA:
        raise OutputError(
            f"cannot read {path}: it is of schema {shown(schema)}, and this version reads 1 to "
            f"{SCHEMA}"
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
        raise OutputError(f"cannot read {path}: {expected}, not a {shown(content['kind'])}")
    if not all(isinstance(weight, Tensor) for weight in content["model"].values()):
        raise OutputError(f"cannot read {path}: {expected}; its model is not one of tensors")
    training = content["training"]
    if training is not None and type(training.get("done")) is not int:
        raise OutputError(f"cannot read {path}: {expected}; its training is damaged")
    return Checkpoint(**{name: content[name] for name in Checkpoint.__dataclass_fields__})
