"""A training step and its captured graph, counted in a process that runs on the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.rehearsal import stand_in
from tests.rehearsal.ops import host_us
from tests.rehearsal.stand_in import Counts
from vaez_fast.model import VAE
from vaez_fast.objective import ImportanceWeightedBound, NegativeElbo, Objective
from vaez_fast.training.batches import Batches
from vaez_fast.training.engine import Engine
from vaez_fast.training.optimizer import Adam, constant
from vaez_fast.training.phases import STEPS_PER_REPLAY, Phase

OBJECTIVES: dict[str, Callable[[VAE], Objective]] = {
    "ELBO, analytic KL": lambda vae: NegativeElbo(vae, "analytic"),
    "ELBO, 4 samples": lambda vae: NegativeElbo(vae, "total-derivative", 1.0, 4),
    "IWAE, 50 samples": lambda vae: ImportanceWeightedBound(vae, "total-derivative", 50),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Step:
    """Counts of one step, of the capture of a replay's steps, and of one replay."""

    one: Counts
    capture: Counts
    replay: Counts
    host_us: float  # of a step launched kernel by kernel
    replay_host_us: float  # of a replayed step, on a device that takes no time


def _engine(objective: Callable[[VAE], Objective], precision: torch.dtype) -> Engine:
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand((1024, 784), generator=generator) < 0.2).to(torch.uint8)
    return Engine(
        objective(VAE("altosaar", 3).cuda()),
        Batches(pixels.cuda(), 128),
        Adam(),
        constant(1e-3, 10_000),
        seed=3,
        precision=precision,
        pixel_scale=1.0,
    )


def rehearse_step(objective: str, precision: str) -> Step:
    """Compiles the altosaar VAE with batches of 128, steps once, captures, and replays."""
    engine = _engine(OBJECTIVES[objective], PRECISIONS[precision])
    phase = Phase("vae", [engine])
    with stand_in.counting() as one:
        engine.step()
    with stand_in.counting() as capture:
        phase.advance(STEPS_PER_REPLAY)
    with stand_in.counting() as replay:
        phase.advance(STEPS_PER_REPLAY)
    stand_in.set_duration("*", 0)
    us = host_us(engine.step, 50)
    replay_us = host_us(lambda: phase.advance(STEPS_PER_REPLAY), 20) / STEPS_PER_REPLAY
    stand_in.forget_durations()
    return Step(one, capture, replay, us, replay_us)
