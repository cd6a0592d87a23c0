"""The study of the article: every arm on many seeds; a finished run is kept in its own file."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .config import ConfigError, TrainConfig, choose_device, choose_precision
from .data import load
from .environment import environment
from .measure import Measure
from .progress import Progress
from .results import OutputError, prepare_file, write_atomically
from .train import TrainingError

KIND, SCHEMA = "vaez-fast article", 1
KLS = ("total-derivative", "analytic", "sticking-the-landing")
BETAS = (4.0, 16.0, 64.0)
OBSERVATIONS = 24  # of the decay, evenly spaced in the logarithm of the step


@dataclass(frozen=True)
class StudyConfig:
    """Every setting of a study. `base` is what its arms share; its seed and arm are not used.

    Raises:
        ConfigError: no seed, or a value that `TrainConfig` refuses.
    """

    base: TrainConfig
    seeds: int
    betas: tuple[float, ...] = BETAS

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ConfigError(f"seeds must be at least 2, for intervals, got {self.seeds}")
        if len({run.arm for run in self.arms()}) != len(self.arms()):
            raise ConfigError(f"betas must differ from each other and from 1, got {self.betas}")

    def arms(self) -> list[TrainConfig]:
        """Every arm at seed 0: the article's frameworks, its code's defect, and the β sweep."""
        base = replace(
            self.base, objective="elbo", kl="analytic", decoder="joint", beta=1.0, num_samples=1
        )
        joint = [replace(base, kl=kl) for kl in KLS]
        apart = [
            replace(base, objective="kl", kl=kl, decoder=decoder)
            for kl in KLS
            for decoder in ("separate", "simultaneous")
        ]
        published = replace(base, objective="kl", kl="as-published", decoder="separate")
        sweep = [replace(base, beta=beta) for beta in self.betas]
        return [*joint, *apart, replace(base, decoder="randn"), published, *sweep]

    def runs(self) -> list[TrainConfig]:
        """Every arm of a seed before the next seed: an interrupted study has whole pairs."""
        return [replace(arm, seed=seed) for seed in range(self.seeds) for arm in self.arms()]

    def as_dict(self) -> dict[str, Any]:
        shared = asdict(self.base)
        of_arms = ("objective", "kl", "decoder", "beta", "num_samples", "seed")
        for name in (*of_arms, "data_root", "test_samples"):  # the last is what it always is here
            del shared[name]
        return {**shared, "seeds": self.seeds, "betas": list(self.betas)}


def run_study(config: StudyConfig, out: Path, *, show_progress: bool = False) -> dict[str, Any]:
    """Run what `out` does not hold yet; returns the content of its results.json.

    Files: study.json (the settings), runs/ARM-seedS.json and .npz (images) for each finished run,
    results.json (all of them, and what they are set beside).

    Raises:
        OutputError: `out` cannot be written, or holds a study of other settings.
        ConfigError, DataError, TrainingError: as `train`.
    """
    device = choose_device(config.base.device)
    precision = str(choose_precision(config.base.precision, device)).removeprefix("torch.")
    settings = {**config.as_dict(), "precision": precision, "device": str(device)}
    prepare_file(out / "study.json")
    dataset = load(config.base.data, config.base.data_root)
    measure = Measure(config.base, dataset, device, out / "features.pt")
    _claim(out, settings)
    todo = [run for run in config.runs() if not _is_finished(out, run)]
    with Progress(len(todo), "article", show=show_progress) as progress:
        for run in todo:
            progress.note(f"{run.arm}, seed {run.seed}")
            record, images = measure.run(run, _observation_steps(measure.steps))
            _check_finite(record, run)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **images)  # type: ignore[arg-type]
            write_atomically(_file(out, run).with_suffix(".npz"), buffer.getvalue())
            _write_json(_file(out, run), record)
            progress.advance()
    results = {
        "kind": KIND,
        "schema": SCHEMA,
        "config": settings,
        "environment": environment(device),
        "beside": measure.beside(),
        "runs": [read_json(_file(out, run)) for run in config.runs()],
    }
    _write_json(out / "results.json", results)
    return results


def _observation_steps(steps: int) -> frozenset[int]:
    spaced = np.geomspace(1, steps, OBSERVATIONS).round().astype(int)
    return frozenset({0, *spaced.tolist()})


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "study.json"
    if path.exists():
        held = read_json(path)
        different = [name for name in settings if held.get(name) != settings[name]]
        # More seeds are a continuation; everything else is another study.
        if [name for name in different if name != "seeds"]:
            said = ", ".join(f"{name} {held.get(name)!r}" for name in different)
            raise OutputError(f"out: {out} holds a study of other settings ({said})")
    prepare_file(out / "runs" / "any")
    _write_json(path, settings)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a study's file.

    Raises:
        OutputError: no file, or not one that a study wrote.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise OutputError(f"cannot read {path}: {reason}") from None
    if not isinstance(content, dict):
        raise OutputError(f"cannot read {path}: not a study's file")
    return content


def _is_finished(out: Path, run: TrainConfig) -> bool:
    return _file(out, run).exists() and _file(out, run).with_suffix(".npz").exists()


def _check_finite(record: dict[str, Any], run: TrainConfig) -> None:
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        raise TrainingError(
            f"{run.arm}, seed {run.seed}: a measured number is not finite; a smaller lr than "
            f"{run.lr} may help"
        ) from None


def _file(out: Path, run: TrainConfig) -> Path:
    return out / "runs" / f"{slug(run.arm)}-seed{run.seed}.json"


def slug(arm: str) -> str:
    """An arm's name as a part of file names."""
    return arm.replace("/", "_").replace("=", "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def images_of(out: Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """Image grids of a run by sampler, (count, 784) uint8 grey levels.

    Raises:
        OutputError: no such run, or an unreadable file.
    """
    path = out / "runs" / f"{slug(arm)}-seed{seed}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise OutputError(f"cannot read {path}: {error}") from None


def seeds_of(results: dict[str, Any], arm: str) -> Iterator[dict[str, Any]]:
    """The runs of an arm, by seed."""
    return (run for run in results["runs"] if run["arm"] == arm)


def arm_names(results: dict[str, Any]) -> Sequence[str]:
    return list(dict.fromkeys(run["arm"] for run in results["runs"]))
