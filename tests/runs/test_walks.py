"""Walks through the latents, each against the decoder's own means."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from vaez_fast.model import VAE, Architecture, Linear
from vaez_fast.runs.walks import interpolations, reconstructions, traversals
from vaez_kernels import noise_key, uniform

# Products of other shapes sum in another order.
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def vae() -> VAE:
    made = VAE(Architecture((32,), 3, torch.nn.Tanh, "logvar"), seed=1)
    with torch.no_grad():
        for layer in (made.encoder[-1], made.decoder[0], made.decoder[-1]):
            assert isinstance(layer, Linear)
            layer.weight.mul_(5.0)  # images that differ by more than rounding
    return made


@pytest.fixture(scope="module")
def x() -> Tensor:
    return (uniform(noise_key(0, "binarize"), 1, 4, 784)[0] < 0.3).float()


def mean(vae: VAE, z: Tensor) -> Tensor:
    return torch.sigmoid(vae.decode(z)).detach()


def test_reconstructions_are_images_over_the_means_at_their_codes(vae: VAE, x: Tensor) -> None:
    found = reconstructions(vae, x)
    assert torch.equal(found[0], x)
    assert_close(found[1], mean(vae, vae.encode(x)[0]))
    assert (found[1, 0] - found[1, 1]).abs().max() > 0.1


def test_interpolations_go_from_code_to_code_in_equal_steps(vae: VAE, x: Tensor) -> None:
    found = interpolations(vae, x[:2], x[2:], 5)
    assert found.shape == (2, 5, 784)
    start, end = (vae.encode(part)[0] for part in (x[:2], x[2:]))
    for i in range(5):
        assert_close(found[:, i], mean(vae, start + (end - start) * i / 4))
    assert (found[:, 0] - found[:, -1]).abs().max() > 0.1


def test_a_traversal_changes_one_latent_from_minus_three_to_three(vae: VAE, x: Tensor) -> None:
    mu = vae.encode(x)[0][3].detach()
    found = traversals(vae, mu, torch.tensor([2, 0]), 7)
    assert found.shape == (2, 7, 784)
    for row, latent in enumerate((2, 0)):
        for column, value in enumerate(range(-3, 4)):
            z = mu.clone()
            z[latent] = value
            assert_close(found[row, column], mean(vae, z))
