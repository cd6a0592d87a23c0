"""Normalising flows over latents: densities that are fitted to codes, or learned as a prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .model import Linear

LOG_2PI = math.log(2.0 * math.pi)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats: z (…, D) → (…,)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * LOG_2PI)


class RealNVP(nn.Module):
    """Affine coupling layers over a standard normal (Dinh et al., "Density estimation using Real
    NVP", 2017, equations 4 to 8).

    In each layer one half of the dimensions scales and shifts the other half; the halves change
    roles from layer to layer, and the dimensions are interleaved so that each is moved. Log-scales
    are bounded by `tanh`, which keeps the fit stable. A new flow is N(0, I) exactly.

    Args:
        latent: D ≥ 2.
        layers: the number of coupling layers, at least 2 so that every dimension is moved.
        hidden: the width of a layer's perceptron, which has one hidden layer.
        seed: fixes the initial weights; the global generator does not matter.

    Raises:
        ValueError: fewer than two dimensions or layers.
    """

    def __init__(self, latent: int, layers: int = 8, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        if latent < 2 or layers < 2:
            raise ValueError(
                f"RealNVP: latent and layers must be at least 2, got {latent} and {layers}"
            )
        self.latent = latent
        even = torch.arange(latent) % 2 == 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.couplings = nn.ModuleList(
                Coupling(even if layer % 2 == 0 else ~even, hidden) for layer in range(layers)
            )

    def log_prob(self, z: Tensor) -> Tensor:
        """log density in nats: z (…, D) float32 → (…,)."""
        log_det = torch.zeros_like(z[..., 0])
        for coupling in self.couplings:
            z, change = coupling(z)
            log_det = log_det + change
        return log_standard_normal(z) + log_det

    def transform(self, eps: Tensor) -> Tensor:
        """Standard normal eps (…, D) → draws z of the flow, (…, D)."""
        for coupling in reversed(self.couplings):
            eps = coupling.inverse(eps)  # type: ignore[operator]
        return eps


class Coupling(nn.Module):
    """One affine coupling: y_moved = z_moved · exp(s(z_kept)) + t(z_kept); the kept half stays."""

    def __init__(self, kept: Tensor, hidden: int) -> None:
        super().__init__()
        self.kept: Tensor = nn.Buffer(kept.nonzero().flatten())
        self.moved: Tensor = nn.Buffer((~kept).nonzero().flatten())
        last = Linear(hidden, 2 * len(self.moved))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(Linear(len(self.kept), hidden), nn.Tanh(), last)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (…, D) → y (…, D), log |det ∂y/∂z| (…,)."""
        kept, moved = z[..., self.kept], z[..., self.moved]
        log_scale, shift = self._scale_and_shift(kept)
        moved = moved * torch.exp(log_scale) + shift
        return self._join(kept, moved), log_scale.sum(-1)

    def inverse(self, y: Tensor) -> Tensor:
        """y (…, D) → z (…, D)."""
        kept, moved = y[..., self.kept], y[..., self.moved]
        log_scale, shift = self._scale_and_shift(kept)
        return self._join(kept, (moved - shift) * torch.exp(-log_scale))

    def _scale_and_shift(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(kept).chunk(2, -1)
        return 2.0 * torch.tanh(0.5 * log_scale), shift

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        order = torch.cat([self.kept, self.moved]).argsort()
        return torch.cat([kept, moved], -1)[..., order]
