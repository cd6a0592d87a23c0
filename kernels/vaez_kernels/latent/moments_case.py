"""The call to time for latents of images and video: an encoder's moments to z and the KL."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..error_bounds import Check
from ..noise import noise_key
from ..testing import Function, Shape, Timed
from . import rsample_kl
from .case import LatentCase, rsample_kl_floor

CLAMP = (-30.0, 20.0)  # of logvar, in diffusers


@dataclass(frozen=True)
class MomentsCase:
    """The moments of an encoder and the upstream gradients, all on one device."""

    moments: Tensor  # (B, 2C, *spatial), its halves being mu and logvar
    flat: LatentCase  # the same as rows (B, D), with which outputs are compared

    def run(self, forward: Function, backward: bool) -> tuple[Tensor, ...]:
        """z (B, D) and the KL (B,), then the gradients of mu and logvar, each (B, D)."""
        z, kl = forward(self.moments)
        outputs = (z.reshape(self.flat.mu.shape), kl)
        if not backward:
            return outputs
        upstream = [self.flat.grad_z.view_as(z), self.flat.grad_kl.to(kl.dtype)]
        (grad,) = torch.autograd.grad([z, kl], [self.moments], upstream)
        return *outputs, *(half.flatten(1) for half in grad.chunk(2, dim=1))

    def check(self, outputs: tuple[Tensor, ...], ours: bool) -> Check:
        return self.flat.check(outputs, ours)

    def advance(self) -> None:
        self.flat.advance()


def moments_case(shape: Shape, dtype: torch.dtype, device: torch.device) -> MomentsCase:
    generator = torch.Generator().manual_seed(0)
    batch, channels, *spatial = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    moments = draw(batch, 2 * channels, *spatial).to(dtype)
    mu, logvar = (half.flatten(1) for half in moments.chunk(2, dim=1))
    flat = LatentCase(
        mu=mu,
        logvar=logvar,
        noise=noise_key(0, "train", 1, device=device),
        grad_z=draw(1, *mu.shape).to(dtype),
        grad_kl=draw(batch),
    )
    return MomentsCase(moments.requires_grad_(), flat)


def ours(case: MomentsCase) -> Function:
    def sampled(moments: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = moments.chunk(2, dim=1)
        z, kl = rsample_kl(mu, logvar, case.flat.noise, clamp=CLAMP)
        return z.squeeze(0), kl  # backward of z[0] would copy the gradient

    return sampled


def textbook(moments: Tensor) -> tuple[Tensor, Tensor]:
    """`sample` and `kl` of DiagonalGaussianDistribution in diffusers 0.42, with its own steps.

    The KL is summed over the whole event. The original sums over dimensions 1 to 3 of any latent.
    """
    mean, logvar = torch.chunk(moments, 2, dim=1)
    logvar = torch.clamp(logvar, *CLAMP)
    std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
    noise = torch.randn(mean.shape, device=moments.device, dtype=moments.dtype)
    z = mean + std * noise
    terms = torch.pow(mean, 2) + var - 1.0 - logvar
    return z, 0.5 * torch.sum(terms, dim=list(range(1, mean.dim())))


def least_bytes(shape: Shape, itemsize: int, backward: bool) -> int:
    return rsample_kl_floor((1, shape[0], math.prod(shape[1:])), itemsize, backward)


# An image of 512 pixels in four latent channels, one of 1,024 in sixteen, and Wan's 81 frames.
SHAPES = ((4, 4, 64, 64), (1, 16, 128, 128), (1, 16, 21, 60, 104))
TIMED = Timed(
    title="moments of an image or video to z and KL",
    case=moments_case,
    ours=ours,
    textbook=textbook,
    launch_bound=(),
    large={"cpu": SHAPES, "cuda": SHAPES},
    least_bytes=least_bytes,
    cpu_options={"fallback_random": True},
)
