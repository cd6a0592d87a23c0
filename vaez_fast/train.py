"""Training a VAE and choosing its best state by the validation bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import noise_key

from .batches import Batches
from .config import ConfigError, TrainConfig, choose_device, choose_precision
from .data import Dataset, binarized, epoch_order, pixel_scale
from .evaluate import Evaluator, Metrics
from .model import VAE
from .progress import Progress
from .regime import Phase, phases

SHOW_EVERY = 64  # steps
EVALUATION_STEP = {"validation": 0, "test": 1}  # of the "evaluate" noise


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass
class Result:
    """What a run leaves: the best state and all that was measured."""

    vae: VAE  # the state with the best validation bound, float32
    best_step: int
    test: Metrics
    steps: int
    batch_size: int
    precision: str  # of the matrix products, as run
    device: str
    train_seconds: float  # the loop alone
    compile_seconds: float
    eval_seconds: float
    curve: list[dict[str, Any]] = field(default_factory=list)

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
        ConfigError: a batch larger than the training split.
    """
    size = len(dataset.train.images)
    if size < config.batch_size:
        raise ConfigError(
            f"batch_size must be at most {size}, the training images of {dataset.name}, "
            f"got {config.batch_size}"
        )
    return config.steps or size // config.batch_size * (config.epochs or 0)


Observe = Callable[[str, int, VAE], None]  # phase, steps done in it, the model as it stands


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    show_progress: bool = False,
    look_every: int = 1,
    observe: Observe | None = None,
    observe_at: Collection[int] = (),
) -> Result:
    """Run `config` on `dataset` from start to end.

    Where a bound on log p(x) is trained on, the state kept is the one with the best bound on the
    validation split of those that were looked at (the ELBO of one sample an image, the rate
    weighted by β; or the importance-weighted bound with training's samples); elsewhere the last.
    The test split is read once, after that choice. The same config on the same machine gives the
    same numbers to the last digit.

    Args:
        config: what to run; its length is that of each phase.
        dataset: the images.
        show_progress: draw a bar, if stderr is a terminal.
        look_every: epochs from one look at the validation split to the next; the last has one.
        observe: called after so many steps of each phase as `observe_at` lists (0: before them),
            with a model that it must not change; its time is not counted.

    Raises:
        ConfigError: a batch larger than the training split, or a device that is not here.
        TrainingError: the loss is not finite.
    """
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    precision = choose_precision(config.precision, device)
    steps = steps_of(config, dataset)
    dataset = dataset.to(device)

    clock = time.perf_counter()
    vae = VAE(config.model, config.seed).to(device)
    batches = Batches(
        binarized(dataset, "train", config.binarize, seed=config.seed), config.batch_size
    )
    plan = phases(
        config,
        vae,
        batches,
        steps=steps,
        precision=precision,
        pixel_scale=pixel_scale(config.binarize),
    )
    run = _Run(config, dataset, vae, batches, steps, look_every)
    run.look_at_validation()
    run.begin_epoch(0)  # its noise, too, is compiled at the first draw
    compile_seconds = time.perf_counter() - clock

    with Progress(steps * len(plan), "training", show=show_progress) as progress:
        for phase in plan:
            run.phase(phase, progress, observe, frozenset(observe_at))

    vae.load_state_dict(run.best)
    clock = time.perf_counter()
    test = _evaluator(config, dataset, "test")(vae, config.test_samples)
    return Result(
        vae=vae,
        best_step=run.best_step,
        test=test,
        steps=steps * len(plan),
        batch_size=config.batch_size,
        precision=str(precision).removeprefix("torch."),
        device=str(device),
        train_seconds=run.train_seconds,
        compile_seconds=compile_seconds,
        eval_seconds=run.eval_seconds + time.perf_counter() - clock,
        curve=run.curve,
    )


class _Run:
    """The loop over a phase's batches, and what it leaves: the curve, the best state, the times."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        vae: VAE,
        batches: Batches,
        steps: int,
        look_every: int,
    ) -> None:
        self.config, self.dataset, self.vae = config, dataset, vae
        self.batches, self.steps, self.look_every = batches, steps, look_every
        self._validate = _evaluator(config, dataset, "validation")
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_bound, self.best_step = -math.inf, 0
        self.done = 0  # steps, in all phases
        self.train_seconds = self.eval_seconds = 0.0

    def phase(
        self, phase: Phase, progress: Progress, observe: Observe | None, at: frozenset[int]
    ) -> None:
        per_epoch = self.batches.per_epoch
        if observe is not None and 0 in at:
            self._write(phase)
            observe(phase.name, 0, self.vae)
        epochs = -(-self.steps // per_epoch)
        for epoch in range(epochs):
            clock = time.perf_counter()
            self.begin_epoch(epoch)
            first = epoch * per_epoch
            last = min(first + per_epoch, self.steps)
            done = first
            for stop in _stops(first, last, at):
                phase.advance(stop - done)
                progress.advance(stop - done)
                done = stop
                if observe is not None and done in at:
                    self.train_seconds += time.perf_counter() - clock
                    self._write(phase)
                    observe(phase.name, done, self.vae)
                    clock = time.perf_counter()
            totals = [engine.take_totals(last - first) for engine in phase.engines]
            self.train_seconds += time.perf_counter() - clock
            self.done += last - first
            rate, distortion = (sum(values) for values in zip(*totals, strict=True))
            self._check_and_record(phase, rate, distortion)
            if (epoch + 1) % self.look_every == 0 or epoch + 1 == epochs:
                self._look(phase, progress)

    def begin_epoch(self, epoch: int) -> None:
        """Lay out the images of an epoch, in its order."""
        images, seed = self.batches.images, self.config.seed
        drawn = None
        if self.config.binarize == "dynamic":
            drawn = binarized(self.dataset, "train", "dynamic", seed=seed, epoch=epoch)
        self.batches.begin_epoch(epoch_order(seed, epoch, len(images), images.device), drawn)

    def _write(self, phase: Phase) -> None:
        for engine in phase.engines:
            engine.write_to(self.vae)

    def _check_and_record(self, phase: Phase, rate: float, distortion: float) -> None:
        self.curve.append(self._point(phase, "train", rate, distortion))
        if not math.isfinite(rate + distortion):
            raise TrainingError(
                f"the loss of {self.config.arm} is not finite by step {self.done} "
                f"(rate {rate}, distortion {distortion}); "
                f"a smaller lr than {self.config.lr} may help"
            )

    def _look(self, phase: Phase, progress: Progress) -> None:
        clock = time.perf_counter()
        self._write(phase)
        rate, distortion = self.look_at_validation()
        self.eval_seconds += time.perf_counter() - clock
        bound = -(self.config.beta * rate + distortion)
        if not math.isfinite(bound):
            raise TrainingError(
                f"the validation bound of {self.config.arm} is not finite after step {self.done}; "
                f"a smaller lr than {self.config.lr} may help"
            )
        self.curve.append(self._point(phase, "validation", rate, distortion))
        if bound > self.best_bound or self.config.decoder != "joint":
            self.best_bound, self.best_step = bound, self.done
            self.best = {name: p.detach().clone() for name, p in self.vae.state_dict().items()}
        progress.note(f"{self.config.arm}: held-out bound {-(rate + distortion):.2f}")

    def look_at_validation(self) -> tuple[float, float]:
        """Rate and distortion of the model as it stands, by the definition of its training's."""
        if self.config.objective != "iwae":
            held_out = self._validate(self.vae, 1)
            return held_out.rate, held_out.distortion
        held_out = self._validate(self.vae, self.config.num_samples)
        return -held_out.log_px - held_out.distortion, held_out.distortion

    def _point(self, phase: Phase, split: str, rate: float, distortion: float) -> dict[str, Any]:
        return {
            "phase": phase.name,
            "step": self.done,
            "seconds": self.train_seconds,
            "split": split,
            "elbo": -(rate + distortion),
            "rate": rate,
            "distortion": distortion,
        }


def _stops(first: int, last: int, at: frozenset[int]) -> list[int]:
    """Where the steps from `first` to `last` pause: to observe, and to show progress."""
    shown = range(first + SHOW_EVERY, last, SHOW_EVERY)
    return sorted({last, *shown, *(step for step in at if first < step < last)})


def _evaluator(config: TrainConfig, dataset: Dataset, split: str) -> Evaluator:
    pixels = binarized(dataset, split, config.binarize, seed=config.seed)
    noise = noise_key(config.seed, "evaluate", EVALUATION_STEP[split], device=pixels.device)
    return Evaluator(pixels, pixel_scale(config.binarize), noise, config.precision)
