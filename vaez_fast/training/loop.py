"""A run's loop: steps, epochs, looks at the validation split, checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import noise_key

from ..config import TrainConfig
from ..data import Dataset, binarized, epoch_order, pixel_scale
from ..measures.evaluate import Evaluator
from ..model import VAE
from ..system.progress import Progress
from ..system.stopping import Stopped
from ..system.world import RankError, World, is_rank_failure, loss_of
from .batches import Batches
from .checkpoint import Keeping
from .phases import STEPS_PER_REPLAY, Phase
from .resume import checkpoint_of

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
        self.images = dataset.fingerprint() if keeping is not None else ""
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_bound, self.best_step = -math.inf, 0
        self.ended = 0  # the steps of all epochs that are over, with their last look
        self.train_seconds = self.eval_seconds = 0.0
        self._clock = time.perf_counter()

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
            for index, phase in enumerate(self.phases):
                self._phase(phase, index * self.steps, progress, observe, at)
            self._keep()
        if self.keeping is not None:
            self.keeping.signals.release()

    def _phase(
        self,
        phase: Phase,
        before: int,
        progress: Progress,
        observe: Observe | None,
        at: frozenset[int],
    ) -> None:
        # `before`: the steps of the phases before this one
        per_epoch = self.batches.per_epoch
        if observe is not None and 0 in at and phase.done == 0:
            self.write(phase)
            observe(phase.name, 0, self.vae)
        epochs = -(-self.steps // per_epoch)
        # A rank that was lost in an epoch's last look left all of its steps done, and it not ended.
        for epoch in range(max(0, self.ended - before) // per_epoch, epochs):
            first = epoch * per_epoch
            last = min(first + per_epoch, self.steps)
            if self.ended >= before + last:
                continue
            self._clock = time.perf_counter()
            self.begin_epoch(epoch)
            for pause in self._pauses(first, last, at):
                if pause <= phase.done:
                    continue  # it was before the checkpoint
                progress.advance(phase.advance(pause - phase.done, self._told_to_stop))
                if observe is not None and phase.done in at:
                    with self._off_the_clock():
                        self.write(phase)
                        observe(phase.name, phase.done, self.vae)
                if phase.done < last:
                    self._keep_or_stop()
            self._end_epoch(phase, epoch, last - first, progress)
            self.ended = before + last
            self._keep_or_stop()

    def _end_epoch(self, phase: Phase, epoch: int, steps: int, progress: Progress) -> None:
        totals = [engine.read_totals(steps) for engine in phase.engines]  # waits for the device
        self.train_seconds += time.perf_counter() - self._clock
        rate, distortion = (sum(values) for values in zip(*totals, strict=True))
        if not math.isfinite(rate + distortion):
            raise self.not_finite(f"rate {rate}, distortion {distortion}")
        curve = [self._point(phase, "train", rate, distortion)]
        if (epoch + 1) % self.look_every == 0 or phase.done == self.steps:
            curve.append(self._look(phase))
            progress.note(f"{self.config.arm}: held-out bound {curve[1]['elbo']:.2f}")
        # Only now: another rank may be lost until here, and the epoch's end must then come again.
        for engine in phase.engines:
            engine.clear_totals()
        self.curve += curve
        self._clock = time.perf_counter()

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """The block whose time is not training's; the device is waited for before it."""
        if self.batches.images.device.type == "cuda":
            torch.cuda.synchronize()
        self.train_seconds += time.perf_counter() - self._clock
        yield
        self._clock = time.perf_counter()

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

    def write(self, phase: Phase) -> None:
        """Bring the model to where the phase's engines are."""
        for engine in phase.engines:
            engine.write_to(self.vae)

    def _look(self, phase: Phase) -> dict[str, Any]:
        clock = time.perf_counter()
        self.write(phase)
        rate, distortion = self.look_at_validation()
        self.eval_seconds += time.perf_counter() - clock
        bound = -(self.config.beta * rate + distortion)
        if not math.isfinite(bound):
            raise self.not_finite(f"validation bound {bound}")
        if bound > self.best_bound or self.config.decoder != "joint":
            self.best_bound, self.best_step = bound, self.done
            self.best = {name: p.detach().clone() for name, p in self.vae.state_dict().items()}
        return self._point(phase, "validation", rate, distortion)

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

    def not_finite(self, what: str) -> TrainingError:
        """What to raise where `what` is not finite: the first step of it, and what is left."""
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
        stopped = self.world.any(self._signal() > 0)
        if stopped or (self.world.rank == 0 and self.keeping.due()):
            with self._off_the_clock():
                self._keep()
        if stopped:
            self.world.wait()  # for the checkpoint, of which any rank may then speak
            raise Stopped(self._signal() or signal.SIGTERM)

    def _keep(self) -> None:
        """Write a checkpoint; one rank is enough, for all are in the same state."""
        if self.keeping is not None and self.world.rank == 0:
            self.keeping.keep(checkpoint_of(self))

    @contextmanager
    def _kept_if_a_rank_fails(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_rank_failure(error):
                raise
            # Any survivor will do: nobody knows whether the first rank is one.
            if not self.world.first_to_speak():
                raise RankError(loss_of(error)) from None
            last = ""
            if self.keeping is not None:
                # On CUDA the host is ahead of the device, where sums may have failed since.
                torn = any(phase.torn for phase in self.phases)
                if not torn and self.batches.images.device.type == "cpu":
                    self.keeping.keep(checkpoint_of(self))
                last = f"; {self.keeping.last()}"
            raise TrainingError(f"{loss_of(error)} after step {self.done}{last}") from None


def evaluator(config: TrainConfig, dataset: Dataset, split: str, world: World) -> Evaluator:
    """What measures a run's model on a split, from the noise that belongs to it."""
    pixels = binarized(dataset, split, config.binarize, seed=config.seed)
    noise = noise_key(config.seed, "evaluate", EVALUATION_STEP[split], device=pixels.device)
    return Evaluator(pixels, pixel_scale(config.binarize), noise, config.precision, world)
