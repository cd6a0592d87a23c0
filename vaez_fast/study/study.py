"""The study of the article: every arm on many seeds; each finished run has its own file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TrainConfig, choose_device, choose_precision
from ..data import PIXELS, load
from ..runs.folder import holds_run
from ..system.archives import read_arrays
from ..system.environment import environment
from ..system.errors import first_line, shown
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
from ..system.world import ALONE, World
from ..training.loop import TrainingError
from .config import StudyConfig as StudyConfig
from .measure import Measure

KIND, SCHEMA = "vaez-fast article", 1
IMAGES_MOST_BYTES = 2**23  # a run's grids have 47 kB
OBSERVATIONS = 24  # of the decay, evenly spaced in the logarithm of the step


def run_study(
    config: StudyConfig, out: Path, *, show_progress: bool = False, world: World = ALONE
) -> None:
    """Do the runs that `out` does not hold yet; several ranks share them.

    Files: study.json (the settings), runs/ARM-seedS.json and .npz (images) for each finished run,
    results.json (all runs, with the references of `Measure.beside`), features.pt (the classifier).

    Raises:
        OutputError: `out` cannot be written, holds a study of other settings, or another process
            is at work in it.
        ConfigError, DataError, TrainingError: as for `load` and `train`.
        RankError: another rank is gone; finished runs are kept.
    """
    # The other ranks write under the first rank's claim.
    with claimed(out) if world.rank == 0 else nullcontext():
        _run_study(config, out, show_progress and world.rank == 0, world)


def _run_study(config: StudyConfig, out: Path, show_progress: bool, world: World) -> None:
    device = choose_device(config.base.device)
    precision = str(choose_precision(config.base.precision, device)).removeprefix("torch.")
    settings = {**config.as_dict(), "precision": precision, "device": device.type}
    if world.rank == 0:
        _check_places(config, out)
        _check_claim(out, settings)
    dataset = world.first_then_others(lambda: load(config.base.data, config.base.data_root))
    measure = Measure(config.base, dataset, device, out / "features.pt")
    if world.rank == 0:
        prepare_folder(out / "runs")
        write_json(out / "study.json", settings)
    # The first rank trains the classifier, the others read its file.
    world.first_then_others(lambda: measure.classifier)
    todo = [run for run in config.runs() if not _is_finished(out, run)]
    world.wait()  # no rank finishes a run before all have made their lists
    todo = todo[world.rank :: world.size]
    with Progress(len(todo), "article", show=show_progress) as progress:
        for run in todo:
            progress.note(f"{run.arm}, seed {run.seed}")
            record, images = measure.run(run, _observation_steps(measure.steps))
            _check_finite(record, run)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **images)  # type: ignore[arg-type]
            record_file, image_file = _files(out, run)
            write_atomically(image_file, buffer.getvalue())
            write_json(record_file, record)
            progress.advance()
    world.wait()
    if world.rank > 0:
        return
    results = {
        "kind": KIND,
        "schema": SCHEMA,
        "config": settings,
        "environment": environment(device) | {"ranks": world.size},
        "beside": measure.beside(),
        "runs": [read_json(_files(out, run)[0]) for run in config.runs()],
    }
    write_json(out / "results.json", results)


def _observation_steps(steps: int) -> frozenset[int]:
    spaced = np.geomspace(1, steps, OBSERVATIONS).round().astype(int)
    return frozenset({0, *spaced.tolist()})


def _check_claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "study.json"
    if holds_run(out):
        raise OutputError(f"out: {out} holds a training run; name another folder")
    if path.exists():
        held = read_json(path)
        different = [name for name in settings if held.get(name) != settings[name]]
        # More seeds continue a study; any other change makes another study.
        more = isinstance(held.get("seeds"), int) and held["seeds"] <= settings["seeds"]
        if [name for name in different if name != "seeds"] or not more:
            said = ", ".join(f"{name} {held.get(name)!r}" for name in different)
            raise OutputError(f"out: {out} holds a study of other settings ({said})")


def _check_places(config: StudyConfig, out: Path) -> None:
    written = [out / "study.json", out / "results.json"]
    # Files that exist are read and not written. A broken link counts as missing.
    if not (out / "features.pt").exists():
        written.append(out / "features.pt")
    for run in config.runs():
        if not _is_finished(out, run):
            written += _files(out, run)
    for file in written:
        check_place(file)


def _is_finished(out: Path, run: TrainConfig) -> bool:
    return all(file.exists() for file in _files(out, run))


def _check_finite(record: dict[str, Any], run: TrainConfig) -> None:
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        raise TrainingError(
            f"{run.arm}, seed {run.seed}: a measured number is not finite; a smaller lr than "
            f"{run.lr} may help"
        ) from None


def _files(out: Path, run: TrainConfig) -> tuple[Path, Path]:
    # The record is written last: with it the run is finished.
    name = f"{slug(run.arm)}-seed{run.seed}"
    return out / "runs" / f"{name}.json", out / "runs" / f"{name}.npz"


def slug(arm: str) -> str:
    """An arm's name for use in file names."""
    return arm.replace("/", "_").replace("=", "")


def images_of(out: Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """Image grids of a run by sampler, (count, 784) uint8 grey levels.

    Raises:
        OutputError: there is no such run, or its file cannot be read.
    """
    path = out / "runs" / f"{slug(arm)}-seed{seed}.npz"
    try:
        images = read_arrays(path, IMAGES_MOST_BYTES)
        for name, grid in images.items():
            if grid.dtype != np.uint8 or grid.ndim != 2 or grid.shape[1] != PIXELS:
                raise ValueError(f"{shown(name)} is {grid.shape} {grid.dtype}")
        return images
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except Exception as error:  # a damaged archive fails in many ways
        raise OutputError(
            f"cannot read {path}: not a file of images, or a damaged one ({first_line(error)})"
        ) from None


def arm_names(results: dict[str, Any]) -> Sequence[str]:
    """The arms of a study's results, in the order of `StudyConfig.arms`."""
    return list(dict.fromkeys(run["arm"] for run in results["runs"]))
