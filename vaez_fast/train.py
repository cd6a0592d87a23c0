"""Training a VAE and choosing its best state by validation ELBO."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import noise_key

from .config import ConfigError, TrainConfig, choose_device, choose_precision
from .data import Dataset, binarized, epoch_order, pixel_scale
from .engine import Engine
from .evaluate import Evaluator, Metrics
from .model import VAE
from .objective import NegativeElbo
from .progress import Progress

LOG_PX_SAMPLES = 128
EVALUATION_STEP = {"validation": 0, "test": 1}  # of the "evaluate" noise


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass
class Result:
    """What a run leaves: the best state and all that was measured."""

    vae: VAE  # the state with the best validation ELBO, float32
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


def train(config: TrainConfig, dataset: Dataset, *, show_progress: bool = False) -> Result:
    """Run `config` on `dataset` from start to end.

    The state kept is the one with the best validation ELBO (one sample an image), looked at after
    every epoch; the test split is read once, after that choice. The same config on the same machine
    gives the same numbers to the last digit.

    Raises:
        ConfigError: a batch larger than the training split, or a device that is not here.
        TrainingError: the loss is not finite.
    """
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    precision = choose_precision(config.precision, device)
    dataset = dataset.to(device)
    size = len(dataset.train.images)
    steps_per_epoch = size // config.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"batch_size must be at most {size}, the training images of {dataset.name}, "
            f"got {config.batch_size}"
        )
    images = binarized(dataset, "train", config.binarize, seed=config.seed)
    steps = config.steps or steps_per_epoch * (config.epochs or 0)

    clock = time.perf_counter()
    vae = VAE(config.model, config.seed).to(device)
    engine = Engine(
        NegativeElbo(vae, config.kl),
        steps=steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
        precision=precision,
        pixel_scale=pixel_scale(config.binarize),
        device=device,
    )
    validate = _evaluator(config, dataset, "validation")
    validate(vae, 1)
    epoch_order(config.seed, 0, size, device)  # its noise, too, is compiled at the first draw
    compile_seconds = time.perf_counter() - clock

    curve: list[dict[str, Any]] = []
    best_elbo, best_step = -math.inf, 0
    best: dict[str, Tensor] = {}
    train_seconds = eval_seconds = 0.0
    done = 0
    with Progress(steps, "training", show=show_progress) as progress:
        for epoch in range(-(-steps // steps_per_epoch)):
            batches = min(steps_per_epoch, steps - done)
            clock = time.perf_counter()
            if config.binarize == "dynamic" and epoch > 0:
                images = binarized(dataset, "train", config.binarize, seed=config.seed, epoch=epoch)
            order = epoch_order(config.seed, epoch, len(images), device)
            _run_epoch(engine, images, order, batches, progress)
            rate, distortion = engine.take_totals(batches)
            train_seconds += time.perf_counter() - clock
            done += batches

            curve.append(_point(done, train_seconds, "train", rate, distortion))
            if not math.isfinite(rate + distortion):
                raise TrainingError(
                    f"the loss of {config.arm} is not finite by step {done} "
                    f"(rate {rate}, distortion {distortion}); "
                    f"a smaller lr than {config.lr} may help"
                )
            clock = time.perf_counter()
            engine.write_to(vae)
            held_out = validate(vae, 1)
            eval_seconds += time.perf_counter() - clock
            if not math.isfinite(held_out.elbo):
                raise TrainingError(
                    f"the validation ELBO of {config.arm} is not finite after step {done}; "
                    f"a smaller lr than {config.lr} may help"
                )
            point = _point(done, train_seconds, "validation", held_out.rate, held_out.distortion)
            curve.append(point)
            if held_out.elbo > best_elbo:
                best_elbo, best_step = held_out.elbo, done
                best = {name: p.detach().clone() for name, p in vae.state_dict().items()}
            progress.note(f"ELBO train {-(rate + distortion):.2f} validation {held_out.elbo:.2f}")

    vae.load_state_dict(best)
    clock = time.perf_counter()
    test = _evaluator(config, dataset, "test")(vae, LOG_PX_SAMPLES)
    eval_seconds += time.perf_counter() - clock
    return Result(
        vae=vae,
        best_step=best_step,
        test=test,
        steps=steps,
        batch_size=config.batch_size,
        precision=str(precision).removeprefix("torch."),
        device=str(device),
        train_seconds=train_seconds,
        compile_seconds=compile_seconds,
        eval_seconds=eval_seconds,
        curve=curve,
    )


def _run_epoch(
    engine: Engine, images: Tensor, order: Tensor, batches: int, progress: Progress
) -> None:
    size = engine.batch_size
    for batch in range(batches):
        rows = order[batch * size : (batch + 1) * size]
        engine.step(images.index_select(0, rows))
        progress.advance()


def _evaluator(config: TrainConfig, dataset: Dataset, split: str) -> Evaluator:
    pixels = binarized(dataset, split, config.binarize, seed=config.seed)
    noise = noise_key(config.seed, "evaluate", EVALUATION_STEP[split], device=pixels.device)
    return Evaluator(pixels, pixel_scale(config.binarize), noise)


def _point(step: int, seconds: float, split: str, rate: float, distortion: float) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "split": split,
        "elbo": -(rate + distortion),
        "rate": rate,
        "distortion": distortion,
    }
