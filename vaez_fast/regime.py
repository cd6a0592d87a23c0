"""How an arm of the study is trained: its phases, and the engines that each of them steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from .config import TrainConfig
from .engine import Engine
from .model import VAE, Linear
from .objective import Distortion, NegativeElbo, Rate


@dataclass
class Phase:
    """Engines that see the same batches, each stepped once a batch, in this order."""

    name: str
    engines: list[Engine]


def phases(
    config: TrainConfig,
    vae: VAE,
    *,
    steps: int,
    precision: torch.dtype,
    pixel_scale: float,
    device: torch.device,
) -> list[Phase]:
    """The phases of `config`'s arm, from the weights of `vae`.

    The step of an encoder that the KL alone trains is one and the same graph, whether its decoder
    is trained afterwards or in tandem: the same seed gives the same encoder, bit for bit. Each
    phase sees the same batches in the same order, and each engine the same noise.
    """
    make = partial(
        Engine,
        steps=steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
        precision=precision,
        pixel_scale=pixel_scale,
        device=device,
    )
    if config.decoder == "joint":
        return [Phase("vae", [make(NegativeElbo(vae, config.kl, config.beta))])]
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
