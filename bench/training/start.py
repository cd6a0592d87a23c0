"""A new process up to its first training step: `python -m bench.training.start PROVIDER`.

Trains altosaar's model on random binary images and ends after the first step. Its parent measures
how long that takes, imports and compilation included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

BATCH_SIZE = 128


def _images() -> Any:
    import torch

    return torch.randint(2, (8 * BATCH_SIZE, 784), dtype=torch.uint8)


def textbook() -> None:
    from bench.training.baselines import TextbookTraining, TextbookVAE

    TextbookTraining(TextbookVAE("altosaar"), _images(), BATCH_SIZE).step()


def compiled() -> None:
    from bench.training.baselines import TextbookVAE, compiled_training

    compiled_training(TextbookVAE("altosaar"), _images(), BATCH_SIZE).step()


def engine(precision: str) -> None:
    import torch

    from bench.training.engines import ordinary_engine

    ordinary_engine("altosaar", _images(), BATCH_SIZE, getattr(torch, precision)).step()


def jax() -> None:
    import jax
    import jax.numpy as jnp

    from bench.jax import rivals

    keys = iter(jax.random.split(jax.random.key(0), 9))
    widths = ((784, 256, 256, 2 * 128), (128, 256, 256, 784))
    layers = [
        [
            (0.05 * jax.random.normal(next(keys), (out, into)), jnp.zeros(out))
            for into, out in pairwise(of_half)
        ]
        for of_half in widths
    ]
    images = jax.random.bernoulli(next(keys), 0.5, (8 * BATCH_SIZE, 784)).astype(jnp.uint8)
    state = rivals.start(*layers)
    order = jnp.arange(len(images))
    jax.block_until_ready(rivals.train(state, images, order, BATCH_SIZE, 1, jnp.float32))


FIRST_STEPS: dict[str, Callable[[], None]] = {
    "textbook": textbook,
    "compiled": compiled,
    "engine float32": lambda: engine("float32"),
    "engine bfloat16": lambda: engine("bfloat16"),
    "jax": jax,
}

if __name__ == "__main__":
    FIRST_STEPS[sys.argv[1]]()
    print("stepped", flush=True)
