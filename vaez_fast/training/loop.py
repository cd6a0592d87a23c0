"""A run's loop: steps, epochs, validation passes, checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch

from ..data import Pixels, epoch_order
from ..measures.evaluate import evaluator
from ..model import VAE
from ..system.cores import SharedCores
from ..system.progress import Progress
from ..system.stopping import Stopped
from ..system.world import RankError, is_rank_failure, loss_of
from .phases import STEPS_PER_REPLAY, Phase
from .state import RunState
from .state import TrainingError as TrainingError

SHOW_EVERY = 64  # steps

Observe = Callable[[str, int, VAE], None]  # phase, steps done in it, the current model


class Run(RunState):
    """The loop over the batches of all phases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._evaluate = evaluator(self.config, self.dataset, "validation", self.world)
        self._clock = time.perf_counter()
        self._cores = SharedCores()

    def train(self, progress: Progress, observe: Observe | None, at: frozenset[int]) -> None:
        """Train from the current step to the end of the last phase, and write a last checkpoint.

        Raises:
            TrainingError: the loss is not finite, or this rank is the first to find another gone.
            RankError: another rank has reported a loss or the end of a rank.
            Stopped: a signal came; the checkpoint has the step that was done then.
        """
        progress.advance(self.done)
        if self.keeping is not None:
            self.keeping.signals.hold()
        with closing(self._cores), self._kept_if_a_rank_fails():
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
        # If a rank died during the last validation of an epoch, the checkpoint has all steps of
        # that epoch, but the epoch is not marked as ended.
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
                steps = phase.advance(pause - phase.done, self._told_to_stop)
                progress.advance(steps)
                if self.batches.images.device.type == "cpu":
                    self._cores.done(steps)
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
        curve = [self.point(phase, "train", rate, distortion)]
        if (epoch + 1) % self.look_every == 0 or phase.done == self.steps:
            curve.append(self._validation_pass(phase))
            progress.note(f"{self.config.arm}: held-out bound {curve[1]['elbo']:.2f}")
        # Totals are cleared last: if a rank dies before this, the end of the epoch is repeated.
        for engine in phase.engines:
            engine.clear_totals()
        self.curve += curve
        self._clock = time.perf_counter()

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """A block whose time does not count as training; first waits for the device."""
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
            drawn = Pixels(self.dataset, "dynamic", seed).train(epoch)
        self.batches.begin_epoch(epoch_order(seed, epoch, len(images), images.device), drawn)

    def _validation_pass(self, phase: Phase) -> dict[str, Any]:
        clock = time.perf_counter()
        self.write(phase)
        rate, distortion = self.validate()
        self.eval_seconds += time.perf_counter() - clock
        bound = -(self.config.beta * rate + distortion)
        if not math.isfinite(bound):
            raise self.not_finite(f"validation bound {bound}")
        if bound > self.best_bound or self.config.decoder != "joint":
            self.best_bound, self.best_step = bound, self.done
            self.best = {name: p.detach().clone() for name, p in self.vae.state_dict().items()}
        return self.point(phase, "validation", rate, distortion)

    def validate(self) -> tuple[float, float]:
        """Rate and distortion of the model on the validation split, defined as in training."""
        if self.config.objective != "iwae":
            held_out = self._evaluate(self.vae, 1)
            return held_out.rate, held_out.distortion
        held_out = self._evaluate(self.vae, self.config.num_samples)
        return -held_out.log_px - held_out.distortion, held_out.distortion

    def point(self, phase: Phase, split: str, rate: float, distortion: float) -> dict[str, Any]:
        return {
            "phase": phase.name,
            "step": self.done,
            "seconds": self.train_seconds,
            "split": split,
            "elbo": -(rate + distortion),
            "rate": rate,
            "distortion": distortion,
        }

    def _told_to_stop(self) -> bool:
        # Several ranks agree on it at a pause instead.
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
            self.world.wait()  # for the checkpoint: the message of any rank may name it
            raise Stopped(self._signal() or signal.SIGTERM)

    def _keep(self) -> None:
        """Write a checkpoint; one rank is enough, because all are in the same state."""
        if self.keeping is not None and self.world.rank == 0:
            self.keeping.keep(self.checkpoint())

    @contextmanager
    def _kept_if_a_rank_fails(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_rank_failure(error):
                raise
            # Any survivor writes the checkpoint, because the first rank may be the one that died.
            if not self.world.first_to_speak():
                raise RankError(loss_of(error)) from None
            last = ""
            if self.keeping is not None:
                # On CUDA steps that the host has counted may still fail on the device.
                torn = any(phase.torn for phase in self.phases)
                if not torn and self.batches.images.device.type == "cpu":
                    self.keeping.keep(self.checkpoint())
                last = f"; {self.keeping.last()}"
            raise TrainingError(f"{loss_of(error)} after step {self.done}{last}") from None
