"""What a run saves of itself, and how it goes on from that."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..model import VAE
from ..system.environment import environment
from ..system.errors import first_line, shown
from ..system.files import OutputError
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .loop import Run


def checkpoint_of(run: Run) -> Checkpoint:
    """All that the rest of the run depends on, but for its images.

    Raises:
        TrainingError: the loss or a weight is not finite: no state to go on from.
    """
    engines = [[engine.state_dict() for engine in phase.engines] for phase in run.phases]
    weights = [w for phase in engines for state in phase for w in state["weights"].values()]
    finite = all(e.finite_steps() == phase.done for phase in run.phases for e in phase.engines)
    if not finite or not all(bool(w.isfinite().all()) for w in weights):
        raise run.not_finite("at a checkpoint")
    device = run.batches.images.device
    return Checkpoint(
        # Which of several devices of a kind it was is not the run's, nor the next machine's.
        config=asdict(run.config) | {"device": device.type},
        environment=environment(device) | {"ranks": run.world.size},
        step=run.best_step,
        model={name: p.cpu() for name, p in (run.best or run.vae.state_dict()).items()},
        training={
            "done": run.done,
            "ended": run.ended,
            "engines": engines,
            "curve": run.curve,
            "best_bound": run.best_bound,
            "train_seconds": run.train_seconds,
            "eval_seconds": run.eval_seconds,
            "images": run.images,
        },
    )


def go_on_from(run: Run, checkpoint: Checkpoint) -> None:
    """Bring a run that is at its start to where the checkpoint's was.

    Raises:
        OutputError: it is of another run, or damaged, or of other images.
    """
    saved = checkpoint.training
    assert saved is not None
    try:
        same_images = saved["images"] == run.images
        if same_images:
            _restore(run, checkpoint, saved)
    except (
        *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError),
    ) as error:
        raise OutputError(
            f"resume: the checkpoint is damaged, or another run's ({first_line(error)})"
        ) from None
    if not same_images:
        raise OutputError(
            f"resume: the images of {run.dataset.name} are not those that the run began with; "
            "name their folder with --data-root"
        )


def _restore(run: Run, checkpoint: Checkpoint, saved: dict[str, Any]) -> None:
    to_come = done = int(saved["done"])
    if not 0 <= checkpoint.step <= done <= run.steps * len(run.phases):
        raise ValueError(f"it is at step {shown(done)}")
    for phase, states in zip(run.phases, saved["engines"], strict=True):
        phase.done = min(to_come, run.steps)
        to_come -= phase.done
        for engine, state in zip(phase.engines, states, strict=True):
            engine.load_state_dict(state, phase.done)
        if phase.done:
            run.write(phase)
    run.ended = int(saved["ended"])
    if not done - run.batches.per_epoch <= run.ended <= done:
        raise ValueError(f"its last epoch ended at step {shown(run.ended)}")
    run.curve = [_checked_point(point) for point in saved["curve"]]
    run.best_bound, run.best_step = float(saved["best_bound"]), checkpoint.step
    run.train_seconds = float(saved["train_seconds"])
    run.eval_seconds = float(saved["eval_seconds"])
    numbers = (run.best_bound, run.train_seconds, run.eval_seconds)
    if not all(x < math.inf for x in numbers) or min(numbers[1:]) < 0:
        raise ValueError(f"its bound and seconds are {numbers}")
    if run.best_bound > -math.inf:
        device = run.batches.images.device
        run.best = {name: w.to(device) for name, w in checkpoint.model.items()}
        VAE(run.config.model).load_state_dict(checkpoint.model)  # or it is no such model


def _checked_point(point: dict[str, Any]) -> dict[str, Any]:
    """A point of a saved curve, which metrics.json will hold."""
    numbers = ("seconds", "elbo", "rate", "distortion")
    kinds = {"phase": str, "split": str, "step": int} | dict.fromkeys(numbers, float)
    if {name: type(value) for name, value in point.items()} != kinds:
        raise ValueError("its curve is not one of bounds")
    if not all(math.isfinite(point[name]) for name in numbers):
        raise ValueError("its curve is not finite")
    return point
