"""What the benchmark of image and video latents times: its check, its baseline, its floor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vaez_kernels.cases import TIMED
from vaez_kernels.latent.moments_case import textbook

MOMENTS = TIMED["moments"]
SHAPE = (3, 4, 6, 5)
CPU = torch.device("cpu")

Outputs = tuple[Tensor, ...]  # z (B, D), kl (B,), and the gradients of mu and logvar, (B, D) each


@pytest.mark.parametrize("dtype", MOMENTS.dtypes)
def test_our_op_and_the_baseline_pass_its_check(dtype: torch.dtype) -> None:
    case = MOMENTS.case(SHAPE, dtype, CPU)
    for forward, ours in ((MOMENTS.ours(case), True), (MOMENTS.textbook, False)):
        for backward in (False, True):
            assert case.check(case.run(forward, backward), ours).error <= 1


@pytest.mark.parametrize(
    "fault",
    [
        lambda z, kl, *grads: (z + 1e-3, kl, *grads),
        lambda z, kl, *grads: (z, kl * 1.001, *grads),
        lambda z, kl, by_mu, by_logvar: (z, kl, by_logvar, by_mu),
        lambda z, kl, by_mu, by_logvar: (z, kl, by_mu, by_logvar * 1.001),
    ],
    ids=["z", "KL", "halves swapped", "gradient"],
)
def test_its_check_refuses_a_wrong_result(fault: Callable[..., Outputs]) -> None:
    case = MOMENTS.case(SHAPE, torch.float32, CPU)
    outputs = case.run(MOMENTS.ours(case), True)
    assert case.check(fault(*outputs), ours=True).error > 1


def test_the_check_passes_a_baseline_whatever_eps_it_draws() -> None:
    # Where σ is small, a bfloat16 z hardly tells its eps. 9 of 100 draws failed the check before
    # it allowed for that; its gradients now reach 0.6 of the tolerance in 200 draws.
    case = MOMENTS.case((4, 4, 64, 64), torch.bfloat16, CPU)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        errors = [case.check(case.run(MOMENTS.textbook, True), ours=False).error for _ in range(60)]
    assert max(errors) <= 1


def test_the_check_refuses_a_baseline_with_a_wrong_gradient() -> None:
    case = MOMENTS.case((4, 4, 64, 64), torch.bfloat16, CPU)
    z, kl, by_mu, by_logvar = case.run(MOMENTS.textbook, True)
    assert case.check((z, kl, by_mu, 1.05 * by_logvar), ours=False).error > 1


def test_the_baseline_is_diffusers_own_code() -> None:
    vae = pytest.importorskip("diffusers.models.autoencoders.vae", reason="no diffusers here")
    moments = 20.0 * torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        z, kl = textbook(moments)
        torch.manual_seed(1)
        q = vae.DiagonalGaussianDistribution(moments)
        assert torch.equal(z, q.sample())
    assert torch.equal(kl, q.kl())


def test_the_floor_is_each_number_once() -> None:
    # 4-byte mu, logvar and z; backward reads mu, logvar and z's gradient, and writes two.
    assert MOMENTS.least_bytes(SHAPE, 4, False) == 4 * (3 * 360 + 3)
    assert MOMENTS.least_bytes(SHAPE, 4, True) == 4 * (8 * 360 + 2 * 3)
