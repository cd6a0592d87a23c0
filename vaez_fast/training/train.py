"""Trains a VAE and keeps the state with the best validation bound."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..config import ConfigError, TrainConfig, choose_device, choose_precision
from ..data import Dataset, Pixels
from ..measures.evaluate import Metrics, evaluator
from ..model import VAE, architecture
from ..richer.vae import build
from ..system.errors import is_out_of_memory
from ..system.progress import Progress, waiting
from ..system.world import ALONE, World
from .batches import Batches
from .checkpoint import Keeping
from .loop import Observe, Run, TrainingError
from .phases import phases

# The schedule of all steps is in memory, some 40 bytes per step.
MOST_STEPS = 10**8

__all__ = ["Observe", "Result", "TrainingError", "steps_of", "train"]


@dataclass
class Result:
    """The result of a run: the best state and all that was measured."""

    vae: VAE  # the state with the best validation bound, float32
    best_step: int
    test: Metrics
    steps: int
    batch_size: int
    precision: str  # of the matrix products, as run
    device: str
    train_seconds: float  # the steps alone
    compile_seconds: float
    eval_seconds: float
    curve: list[dict[str, Any]] = field(default_factory=list)
    ranks: int = 1

    def speed(self) -> dict[str, float]:
        return {
            "steps": self.steps,
            "train_seconds": self.train_seconds,
            "images_per_second": self.steps * self.batch_size / self.train_seconds,
            "compile_seconds": self.compile_seconds,
            "eval_seconds": self.eval_seconds,
        }


def steps_of(config: TrainConfig, dataset: Dataset) -> int:
    """The length of each phase of `config` on `dataset`.

    Raises:
        ConfigError: a batch larger than the training split, or more than 10⁸ steps.
    """
    size = len(dataset.train.images)
    if size < config.batch_size:
        raise ConfigError(
            f"batch_size must be at most {size}, the training images of {dataset.name}, "
            f"got {config.batch_size}"
        )
    per_epoch = size // config.batch_size
    steps = config.steps or per_epoch * (config.epochs or 0)
    if steps > MOST_STEPS:
        name, most = ("steps", MOST_STEPS) if config.steps else ("epochs", MOST_STEPS // per_epoch)
        raise ConfigError(f"{name} must be at most {most}, got {getattr(config, name)}")
    return steps


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    show_progress: bool = False,
    look_every: int = 1,
    observe: Observe | None = None,
    observe_at: Collection[int] = (),
    world: World = ALONE,
    keeping: Keeping | None = None,
) -> Result:
    """Run `config` on `dataset` from the start or from a checkpoint to the end.

    If a bound on log p(x) is trained, the state kept is the one with the best bound among the
    validation passes: the ELBO of one sample per image with the rate weighted by β, or the
    importance-weighted bound with training's number of samples. Otherwise the last state is kept.
    The test split is read once, after that choice. The same config on the same machine gives the
    same numbers to the last digit, however often the run was stopped and resumed. Another number
    of ranks uses the same noise, but sums over a batch in another order.

    Args:
        config: what to run; its length is that of each phase.
        dataset: the images.
        show_progress: draw a bar, if stderr is a terminal.
        look_every: epochs from one validation pass to the next; the last epoch always has one.
        observe: called in each phase after the numbers of steps in `observe_at` (0: before the
            first), with a model that it must not change; its time is not counted.
        world: the ranks that share the run; all must call, and each gets the result.
        keeping: where checkpoints go and which one to resume; without it nothing is written.

    Raises:
        ConfigError: a batch is larger than the training split or has fewer rows than there are
            ranks, or the device is not here.
        TrainingError: the loss is not finite, memory ran out, or another rank is gone.
        OutputError: a checkpoint cannot be written, or belongs to another run.
        Stopped: a signal that `keeping` handles; the checkpoint is written.
    """
    device = choose_device(config.device)
    if device.index is not None:  # "cuda" alone is the current one, and set_device refuses it
        torch.cuda.set_device(device)
    precision = choose_precision(config.precision, device)
    config = replace(config, precision=str(precision).removeprefix("torch."), device=str(device))
    steps = steps_of(config, dataset)
    if config.batch_size < world.size:
        raise ConfigError(
            f"batch_size must be at least {world.size}, a row for each rank, "
            f"got {config.batch_size}"
        )
    if config.free_bits > 0 and world.size > 1:
        raise ConfigError(
            "free_bits needs a single process: its maximum is of the mean over the whole batch"
        )
    with _memory_suffices(config):
        clock = time.perf_counter()
        show = show_progress and world.rank == 0
        with waiting("compiling", show=show):
            dataset = dataset.to(config.device)
            shape = architecture(config.model, config.latent)
            vae = build(shape, config.posterior, config.prior, config.seed)
            vae = vae.to(config.device)
            pixels = Pixels(dataset, config.binarize, config.seed)
            batches = Batches(pixels.train(), config.batch_size, world)
            plan = phases(
                config,
                vae,
                batches,
                steps=steps,
                precision=getattr(torch, config.precision),
                pixel_scale=pixels.scale,
            )
            run = Run(config, dataset, vae, batches, plan, steps, world, keeping, look_every)
            run.validate()
            run.begin_epoch(0)  # compiles the noise of the order and of the pixels
            if keeping is not None and keeping.resumed is not None:
                run.go_on_from(keeping.resumed)
        compile_seconds = time.perf_counter() - clock

        with Progress(steps * len(plan), "training", show=show) as progress:
            run.train(progress, observe, frozenset(observe_at))

        vae.load_state_dict(run.best)
        clock = time.perf_counter()
        test = evaluator(config, dataset, "test", world)(vae, config.test_samples)
        if not all(math.isfinite(number) for number in test.as_dict().values()):
            last = f"; {keeping.last()}" if keeping is not None else ""
            raise TrainingError(
                f"{config.arm}: the test split's bound is not finite after step {run.done}; a "
                f"smaller lr than {config.lr} may help{last}"
            )
    return Result(
        vae=vae,
        best_step=run.best_step,
        test=test,
        steps=steps * len(plan),
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        train_seconds=run.train_seconds,
        compile_seconds=compile_seconds,
        eval_seconds=run.eval_seconds + time.perf_counter() - clock,
        curve=run.curve,
        ranks=world.size,
    )


@contextmanager
def _memory_suffices(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = str(error).strip().splitlines()[0] if str(error).strip() else "MemoryError"
        raise TrainingError(
            f"out of memory with batch_size {config.batch_size}, num_samples {config.num_samples} "
            f"and model {config.model!r}: a lower one of the first two, or a smaller model, needs "
            f"less ({asked})"
        ) from None
