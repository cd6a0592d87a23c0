"""What a run has reached, and how a checkpoint saves and restores it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..config import TrainConfig
from ..data import Dataset
from ..model import VAE, architecture
from ..richer.vae import build
from ..system.environment import environment
from ..system.errors import UserError, first_line, shown
from ..system.files import OutputError
from ..system.world import World
from .batches import Batches
from .checkpoint import Checkpoint, Keeping
from .phases import Phase


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass(eq=False)
class RunState:
    """How far the phases of a run are, its learning curve and its best weights so far."""

    config: TrainConfig  # every setting as run
    dataset: Dataset  # on the device
    vae: VAE  # the initial weights; later, those of the last validation pass, observation or resume
    batches: Batches  # of the training split
    phases: list[Phase]  # each for `steps` steps
    steps: int
    world: World  # who shares the batches
    keeping: Keeping | None  # where checkpoints go, if anywhere
    look_every: int  # epochs from one validation pass to the next; the last epoch always has one

    images: str = ""  # their fingerprint, if there are checkpoints
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_bound: float = -math.inf
    best_step: int = 0
    ended: int = 0  # the steps of all epochs that are over, their last validation included
    train_seconds: float = 0.0
    eval_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.keeping is not None:
            self.images = self.dataset.fingerprint()

    @property
    def done(self) -> int:
        """Steps, in all phases."""
        return sum(phase.done for phase in self.phases)

    def write(self, phase: Phase) -> None:
        """Copy the weights of the phase's engines into the model."""
        for engine in phase.engines:
            engine.write_to(self.vae)

    def not_finite(self, what: str) -> TrainingError:
        """The error to raise where `what` is not finite; it names the first such step."""
        phase = [phase for phase in self.phases if phase.done][-1]
        finite = min(engine.finite_steps() for engine in phase.engines)
        step = self.done - phase.done + min(finite + 1, phase.done)
        last = f"; {self.keeping.last()}" if self.keeping is not None else ""
        return TrainingError(
            f"the loss of {self.config.arm} is not finite at step {step} ({what}); "
            f"a smaller lr than {self.config.lr} may help{last}"
        )

    def checkpoint(self) -> Checkpoint:
        """All that the rest of the run depends on, except its images.

        Raises:
            TrainingError: the loss or a weight is not finite, so no run could continue from it.
        """
        engines = [[engine.state_dict() for engine in phase.engines] for phase in self.phases]
        weights = [w for phase in engines for state in phase for w in state["weights"].values()]
        finite = all(e.finite_steps() == phase.done for phase in self.phases for e in phase.engines)
        if not finite or not all(bool(w.isfinite().all()) for w in weights):
            raise self.not_finite("at a checkpoint")
        device = self.batches.images.device
        return Checkpoint(
            # Without the device's index: the run may continue on another device of this type.
            config=asdict(self.config) | {"device": device.type},
            environment=environment(device) | {"ranks": self.world.size},
            step=self.best_step,
            model={name: p.cpu() for name, p in (self.best or self.vae.state_dict()).items()},
            training={
                "done": self.done,
                "ended": self.ended,
                "engines": engines,
                "curve": self.curve,
                "best_bound": self.best_bound,
                "train_seconds": self.train_seconds,
                "eval_seconds": self.eval_seconds,
                "images": self.images,
            },
        )

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Bring a run that has not started to the state of a checkpoint.

        Raises:
            OutputError: it is of another run, or damaged, or of other images.
        """
        saved = checkpoint.training
        assert saved is not None
        try:
            same_images = saved["images"] == self.images
            if same_images:
                self._restore(checkpoint, saved)
        except (
            *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError),
        ) as error:
            raise OutputError(
                f"resume: the checkpoint is damaged, or another run's ({first_line(error)})"
            ) from None
        if not same_images:
            raise OutputError(
                f"resume: the images of {self.dataset.name} are not those that the run began with; "
                "name their folder with --data-root"
            )

    def _restore(self, checkpoint: Checkpoint, saved: dict[str, Any]) -> None:
        to_come = done = int(saved["done"])
        if not 0 <= checkpoint.step <= done <= self.steps * len(self.phases):
            raise ValueError(f"it is at step {shown(done)}")
        for phase, states in zip(self.phases, saved["engines"], strict=True):
            phase.done = min(to_come, self.steps)
            to_come -= phase.done
            for engine, state in zip(phase.engines, states, strict=True):
                engine.load_state_dict(state, phase.done)
            if phase.done:
                self.write(phase)
        self.ended = int(saved["ended"])
        if not done - self.batches.per_epoch <= self.ended <= done:
            raise ValueError(f"its last epoch ended at step {shown(self.ended)}")
        self.curve = [_checked_point(point) for point in saved["curve"]]
        self.best_bound, self.best_step = float(saved["best_bound"]), checkpoint.step
        self.train_seconds = float(saved["train_seconds"])
        self.eval_seconds = float(saved["eval_seconds"])
        numbers = (self.best_bound, self.train_seconds, self.eval_seconds)
        if not all(x < math.inf for x in numbers) or min(numbers[1:]) < 0:
            raise ValueError(f"its bound and seconds are {numbers}")
        if self.best_bound > -math.inf:
            device = self.batches.images.device
            self.best = {name: w.to(device) for name, w in checkpoint.model.items()}
            like = build(
                architecture(self.config.model, self.config.latent),
                self.config.posterior,
                self.config.prior,
            )
            like.load_state_dict(checkpoint.model)  # checks names and shapes


def _checked_point(point: dict[str, Any]) -> dict[str, Any]:
    """A point of a saved curve, which metrics.json will hold."""
    numbers = ("seconds", "elbo", "rate", "distortion")
    kinds = {"phase": str, "split": str, "step": int} | dict.fromkeys(numbers, float)
    if {name: type(value) for name, value in point.items()} != kinds:
        raise ValueError("a point of its curve is damaged")
    if not all(math.isfinite(point[name]) for name in numbers):
        raise ValueError("its curve is not finite")
    return point
