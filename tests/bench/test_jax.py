"""The JAX rivals against the references, where jax is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaez_kernels import reference


def test_its_ops_are_the_references() -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    import jax
    import jax.numpy as jnp

    from bench.jax import rivals as jax_rivals

    draw = np.random.default_rng(0).standard_normal
    mu, logvar = draw((5, 3)), draw((5, 3))
    logits, x = draw((2, 5, 7)), draw((5, 7)) > 0
    given = [jnp.asarray(a, jnp.float32) for a in (mu, logvar)]
    z, kl = jax_rivals.rsample_kl(given[0], given[1], jax.random.key(0))
    assert z.shape == (5, 3)
    wanted = reference.kl_standard_normal(torch.from_numpy(mu), torch.from_numpy(logvar))
    np.testing.assert_allclose(np.array(kl), wanted.numpy(), rtol=1e-5)
    log_prob = jax_rivals.bernoulli_log_prob(jnp.asarray(logits, jnp.float32), jnp.asarray(x))
    of_reference = reference.bernoulli_log_prob(
        torch.from_numpy(logits), torch.from_numpy(x).double()
    )
    np.testing.assert_allclose(np.array(log_prob), of_reference.numpy(), rtol=1e-5)
    given = [jnp.asarray(draw((size, 3)), jnp.float32) for size in (4, 9, 9)]
    wanted = reference.mixture_log_prob(*(torch.from_numpy(np.array(a)).double() for a in given))
    found = jax_rivals.mixture_log_prob(*given)
    np.testing.assert_allclose(np.array(found), wanted.numpy(), rtol=1e-5)
    layers = [(jnp.asarray(draw((4, 3)), jnp.float32), jnp.zeros(4))]
    for dtype in (jnp.float32, jnp.bfloat16):
        out = jax_rivals.perceptron(layers, jnp.asarray(mu, jnp.float32), dtype)
        exact = mu @ np.asarray(layers[0][0]).T
        bound = (2.0**-22 if dtype == jnp.float32 else 2.0**-6) * np.abs(exact).max()
        assert out.dtype == jnp.float32
        assert np.abs(np.asarray(out) - exact).max() <= bound


def test_the_speedruns_bound_and_its_gradient_are_ours() -> None:
    """The path derivative by jax.grad and by autograd, from the same eps, at a weight of 0.3."""
    pytest.importorskip("jax", reason="jax is not installed")
    import jax
    import jax.numpy as jnp

    from bench.jax.speedrun import negative_bound

    generator = torch.Generator().manual_seed(0)
    sizes = ((6, 2 * 3), (3, 6))  # x to mu and raw of three latents, z to logits
    weights = [torch.randn(out, into, generator=generator) / 2 for into, out in sizes]
    x = (torch.rand(5, 6, generator=generator) > 0.5).float()
    mean, key = x.mean(0), jax.random.key(3)

    def theirs(weight: object) -> object:
        encoder = [(weight, jnp.zeros(6))]
        decoder = [(jnp.asarray(weights[1].numpy()), jnp.zeros(6))]
        given = (jnp.asarray(x.numpy()), jnp.asarray(mean.numpy()), 0.3, key, jnp.float32)
        return negative_bound(encoder, decoder, *given).sum()

    value, gradient = jax.value_and_grad(theirs)(jnp.asarray(weights[0].numpy()))
    eps = torch.from_numpy(np.array(jax.random.normal(key, (5, 3)))).double()
    weight = weights[0].double().requires_grad_()
    mu, raw = ((x - mean).double() @ weight.t()).chunk(2, 1)
    sigma = torch.nn.functional.softplus(raw)
    z = mu + sigma * eps
    log_q = torch.distributions.Normal(mu.detach(), sigma.detach()).log_prob(z)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    logits = z @ weights[1].double().t()
    distortion = -reference.bernoulli_log_prob(logits[None], x.double())[0]
    wanted = (0.3 * (log_q - log_p).sum(1) + distortion).sum()
    (of_weight,) = torch.autograd.grad(wanted, weight)
    # Float32 sums of some 100 terms near 1.
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-5)
    np.testing.assert_allclose(np.array(gradient), of_weight.numpy(), atol=1e-4, rtol=1e-4)
