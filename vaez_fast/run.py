"""A run's loop: steps, epochs, looks at the validation split, checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from vaez_kernels import noise_key

from .batches import Batches
from .checkpoint import Checkpoint, Keeping
from .config import TrainConfig
from .data import Dataset, binarized, epoch_order, pixel_scale
from .environment import environment
from .evaluate import Evaluator
from .files import OutputError
from .model import VAE
from .progress import Progress
from .regime import STEPS_PER_REPLAY, Phase
from .stopping import Stopped
from .world import World, is_rank_failure

SHOW_EVERY = 64  # steps
EVALUATION_STEP = {"validation": 0, "test": 1}  # of the "evaluate" noise

Observe = Callable[[str, int, VAE], None]  # phase, steps done in it, the model as it stands


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class Run:
    """The loop over the batches of all phases, and what it leaves: the curve, the best state.

    Args:
        config: every setting as run.
        dataset: on the device.
        vae: the initial weights; then, at each look, those of that moment.
        batches: of the training split.
        phases: what is stepped, each for `steps` steps.
        world: who shares the batches.
        keeping: where checkpoints go, if anywhere.
        look_every: epochs from one look at the validation split to the next; the last has one.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        vae: VAE,
        batches: Batches,
        phases: list[Phase],
        steps: int,
        world: World,
        keeping: Keeping | None,
        look_every: int,
    ) -> None:
        self.config, self.dataset, self.vae = config, dataset, vae
        self.batches, self.phases, self.steps = batches, phases, steps
        self.world, self.keeping, self.look_every = world, keeping, look_every
        self._validate = evaluator(config, dataset, "validation", world)
        self._images = dataset.fingerprint() if keeping is not None else ""
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_bound, self.best_step = -math.inf, 0
        self.train_seconds = self.eval_seconds = 0.0

    @property
    def done(self) -> int:
        """Steps, in all phases."""
        return sum(phase.done for phase in self.phases)

    def train(self, progress: Progress, observe: Observe | None, at: frozenset[int]) -> None:
        """From where the run is to the end of its last phase; a last checkpoint is of that end.

        Raises:
            TrainingError: the loss is not finite, or another rank is gone.
            Stopped: a signal came; the checkpoint is of the step that was done then.
        """
        progress.advance(self.done)
        if self.keeping is not None:
            self.keeping.signals.hold()
        with self._kept_if_a_rank_fails():
            for phase in self.phases:
                if phase.done < self.steps:
                    self._phase(phase, progress, observe, at)
            self._keep()
        if self.keeping is not None:
            self.keeping.signals.release()

    def _phase(
        self, phase: Phase, progress: Progress, observe: Observe | None, at: frozenset[int]
    ) -> None:
        per_epoch = self.batches.per_epoch
        if observe is not None and 0 in at:
            self._write(phase)
            observe(phase.name, 0, self.vae)
        epochs = -(-self.steps // per_epoch)
        for epoch in range(phase.done // per_epoch, epochs):
            first = epoch * per_epoch
            last = min(first + per_epoch, self.steps)
            clock = time.perf_counter()
            self.begin_epoch(epoch)
            for pause in self._pauses(first, last, at):
                if pause <= phase.done:
                    continue  # it was before the checkpoint
                progress.advance(phase.advance(pause - phase.done, self._told_to_stop))
                self.train_seconds += time.perf_counter() - clock
                if observe is not None and phase.done in at:
                    self._write(phase)
                    observe(phase.name, phase.done, self.vae)
                if phase.done < last:
                    self._keep_or_stop()
                clock = time.perf_counter()
            totals = [engine.take_totals(last - first) for engine in phase.engines]
            self.train_seconds += time.perf_counter() - clock
            rate, distortion = (sum(values) for values in zip(*totals, strict=True))
            self.curve.append(self._point(phase, "train", rate, distortion))
            if not math.isfinite(rate + distortion):
                raise self._not_finite(f"rate {rate}, distortion {distortion}")
            if (epoch + 1) % self.look_every == 0 or epoch + 1 == epochs:
                self._look(phase, progress)
            self._keep_or_stop()

    def _pauses(self, first: int, last: int, at: frozenset[int]) -> list[int]:
        """Where an epoch's steps pause: to observe, to keep, to show progress, and at its end."""
        # Ranks agree at a pause whether to stop, and torchrun waits 30 s before it kills them.
        every = SHOW_EVERY if self.world.size == 1 else STEPS_PER_REPLAY
        observed = (step for step in at if first < step < last)
        return sorted({last, *range(first + every, last, every), *observed})

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

    def _look(self, phase: Phase, progress: Progress) -> None:
        clock = time.perf_counter()
        self._write(phase)
        rate, distortion = self.look_at_validation()
        self.eval_seconds += time.perf_counter() - clock
        bound = -(self.config.beta * rate + distortion)
        if not math.isfinite(bound):
            raise self._not_finite(f"validation bound {bound}")
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

    def _not_finite(self, what: str) -> TrainingError:
        phase = [phase for phase in self.phases if phase.done][-1]
        finite = min(engine.finite_steps() for engine in phase.engines)
        step = self.done - phase.done + min(finite + 1, phase.done)
        last = f"; {self.keeping.last()}" if self.keeping is not None else ""
        return TrainingError(
            f"the loss of {self.config.arm} is not finite at step {step} ({what}); "
            f"a smaller lr than {self.config.lr} may help{last}"
        )

    def _told_to_stop(self) -> bool:
        # several ranks agree on it at a pause
        return self.keeping is not None and self.world.size == 1 and self._signal() > 0

    def _signal(self) -> int:
        return self.keeping.signals.received if self.keeping is not None else 0

    def _keep_or_stop(self) -> None:
        if self.keeping is None:
            return
        stopped = self.world.any(self._signal() > 0, self.batches.images.device)
        if stopped or self.keeping.due():
            self._keep()
        if stopped:
            raise Stopped(self._signal() or signal.SIGTERM)

    def _keep(self) -> None:
        """Write a checkpoint; one rank is enough, for all are in the same state."""
        if self.keeping is not None and self.world.rank == 0:
            self.keeping.keep(self._checkpoint())

    @contextmanager
    def _kept_if_a_rank_fails(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_rank_failure(error):
                raise
            # Any survivor will do: nobody knows whether the first rank is one.
            torn = any(phase.torn for phase in self.phases)
            if self.keeping is not None and not torn and self.world.first_to("keep"):
                self.keeping.keep(self._checkpoint())
            last = f"; {self.keeping.last()}" if self.keeping is not None else ""
            raise TrainingError(f"another rank is gone after step {self.done}{last}") from None

    def _checkpoint(self) -> Checkpoint:
        training = self.state_dict()
        weights = [w for of in training["engines"] for s in of for w in s["weights"].values()]
        if not all(bool(w.isfinite().all()) for w in weights):
            raise self._not_finite("its weights")
        model = self.best or {name: p.cpu() for name, p in self.vae.state_dict().items()}
        where = environment(self.batches.images.device) | {"ranks": self.world.size}
        return Checkpoint(asdict(self.config), where, self.best_step, model, training)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, but for its settings and images."""
        return {
            "done": self.done,
            "engines": [[e.state_dict() for e in phase.engines] for phase in self.phases],
            "curve": self.curve,
            "best_bound": self.best_bound,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "images": self._images,
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            OutputError: it is of another run, or damaged, or of other images.
        """
        saved = checkpoint.training
        assert saved is not None
        try:
            if saved["images"] != self._images:
                raise OutputError(
                    f"resume: the images of {self.dataset.name} are not those that the run began "
                    "with; name their folder with --data-root"
                )
            to_come = int(saved["done"])
            if not 0 <= to_come <= self.steps * len(self.phases):
                raise ValueError(f"it is at step {to_come}")
            for phase, states in zip(self.phases, saved["engines"], strict=True):
                phase.done = min(to_come, self.steps)
                to_come -= phase.done
                for engine, state in zip(phase.engines, states, strict=True):
                    engine.load_state_dict(state, phase.done)
                if phase.done:
                    self._write(phase)
            self.curve = list(saved["curve"])
            self.best_bound, self.best_step = float(saved["best_bound"]), checkpoint.step
            self.train_seconds = float(saved["train_seconds"])
            self.eval_seconds = float(saved["eval_seconds"])
            if self.best_bound > -math.inf:
                device = self.batches.images.device
                self.best = {name: w.to(device) for name, w in checkpoint.model.items()}
                VAE(self.config.model).load_state_dict(checkpoint.model)  # or it is no such model
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"resume: the checkpoint is damaged, or another run's ({_first_line(error)})"
            ) from None


def evaluator(config: TrainConfig, dataset: Dataset, split: str, world: World) -> Evaluator:
    """What measures a run's model on a split, from the noise that belongs to it."""
    pixels = binarized(dataset, split, config.binarize, seed=config.seed)
    noise = noise_key(config.seed, "evaluate", EVALUATION_STEP[split], device=pixels.device)
    return Evaluator(pixels, pixel_scale(config.binarize), noise, config.precision, world)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
