"""A grid of runs in a folder: each finished run has a record and a file of arrays beside it.

An interrupted grid continues where it was, and several ranks share its runs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..config import TrainConfig, choose_device, choose_precision
from ..data import Dataset, load
from ..runs.folder import holds_run
from ..system.environment import environment
from ..system.files import (
    OutputError,
    check_place,
    claimed,
    prepare_folder,
    read_json,
    write_atomically,
    write_json,
)
from ..system.progress import Progress
from ..system.world import World
from ..training.loop import TrainingError
from .arrays import files_of

FEATURES = "features.pt"  # the networks in whose features images are compared

Record = dict[str, Any]
Measured = tuple[Record, dict[str, np.ndarray]]


class Grid(Protocol):
    """The settings of a grid: `StudyConfig`, `SweepConfig` or `RemedyConfig`."""

    @property
    def base(self) -> TrainConfig:
        """What the runs share."""
        ...

    def runs(self) -> list[TrainConfig]:
        """In the order in which they are done and recorded."""
        ...

    def as_dict(self) -> Record:
        """The settings as JSON values."""
        ...


class Setup(NamedTuple):
    """How a grid measures a run, and what results.json holds beside the runs."""

    measure: Callable[[TrainConfig], Measured]
    beside: Callable[[], Record] = dict


def run_grid(
    config: Grid,
    out: Path,
    header: Record,
    title: str,
    setup: Callable[[Dataset, torch.device], Setup],
    *,
    growing: tuple[str, ...] = (),
    show_progress: bool,
    world: World,
) -> None:
    """Do the runs that `out` does not hold yet; several ranks share them.

    Files: study.json (the settings), runs/ARM-seedS.json and .npz (arrays, if there are any) for
    each finished run, results.json (all runs), and what `setup` writes.

    Args:
        config: the settings.
        out: the folder.
        header: what else study.json and results.json hold: kind, schema, and what must not change.
        title: of the progress bar.
        setup: prepares the measuring; the first rank does so before the others.
        growing: the lists among the settings that a grid may be continued with more of.

    Raises:
        OutputError: `out` cannot be written, holds another grid, or another process is at work in
            it.
        ConfigError, DataError, TrainingError: as for `load` and `train`.
        RankError: another rank is gone; finished runs are kept.
    """
    # The other ranks write under the first rank's claim.
    with claimed(out) if world.rank == 0 else nullcontext():
        device = choose_device(config.base.device)
        precision = str(choose_precision(config.base.precision, device)).removeprefix("torch.")
        settings = {**config.as_dict(), "precision": precision, "device": device.type}
        if world.rank == 0:
            check_places(config.runs(), out)
            check_claim(out, header, settings, growing)
        dataset = world.first_then_others(lambda: load(config.base.data, config.base.data_root))
        if world.rank == 0:
            prepare_folder(out / "runs")
            write_json(out / "study.json", {**header, "config": settings})
        # The first rank trains the networks that compare images, the others read their file.
        ready = world.first_then_others(lambda: setup(dataset.to(device), device))
        run_all(
            *(config.runs(), ready.measure, out, title, device),
            show_progress=show_progress and world.rank == 0,
            world=world,
        )
        if world.rank == 0:
            results = {
                **header,
                "config": settings,
                "environment": environment(device) | {"ranks": world.size},
                **ready.beside(),
                "runs": [read_json(files_of(out, run)[0]) for run in config.runs()],
            }
            write_json(out / "results.json", results)


def check_claim(out: Path, header: Record, settings: Record, growing: tuple[str, ...]) -> None:
    """Check that a folder is new, or holds a grid of this kind with the same settings.

    More seeds continue a grid, and more of the lists in `growing`; any other change makes another.

    Raises:
        OutputError: the folder holds a training run, or another grid.
    """
    path = out / "study.json"
    if holds_run(out):
        raise OutputError(f"out: {out} holds a training run; name another folder")
    if not path.exists():
        return
    held = read_json(path)
    if (held.get("kind"), held.get("schema")) != (header["kind"], header["schema"]):
        raise OutputError(
            f"out: {out} holds a study of another kind or version of vaez-fast; name another folder"
        )
    if changed := [name for name in header if held.get(name) != header[name]]:
        raise OutputError(
            f"out: {out} holds a study that began under other rules ({changed[0]} has changed "
            "since); name another folder"
        )
    stated = held.get("config")
    stated = stated if isinstance(stated, dict) else {}
    for name in growing:
        listed = stated.get(name)
        listed = listed if isinstance(listed, list) else []
        if gone := [one for one in listed if one not in settings[name]]:
            raise OutputError(
                f"out: {out} also holds {name} {', '.join(map(str, gone))}; name them, too, or "
                "another folder"
            )
    compared = [name for name in settings if name not in growing]
    different = [name for name in compared if stated.get(name) != settings[name]]
    more = isinstance(stated.get("seeds"), int) and stated["seeds"] <= settings["seeds"]
    if [name for name in different if name != "seeds"] or not more:
        said = ", ".join(f"{name} {stated.get(name)!r}" for name in different)
        raise OutputError(f"out: {out} holds a study of other settings ({said})")


def run_all(
    runs: Sequence[TrainConfig],
    measure: Callable[[TrainConfig], Measured],
    out: Path,
    title: str,
    device: torch.device,
    *,
    show_progress: bool,
    world: World,
) -> None:
    """Do the runs that `out`/runs does not hold yet; each rank takes its share.

    A run's record says in which environment it was made, since a grid may be continued on another
    machine or at another revision.

    Raises:
        TrainingError: a measured number is not finite; the run is not kept.
    """
    todo = [run for run in runs if not is_finished(out, run)]
    world.wait()  # no rank finishes a run before all have made their lists
    todo = todo[world.rank :: world.size]
    with Progress(len(todo), title, show=show_progress) as progress:
        for run in todo:
            progress.note(f"{run.arm}, seed {run.seed}")
            record, arrays = measure(run)
            record["environment"] = environment(device)
            _check_finite(record, run)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            record_file, array_file = files_of(out, run)
            write_atomically(array_file, buffer.getvalue())
            write_json(record_file, record)
            progress.advance()
    world.wait()


def check_places(runs: Sequence[TrainConfig], out: Path) -> None:
    """Check that every file that is still to be written can be written.

    Raises:
        OutputError: one cannot.
    """
    written = [out / "study.json", out / "results.json"]
    # Files that exist are read and not written. A broken link counts as missing.
    if not (out / FEATURES).exists():
        written.append(out / FEATURES)
    for run in runs:
        if not is_finished(out, run):
            written += files_of(out, run)
    for file in written:
        check_place(file)


def is_finished(out: Path, run: TrainConfig) -> bool:
    """Whether `out` holds the run's record and arrays."""
    return all(file.exists() for file in files_of(out, run))


def _check_finite(record: Record, run: TrainConfig) -> None:
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        raise TrainingError(
            f"{run.arm}, seed {run.seed}: a measured number is not finite; a smaller lr than "
            f"{run.lr} may help"
        ) from None
