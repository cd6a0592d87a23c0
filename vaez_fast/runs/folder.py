"""A training run's folder: config.json at the start, checkpoint.pt, metrics.json at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, TrainConfig
from ..model import VAE, architecture
from ..richer.vae import build
from ..system.environment import environment
from ..system.errors import first_line
from ..system.files import OutputError, prepare_files, read_json, write_json
from ..training import checkpoint as checkpoints
from ..training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from ..training.train import Result

KIND, SCHEMA = "vaez-fast train", 1
FILES = ("config.json", checkpoints.NAME, "metrics.json")


def prepare(folder: Path) -> None:
    """Check, before any work is done, that a run can write its files.

    Raises:
        OutputError: it cannot.
    """
    prepare_files(folder, *FILES)


def prepare_beside(folder: Path, names: Sequence[str]) -> None:
    """Create a folder for files that are made of a run, before any work is done for them.

    Raises:
        OutputError: it cannot be written, already holds one of them, or holds a run, whose report
            has files of its own.
    """
    if is_whole(folder):
        raise OutputError(f"out: {folder} holds a run; name another folder, it may lie in that one")
    prepare_files(folder, *names)
    for name in names:
        if (folder / name).exists():
            raise OutputError(f"out: {folder / name} exists already; name another folder")


@contextmanager
def begun(folder: Path, config: TrainConfig) -> Iterator[None]:
    """A block in which a new run fills a claimed folder.

    If it raises before a checkpoint is written, the folder is left empty.

    Raises:
        OutputError: it already holds a run or a study, or cannot be written.
    """
    if (folder / "study.json").exists() or (folder / "results.json").exists():
        raise OutputError(f"out: {folder} holds a study already; name another folder")
    if is_whole(folder):
        raise OutputError(f"out: {folder} holds a run already; name another folder")
    if (folder / "config.json").exists() or (folder / checkpoints.NAME).exists():
        raise OutputError(
            f"out: {folder} holds an unfinished run; continue it with "
            f"`vaez-fast train --resume {folder}`, or name another folder"
        )
    write_json(folder / "config.json", {"kind": KIND, "schema": SCHEMA, "config": asdict(config)})
    try:
        yield
    except Exception:
        if not (folder / checkpoints.NAME).exists():
            (folder / "config.json").unlink(missing_ok=True)
        raise


def holds_run(folder: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return any((folder / name).exists() for name in FILES)


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a finished run: metrics.json is written at the end."""
    return (folder / "metrics.json").exists()


def unfinished(folder: Path) -> tuple[TrainConfig, Checkpoint | None]:
    """The settings of an unfinished run, and its checkpoint if there is one.

    Raises:
        OutputError: the folder holds no such run, or one that cannot be read.
    """
    path = folder / checkpoints.NAME
    if path.exists():
        checkpoint = checkpoints.read(path)
        if checkpoint.training is None:
            raise OutputError(f"resume: {path} holds a model alone, not a run to go on with")
        return _settings(path, checkpoint.config), checkpoint
    path = folder / "config.json"
    if not path.exists():
        raise OutputError(f"resume: {folder} holds no run; `vaez-fast train --out` begins one")
    return _settings(path, read_json(path).get("config")), None


def _settings(path: Path, values: Any) -> TrainConfig:
    try:
        return TrainConfig(**values)
    except (TypeError, ConfigError) as error:
        raise OutputError(f"resume: {path} holds no settings of a run ({error})") from None


def metrics(config: TrainConfig, result: Result) -> dict[str, Any]:
    """The content of metrics.json."""
    settings = asdict(config) | {"precision": result.precision, "device": result.device}
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "arm": config.arm,
        "config": settings,
        "environment": environment(result.device) | {"ranks": result.ranks},
        "curve": result.curve,
        "best_step": result.best_step,
        "test": result.test.as_dict(),
        "speed": result.speed(),
    }


def save(folder: Path, config: TrainConfig, result: Result) -> None:
    """Write metrics.json and a checkpoint.pt that holds only the model: the run is then finished.

    An existing checkpoint is replaced last. It has the same model and the state of the run's end,
    from which the run can resume if metrics.json cannot be written.
    """
    record = metrics(config, result)
    model = {name: p.cpu() for name, p in result.vae.state_dict().items()}
    kept = Checkpoint(record["config"], record["environment"], result.best_step, model)
    path = folder / checkpoints.NAME
    if not path.exists():
        checkpoints.write(path, kept)
        write_json(folder / "metrics.json", record)
    else:
        write_json(folder / "metrics.json", record)
        checkpoints.write(path, kept)


def load_run(folder: Path) -> tuple[VAE, dict[str, Any]]:
    """The model that a training run kept, on the CPU, and the content of its metrics.json.

    Raises:
        OutputError: the folder holds no finished run, or one that cannot be read.
    """
    for name in ("metrics.json", checkpoints.NAME):
        if not (folder / name).exists():
            raise OutputError(f"{folder} holds no {name}; `vaez-fast train` writes one")
    record = read_json(folder / "metrics.json")
    checkpoint = checkpoints.read(folder / checkpoints.NAME)
    try:
        settings = record["config"]
        # Runs of versions that had no choice of these do not record them.
        richer = {name: settings[name] for name in ("posterior", "prior") if name in settings}
        shape = architecture(settings["model"], settings.get("latent"))
        vae = build(shape, **richer)
        vae.load_state_dict(checkpoint.model)
        if not all(bool(p.isfinite().all()) for p in vae.parameters()):
            raise ValueError("its weights are not finite")
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = first_line(error)
        raise OutputError(f"{folder} holds a run that cannot be read: {reason}") from None
    return vae, record
