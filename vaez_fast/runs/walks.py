"""Images of a decoder along chosen paths through its latents: what each of them means.

Every image is the mean of p(x|z), (784,) float32 in [0, 1], on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import VAE

REACH = 3.0  # of a traversal; N(0, 1) is beyond it 0.3 % of the time


@torch.no_grad()
def reconstructions(vae: VAE, x: Tensor) -> Tensor:
    """Images x (N, 784) in [0, 1] over the means of p(x|mu), mu their codes: (2, N, 784)."""
    mu, _ = vae.encode(x)
    return torch.stack([x.float(), torch.sigmoid(vae.decode(mu))]).cpu()


@torch.no_grad()
def interpolations(vae: VAE, first: Tensor, last: Tensor, steps: int) -> Tensor:
    """From the codes of images `first` (N, 784) to those of `last`, linear in mu.

    Returns:
        (N, steps, 784); the first and the last of each row are the reconstructions.
    """
    (start, _), (end, _) = vae.encode(first), vae.encode(last)
    part = torch.linspace(0.0, 1.0, steps, device=start.device)[:, None]
    return torch.sigmoid(vae.decode(torch.lerp(start[:, None], end[:, None], part))).cpu()


@torch.no_grad()
def traversals(vae: VAE, mu: Tensor, latents: Tensor, steps: int) -> Tensor:
    """Each of some latents from −3 to 3, the others as in the code mu (D,) of an image.

    Returns:
        (len(latents), steps, 784).
    """
    z = mu.repeat(len(latents), steps, 1)
    values = torch.linspace(-REACH, REACH, steps, device=mu.device)
    for row, latent in zip(z, latents.tolist(), strict=True):
        row[:, latent] = values
    return torch.sigmoid(vae.decode(z)).cpu()
