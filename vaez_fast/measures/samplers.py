"""Distributions to draw z from when a decoder generates images: N(0, I), a fit to q(z), or codes.

If z is not standard normal, fit q(z) and sample from the fit (Ghosh et al., "From variational to
deterministic autoencoders", 2020, section 4, with mixtures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vaez_kernels import uniform
from vaez_kernels.checks import check_choice

from ..names import SAMPLERS as SAMPLERS
from .codes import Codes
from .densities import Embedded, fit_gaussian, standard_normal
from .densities import GaussianMixture as GaussianMixture
from .law import best_density, fit_densities


class Sampler(Protocol):
    def draw(self, noise: Tensor, n: int) -> Tensor:
        """z (n, D) float32 on the noise's device.

        The only randomness is the stream of `noise`, from `noise_key(seed, "generate", …)`: its
        normal numbers of sample 0 for the Gaussian part, its uniforms of sample 1 for the choice of
        a component or image. So row i does not depend on n. With the same key it has the same base
        noise in every sampler and model of the same D, so images can be compared one by one.
        """
        ...


@dataclass(frozen=True, eq=False)
class Posterior:
    """The aggregate posterior itself: one draw of q(z|x) for each of N images."""

    z: Tensor  # (N, D)

    def draw(self, noise: Tensor, n: int) -> Tensor:
        """See `Sampler`: images in random order; none repeats before each was drawn once."""
        order = uniform(noise, 1, len(self.z), 1, sample_offset=1).flatten().argsort(stable=True)
        rows = order[torch.arange(n, device=noise.device) % len(self.z)]
        return self.z.to(noise.device)[rows].float()


def fit(
    name: str, codes: Codes, densities: dict[str, Embedded] | None = None, seed: int = 0
) -> Sampler:
    """The sampler `name` of a model, fitted to the codes of its training images.

    Args:
        name: one of `SAMPLERS`. "standard-normal" takes only D from the codes. "diagonal" and
            "full-covariance" are Gaussians with the moments of all D latents. "mixture" has
            full-covariance Gaussians over the measured latents, as many of 10, 50 and 200 as have
            the highest validation likelihood; "flow" is a RealNVP over these latents. Under both
            the other latents are N(0, 1). "posterior" returns training codes, on whose images the
            decoder was trained, "held-out-posterior" validation codes, on which it was not. Test
            codes would make images of the very ones that generated images are compared with.
        densities: those of `vaez_fast.measures.law.fit_densities`, if they are there already.
        seed: of a flow that is not among them, the run's own.

    Raises:
        ValueError: an unknown name, densities without it, or too few codes: a diagonal Gaussian
            needs 2, a full covariance D + 1, a mixture 20 for each component, a flow 2; or a flow
            of one latent.
    """
    check_choice("fit", "name", name, SAMPLERS)
    train = codes.train.z
    if train.dim() != 2 or len(train) == 0:
        raise ValueError(
            f"fit: train.z must have shape (N, D) with N ≥ 1, got {tuple(train.shape)}"
        )
    if name == "standard-normal":
        return standard_normal(train.shape[1], train.device)
    if name == "diagonal":
        return fit_gaussian(train, "diagonal")
    if name == "full-covariance":
        return fit_gaussian(train, "full")
    if name == "posterior":
        return Posterior(train)
    if name == "held-out-posterior":
        return Posterior(codes.validation.z)
    fitted = densities or fit_densities(codes, seed, (name,))
    candidates = {key: r for key, r in fitted.items() if key.startswith(name)}
    if not candidates:
        raise ValueError(f"fit: densities have no {name}, got {', '.join(fitted)}")
    return candidates[best_density(candidates, codes.validation.z)]
