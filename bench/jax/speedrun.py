"""The speedrun's recipe as a JAX user writes it: an epoch's steps in one jitted loop."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from bench.jax.rivals import Array, Layers, bernoulli_log_prob, perceptron
from bench.jax.rivals import start as start_state
from bench.speedrun.recipe import CenteredVAE, Recipe, Trained, start
from vaez_fast.model import Linear


def negative_bound(
    encoder: Layers,
    decoder: Layers,
    x: Array,
    mean: Array,
    kl_weight: Array,
    key: Array,
    dtype: Any,
) -> Array:
    """β·(log q(z|x) − log p(z)) − log p(x|z), its gradient the path derivative (Roeder et al.).

    x (B, 784), mean (784,) → nats (B,)
    """
    mu, raw = jnp.split(perceptron(encoder, x - mean, dtype), 2, 1)
    sigma = jax.nn.softplus(raw)
    z = mu + sigma * jax.random.normal(key, mu.shape)
    fixed_mu, fixed_sigma = jax.lax.stop_gradient((mu, sigma))
    log_q = -0.5 * ((z - fixed_mu) / fixed_sigma) ** 2 - jnp.log(fixed_sigma)
    log_ratio = jnp.sum(log_q + 0.5 * z**2, 1)
    return kl_weight * log_ratio - bernoulli_log_prob(perceptron(decoder, z, dtype), x)


@partial(jax.jit, static_argnames=("recipe", "dtype"), donate_argnums=0)
def epoch(
    state: Any,
    images: Array,
    mean: Array,
    schedule: Array,
    steps: Array,
    recipe: Recipe,
    dtype: Any,
) -> Any:
    """Up to an epoch of Adam's steps, in a new order: the new state.

    Args:
        state: of `start_state`; donated.
        images: (N, 784) uint8.
        schedule: (T, 2): learning rate and weight of the KL at each step.
        steps: how many, at most N // batch size.
    """
    size, adam = recipe.batch_size, recipe.optimizer
    *rest, key = state
    key, of_order = jax.random.split(key)
    order = jax.random.permutation(of_order, len(images))

    def step(i: Array, state: Any) -> Any:
        weights, first, second, count, key = state
        key, noise = jax.random.split(key)
        rate, kl_weight = schedule[count]
        rows = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        x = images[rows].astype(jnp.float32)

        def loss(weights: tuple[Layers, Layers]) -> Array:
            return jnp.mean(negative_bound(*weights, x, mean, kl_weight, noise, dtype))

        gradients = jax.grad(loss)(weights)
        count = count + 1
        first = jax.tree.map(lambda m, g: adam.beta1 * m + (1 - adam.beta1) * g, first, gradients)
        second = jax.tree.map(
            lambda v, g: adam.beta2 * v + (1 - adam.beta2) * g**2, second, gradients
        )

        def descend(w: Array, m: Array, v: Array) -> Array:
            scale = jnp.sqrt(v / (1 - adam.beta2**count)) + adam.epsilon
            return w - rate * m / (1 - adam.beta1**count) / scale

        return jax.tree.map(descend, weights, first, second), first, second, count, key

    return jax.lax.fori_loop(0, steps, step, (*rest, key))


def train(model: str, recipe: Recipe, images: Tensor, seed: int, precision: torch.dtype) -> Trained:
    """Train by `recipe` on images (N, 784) uint8, from the initial weights of our run."""
    clock = time.perf_counter()
    vae = CenteredVAE(model, seed, images.float().mean(0) * float(recipe.centred))
    start(vae, recipe, seed)
    layers = [
        [(_array(layer.weight), _array(layer.bias)) for layer in half if isinstance(layer, Linear)]
        for half in (vae.encoder, vae.decoder)
    ]
    *state, _ = start_state(*layers)
    state = (*state, jax.random.key(seed))
    schedule = _array(torch.stack((recipe.learning_rates(), recipe.kl_weights()), 1).float())
    of_data = _array(images), _array(vae.mean), schedule
    dtype = getattr(jnp, str(precision).removeprefix("torch."))
    options = {"recipe": recipe, "dtype": dtype}
    compiled = epoch.lower(state, *of_data, jnp.int32(1), **options).compile()
    compile_seconds = time.perf_counter() - clock

    clock = time.perf_counter()
    per_epoch = len(images) // recipe.batch_size
    for first in range(0, recipe.steps, per_epoch):
        steps = min(per_epoch, recipe.steps - first)
        state = compiled(state, *of_data, jnp.int32(steps))
    jax.block_until_ready(state)
    train_seconds = time.perf_counter() - clock
    with torch.no_grad():
        for half, of_half in zip((vae.encoder, vae.decoder), state[0], strict=True):
            linear = (layer for layer in half if isinstance(layer, Linear))
            for layer, (weight, bias) in zip(linear, of_half, strict=True):
                layer.weight.copy_(torch.from_numpy(np.array(weight)))
                layer.bias.copy_(torch.from_numpy(np.array(bias)))
    return Trained(vae.folded(model), train_seconds, compile_seconds)


def _array(tensor: Tensor) -> Array:
    return jnp.asarray(tensor.detach().cpu().numpy())
