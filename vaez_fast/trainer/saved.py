"""trainer.pt: the state that `Trainer.train` resumes from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..system.archives import read_tensors
from ..system.files import OutputError, write_atomically

NAME, KIND, SCHEMA = "trainer.pt", "vaez-fast trainer", 1
MOST_BYTES = 2**37  # of memory that reading may take


@dataclass
class Saved:
    """The content of the file: tensors on the CPU and plain values, so loading it runs no code."""

    settings: dict[str, Any]  # of the run; a run is resumed with the same
    done: int  # steps
    engine: dict[str, Any]  # see `Engine.state_dict`
    curve: list[dict[str, Any]]
    best: dict[str, Any] | None  # the weights with the best held-out ELBO, and that ELBO


def write(folder: Path, saved: Saved) -> None:
    """Replace the file, completely or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "schema": SCHEMA, **vars(saved)}, buffer)
    write_atomically(folder / NAME, buffer.getvalue())


def read(folder: Path, settings: dict[str, Any]) -> Saved | None:
    """The state of the run in a folder; None if there is none.

    Raises:
        OutputError: the file is damaged, or of a run with other settings.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = read_tensors(path, MOST_BYTES)
    fields = {"settings": dict, "done": int, "engine": dict, "curve": list}
    whole = isinstance(content, dict) and content.get("kind") == KIND
    if not whole or not all(isinstance(content.get(n), kind) for n, kind in fields.items()):
        raise OutputError(f"cannot read {path}: expected a file that Trainer.train wrote")
    if content.get("schema") != SCHEMA:
        raise OutputError(f"cannot read {path}: this version reads schema {SCHEMA}")
    other = [n for n, value in settings.items() if content["settings"].get(n) != value]
    if other:
        raise OutputError(
            f"out: {path} is of a run with another {', another '.join(other)}; name another "
            "folder, or go on with the same settings"
        )
    return Saved(**{name: content[name] for name in Saved.__dataclass_fields__})
