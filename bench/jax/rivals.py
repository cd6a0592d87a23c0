"""The suite's ops as a JAX user writes them: plain jax.numpy under jax.jit. Needs jax alone.

Arrays are float32. Operands of matrix products are cast to `dtype`, and the sums are float32. The
products ask for full precision, because GPUs would otherwise round float32 operands to TF32.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # jax.Array; without jax installed mypy knows no other name
Layers = list[tuple[Array, Array]]  # of a perceptron: weights (out, in) and biases (out,)


def rsample_kl(mu: Array, logvar: Array, key: Array) -> tuple[Array, Array]:
    """mu, logvar (B, D) → z (B, D) and the analytic KL (B,) in nats."""
    z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
    return z, 0.5 * jnp.sum(mu**2 + jnp.exp(logvar) - 1 - logvar, 1)


@jax.jit
def latent(mu: Array, logvar: Array, key: Array, grad_z: Array, grad_kl: Array) -> Array:
    """z, KL, and the gradients of mu and logvar."""
    outputs, pull = jax.vjp(lambda m, v: rsample_kl(m, v, key), mu, logvar)
    return *outputs, *pull((grad_z, grad_kl))


def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """logits (S, B, P), x (B, P) → log p(x|z) (S, B) in nats."""
    return jnp.sum(x.astype(logits.dtype) * logits - jax.nn.softplus(logits), -1)


@jax.jit
def likelihood(logits: Array, x: Array, grad: Array) -> Array:
    """log p(x|z) and the gradient of the logits."""
    output, pull = jax.vjp(lambda of: bernoulli_log_prob(of, x), logits)
    return output, *pull(grad)


def mixture_log_prob(z: Array, mu: Array, logvar: Array) -> Array:
    """z (M, D), mu and logvar (N, D) → log 1/N Σ_n N(z; mu_n, σ²_n), (M,) in nats."""
    t = (z[:, None] - mu) * jnp.exp(-0.5 * logvar)
    log_normal = -0.5 * jnp.sum(t**2 + logvar + math.log(2 * math.pi), -1)
    return jax.nn.logsumexp(log_normal, 1) - math.log(len(mu))


@jax.jit
def mixture(z: Array, mu: Array, logvar: Array, grad: Array) -> Array:
    """log q(z) and the gradient of z."""
    output, pull = jax.vjp(lambda of: mixture_log_prob(of, mu, logvar), z)
    return output, *pull(grad)


def perceptron(layers: Layers, a: Array, dtype: Any) -> Array:
    """ReLU between the layers: (…, in) → (…, out)."""
    for i, (weight, bias) in enumerate(layers):
        a = jax.nn.relu(a) if i else a
        product = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
        a = product(a.astype(dtype), weight.T.astype(dtype)) + bias
    return a


def log_weights(
    decoder: Layers, mu: Array, logvar: Array, x: Array, eps: Array, dtype: Any
) -> Array:
    """mu, logvar (B, D), x (B, P), eps (S, B, D) → log p(x, z)/q(z|x), (S, B)."""
    z = mu + jnp.exp(0.5 * logvar) * eps
    log_ratio = 0.5 * jnp.sum(z**2 - eps**2 - logvar, -1)
    return bernoulli_log_prob(perceptron(decoder, z, dtype), x) - log_ratio


@partial(jax.jit, static_argnames=("count", "dtype"))
def importance_log_likelihood(
    decoder: Layers, mu: Array, logvar: Array, x: Array, keys: Array, count: int, dtype: Any
) -> Array:
    """log p(x) (B,) from `count` samples for each key, decoded a key at a time."""

    def of_key(key: Array) -> Array:
        eps = jax.random.normal(key, (count, *mu.shape))
        return log_weights(decoder, mu, logvar, x, eps, dtype)

    weights = jax.lax.map(of_key, keys).reshape(-1, len(mu))
    return jax.nn.logsumexp(weights, 0) - math.log(len(weights))


def negative_elbo(
    encoder: Layers, decoder: Layers, x: Array, key: Array, dtype: Any
) -> tuple[Array, Array]:
    """The analytic −ELBO of altosaar's model: x (B, 784) float32 → nats (B,), z (B, D)."""
    mu, raw = jnp.split(perceptron(encoder, x, dtype), 2, 1)
    z, kl = rsample_kl(mu, 2 * jnp.log(jax.nn.softplus(raw)), key)
    return kl - bernoulli_log_prob(perceptron(decoder, z, dtype), x), z


@partial(jax.jit, static_argnames=("batch_size", "steps", "dtype"), donate_argnums=0)
def train(state: Any, images: Array, order: Array, batch_size: int, steps: int, dtype: Any) -> Any:
    """Steps of Adam on the −ELBO: the new state, of which `start` makes the first.

    Args:
        state: donated: it must not be used again.
        images: (N, 784) uint8, binary.
        order: (N,) in which batches take them.
    """
    full = len(images) // batch_size * batch_size

    def loss(weights: tuple[Layers, Layers], x: Array, key: Array) -> Array:
        return jnp.mean(negative_elbo(*weights, x, key, dtype)[0])

    def step(i: int, state: Any) -> Any:
        weights, first, second, count, key = state
        key, noise = jax.random.split(key)
        rows = jax.lax.dynamic_slice_in_dim(order, count * batch_size % full, batch_size)
        gradients = jax.grad(loss)(weights, images[rows].astype(jnp.float32), noise)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradients)

        def descend(w: Array, m: Array, v: Array) -> Array:
            scale = jnp.sqrt(v / (1 - 0.999**count)) + 1e-8
            return w - 1e-3 * m / (1 - 0.9**count) / scale

        return jax.tree.map(descend, weights, first, second), first, second, count, key

    return jax.lax.fori_loop(0, steps, step, state)


def start(encoder: Layers, decoder: Layers) -> Any:
    """The state before the first step: weights, Adam's two moments, the step, the random key."""
    weights = (encoder, decoder)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    # Copies, because `train` takes the memory of its state.
    copies = jax.tree.map(jnp.copy, weights)
    return copies, zeros(weights), zeros(weights), jnp.zeros((), jnp.int32), jax.random.key(0)
