"""The phases in which an arm is trained, and the engines of each phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from ..config import TrainConfig
from ..model import VAE, Linear
from ..objective import Distortion, ImportanceWeightedBound, NegativeElbo, Rate
from ..richer.priors import Vamp
from ..richer.vae import RicherVAE
from .batches import Batches
from .engine import Engine
from .optimizer import Adam, CenteredRMSprop, constant, rise, warmup_cosine

# Steps in one replay of a CUDA graph: enough to make its launch overhead negligible.
STEPS_PER_REPLAY = 32


class Phase:
    """Engines that train on the same batches; each takes one step per batch, in this order.

    `done` counts the batches on which all engines have stepped; `torn` says whether a step failed
    between two engines.
    """

    def __init__(self, name: str, engines: list[Engine]) -> None:
        self.name, self.engines = name, engines
        self.batches = engines[0].batches
        self.done, self.torn = 0, False
        self._replay: Callable[[], None] | None = None

    def advance(self, steps: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Train on up to `steps` batches; returns on how many.

        It ends early if `stop()` is true, which is checked before each step, on CUDA before each
        replay.
        """
        before = self.done
        # Several ranks take single steps: capturing NCCL's sums is untested.
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
            # The engines already ran when they were compiled, so no warm-up is needed. Capturing
            # executes nothing: no step is taken twice.
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

    An encoder that the KL alone trains has the same graph whether its decoder is trained afterwards
    or simultaneously, so the same seed gives the same encoder, bit for bit. All phases use the same
    batches in the same order, and all engines the same noise.
    """
    article = config.optimizer == "rmsprop"
    optimizer, rates = (CenteredRMSprop(), constant) if article else (Adam(), warmup_cosine)
    make = partial(
        Engine,
        batches=batches,
        optimizer=optimizer,
        learning_rates=rates(config.lr, steps),
        seed=config.seed,
        precision=precision,
        pixel_scale=pixel_scale,
    )
    if config.objective == "iwae":
        return [Phase("vae", [make(ImportanceWeightedBound(vae, config.kl, config.num_samples))])]
    if config.decoder == "joint":
        if isinstance(vae, RicherVAE) and isinstance(vae.prior, Vamp):
            vae.prior.start_at(batches.images[: len(vae.prior)].float() * pixel_scale)
        objective = NegativeElbo(vae, config.kl, config.beta, config.num_samples, config.free_bits)
        return [Phase("vae", [make(objective, kl_weights=_kl_weights(config, steps))])]
    if config.decoder == "randn":
        forget_x(vae)
        return [Phase("decoder", [make(Distortion(vae, "randn"))])]
    encoder = make(Rate(vae, config.kl))
    decoder = make(Distortion(vae, "encoder"), encoder=encoder)
    if config.decoder == "simultaneous":
        return [Phase("encoder and decoder", [encoder, decoder])]
    return [Phase("encoder", [encoder]), Phase("decoder", [decoder])]


def _kl_weights(config: TrainConfig, steps: int) -> torch.Tensor | None:
    # (steps,) float64, or None for β throughout
    if config.kl_warmup == 0:
        return None
    t = torch.arange(steps, dtype=torch.float64)
    return config.beta * rise(t, config.kl_warmup * steps)


@torch.no_grad()
def forget_x(vae: VAE) -> None:
    """Make q(z|x) = N(0, I) for every x, which stands for "no encoder"."""
    last = vae.encoder[-1]
    assert isinstance(last, Linear)
    last.weight.zero_()
    last.bias.zero_()
    if vae.architecture.scale == "softplus":
        last.bias[vae.architecture.latent :] = math.log(math.e - 1)  # softplus(·) = 1
