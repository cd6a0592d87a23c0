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
