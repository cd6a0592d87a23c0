"""The kernel distance of two sets of features, over all pairs and without a loop over them.

The cubic kernel (xᵀy/d + 1)³ is φ(x)ᵀφ(y), where φ(x) lists 1, √3 x/√d, √3 x⊗x/d and x⊗x⊗x/d^1.5.
So its sum over all pairs of two sets is the product of two sums of φ. These take n d³ operations,
and those of the real images are found once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = 10  # disjoint, for the standard error


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Sums over the features of each part, float64."""

    phi: Tensor  # (parts, 1 + d + d² + d³)
    own: Tensor  # (parts,), of φ(x)ᵀφ(x)

    @property
    def count(self) -> Tensor:
        """Features of each part: (parts,), the sum of φ's first entry."""
        return self.phi[:, 0]

    def whole(self) -> KernelSums:
        """The sums over all features, as one part."""
        return KernelSums(self.phi.sum(0, keepdim=True), self.own.sum(0, keepdim=True))

    def without_each(self) -> KernelSums:
        """The sums over all features but those of each part."""
        return KernelSums(self.phi.sum(0) - self.phi, self.own.sum(0) - self.own)


def kernel_sums(features: Tensor) -> KernelSums:
    """The sums of features (n, d); part i holds the features i, i + 10, i + 20, …

    Raises:
        ValueError: fewer than 20 features, so that a part has fewer than two.
    """
    n, d = features.shape
    if n < 2 * PARTS:
        raise ValueError(f"features must be at least {2 * PARTS}, got {n}")
    phi, own = [], []
    for part in range(PARTS):
        x = features[part::PARTS].double().cpu()
        pairs = (x[:, :, None] * x[:, None]).flatten(1)  # (n, d²)
        one = torch.full((1,), float(len(x)), dtype=x.dtype)
        first, second = math.sqrt(3 / d) * x.sum(0), math.sqrt(3) / d * pairs.sum(0)
        phi.append(torch.cat([one, first, second, (pairs.T @ x).flatten() / d**1.5]))
        own.append((x.square().sum(1) / d + 1).pow(3).sum())
    return KernelSums(torch.stack(phi), torch.stack(own))


def squared_mmd(a: KernelSums, b: KernelSums) -> Tensor:
    """The unbiased squared maximum mean discrepancy of each part of a and b: (parts,) float64.

    Gretton et al., "A kernel two-sample test", 2012, equation 3, as in Bińkowski et al.,
    "Demystifying MMD GANs", 2018, section 4. If the laws agree, it scatters around 0 and may be
    negative.
    """

    def within(x: KernelSums) -> Tensor:
        return (x.phi.square().sum(1) - x.own) / (x.count * (x.count - 1))

    between = (a.phi * b.phi).sum(1) / (a.count * b.count)
    return within(a) + within(b) - 2 * between


def kernel_distance(a: Sequence[KernelSums], b: Sequence[KernelSums]) -> tuple[float, float]:
    """Squared maximum mean discrepancy, mean over networks, and its standard error.

    Args:
        a, b: the sums of two sets of images, one for each network.

    Returns:
        The distance over all pairs, and its standard error by the jackknife that leaves out each
        of ten disjoint parts of both sets (Efron & Stein 1981; it is too large, by √2, where the
        laws agree).
    """
    pairs = list(zip(a, b, strict=True))
    distance = torch.cat([squared_mmd(x.whole(), y.whole()) for x, y in pairs]).mean()
    left = [squared_mmd(x.without_each(), y.without_each()) for x, y in pairs]
    spread = torch.stack(left).mean(0).var(correction=0)
    return float(distance), math.sqrt((PARTS - 1) * float(spread))
