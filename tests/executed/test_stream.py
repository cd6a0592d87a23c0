"""The numbers that executed kernels draw, compared with the fallback's."""

from __future__ import annotations

import pytest
import torch

from tests.executed.cases import KEY, OFFSETS
from tests.executed.route import executed
from tests.kernels.helpers import ERROR, assert_within, latents
from tests.ptx.units import Units
from vaez_kernels import normal, rsample, uniform, use_backend


@pytest.mark.parametrize("units", Units)
def test_they_are_the_fallbacks_within_half_of_what_is_promised(units: Units) -> None:
    """They differ by a GPU's square root, and by multiplications fused with additions."""
    shape = (8, 129, 20)
    with executed("sm_90", units):
        drawn, spread = normal(KEY, *shape, **OFFSETS), uniform(KEY, *shape, **OFFSETS)
    with use_backend("torch"):
        wanted = normal(KEY, *shape, **OFFSETS)
        assert torch.equal(spread, uniform(KEY, *shape, **OFFSETS))
    assert_within("normal", drawn, wanted, 0.5 * ERROR * wanted.abs().clamp(min=1.0))


@pytest.mark.parametrize("units", Units)
def test_z_is_the_fallbacks_within_what_is_promised(units: Units) -> None:
    mu, logvar = (x.detach() for x in latents(129, 20))
    with executed("sm_90", units):
        z = rsample(mu, logvar, KEY, **OFFSETS)
    with use_backend("torch"):
        wanted, eps = rsample(mu, logvar, KEY, **OFFSETS), normal(KEY, 1, 129, 20, **OFFSETS)
    sizes = 1.0 + mu.abs() + torch.exp(0.5 * logvar) * eps.abs().clamp(min=1.0)
    assert_within("z", z, wanted, ERROR * sizes)


def test_the_latents_kernel_draws_the_noise_kernels_numbers_bit_for_bit() -> None:
    zeros = torch.zeros(7, 20)
    with executed("sm_90"):
        z = rsample(zeros, zeros, KEY, 3, **OFFSETS)
        assert torch.equal(z, normal(KEY, 3, 7, 20, **OFFSETS))


def test_backward_draws_the_noise_that_forward_drew() -> None:
    # At mu = logvar = 0, z is eps and dz/dlogvar is eps/2, both without rounding.
    mu, logvar = torch.zeros(2, 7, 20).unbind()
    logvar.requires_grad_()
    with executed("sm_90"):
        z = rsample(mu, logvar, KEY, 3, **OFFSETS)
        (grad,) = torch.autograd.grad(z[1].sum(), logvar)
    assert torch.equal(grad, 0.5 * z[1])
