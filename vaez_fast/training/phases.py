"""How an arm of the study is trained: its phases, and the engines that each of them steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from ..config import TrainConfig
from ..model import VAE, Linear
from ..objective import Distortion, ImportanceWeightedBound, NegativeElbo, Rate
from .batches import Batches
from .engine import Engine
from .optimizer import Adam, warmup_cosine

# Steps in one replay of a CUDA graph: enough that the launch of the graph is lost in its run.
STEPS_PER_REPLAY = 32


class Phase:
    """Engines that see the same batches, each stepped once a batch, in this order.

    `done` counts the batches that all of them were stepped on, `torn` says whether a step broke off
    between two of them.
    """

    def __init__(self, name: str, engines: list[Engine]) -> None:
        self.name, self.engines = name, engines
        self.batches = engines[0].batches
        self.done, self.torn = 0, False
        self._replay: Callable[[], None] | None = None

    def advance(self, steps: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Train on the next `steps` batches, unless told to stop; returns on how many.

        `stop` is asked before every step, on CUDA before each replay.
        """
        before = self.done
        # Whether NCCL's sums can be captured nobody has tried: several ranks step one by one.
        if self.batches.images.device.type == "cuda" and self.batches.world.size == 1:
            while self.done + STEPS_PER_REPLAY <= before + steps and not stop():
                self._replay_steps()
                self.done += STEPS_PER_REPLAY
        while self.done < before + steps and not stop():
            self._step()
            self.done += 1
        return self.done - before

    def _step(self) -> None:
        for engine in self.engines:
            engine.step()
            self.torn = engine is not self.engines[-1]

    def _replay_steps(self) -> None:
        if self._replay is None:
            # The engines ran when they were compiled; capturing runs nothing, and so no step is
            # taken twice.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(STEPS_PER_REPLAY):
                    self._step()
            self._replay = graph.replay
        self._replay()


def phases(
    config: TrainConfig,
    vae: VAE,
    batches: Batches,
    *,
    steps: int,
    precision: torch.dtype,
    pixel_scale: float,
) -> list[Phase]:
    """The phases of `config`'s arm, from the weights of `vae`.

    The step of an encoder that the KL alone trains is one and the same graph, whether its decoder
    is trained afterwards or in tandem: the same seed gives the same encoder, bit for bit. Each
    phase sees the same batches in the same order, and each engine the same noise.
    """
    make = partial(
        Engine,
        batches=batches,
        optimizer=Adam(),
        learning_rates=warmup_cosine(config.lr, steps),
        seed=config.seed,
        precision=precision,
        pixel_scale=pixel_scale,
    )
    if config.objective == "iwae":
        return [Phase("vae", [make(ImportanceWeightedBound(vae, config.kl, config.num_samples))])]
    if config.decoder == "joint":
        objective = NegativeElbo(vae, config.kl, config.beta, config.num_samples)
        return [Phase("vae", [make(objective)])]
    if config.decoder == "randn":
        forget_x(vae)
        return [Phase("decoder", [make(Distortion(vae, "randn"))])]
    encoder = make(Rate(vae, config.kl))
    decoder = make(Distortion(vae, "encoder"), encoder=encoder)
    if config.decoder == "simultaneous":
        return [Phase("encoder and decoder", [encoder, decoder])]
    return [Phase("encoder", [encoder]), Phase("decoder", [decoder])]


@torch.no_grad()
def forget_x(vae: VAE) -> None:
    """Make q(z|x) = N(0, I) for every x: what "no encoder" is, as an encoder."""
    last = vae.encoder[-1]
    assert isinstance(last, Linear)
    last.weight.zero_()
    last.bias.zero_()
    if vae.architecture.scale == "softplus":
        last.bias[vae.architecture.latent :] = math.log(math.e - 1)  # softplus of it is 1
