"""Inverse autoregressive flow: a transformation of z whose log-determinant costs nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..model import Linear

HIDDEN = 256
CONTEXT = 128
# The gate starts near 1, so that a new flow moves z little.
OPEN_GATE = 2.0


class MaskedLinear(Linear):
    """A linear layer in which output i reads input j only where mask[i, j] is true."""

    is_affine = False  # its product is not that of `weight`

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.mask: Tensor = nn.Buffer(mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.where(self.mask, self.weight, 0.0)
        return (x.to(weight.dtype) @ weight.t()).float() + self.bias


class MADE(nn.Module):
    """Two outputs for each dimension of z, which read only the dimensions before it, and a context
    (Germain et al., "MADE: masked autoencoder for distribution estimation", 2015, section 4).

    Three masked layers; the context enters the first one. Hidden units take the degrees 1 … D − 1
    in turn.

    Args:
        latent: D ≥ 2.
    """

    def __init__(self, latent: int, hidden: int = HIDDEN, context: int = CONTEXT) -> None:
        super().__init__()
        inputs = torch.arange(1, latent + 1)
        inside = torch.arange(hidden) % (latent - 1) + 1
        degrees = (inputs, inside, inside)
        first, second = (MaskedLinear(b[:, None] >= a) for a, b in pairwise(degrees))
        self.first, self.second = first, second
        self.context = Linear(context, hidden)
        self.last = MaskedLinear(inputs.repeat(2)[:, None] > inside)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z (S, B, D), context (B, C) → m and s, each (S, B, D)."""
        hidden = torch.relu(self.first(z) + self.context(context))
        hidden = torch.relu(self.second(hidden))
        m, s = self.last(hidden).chunk(2, -1)
        return m, s


class InverseAutoregressiveFlow(nn.Module):
    """z ← g·z + (1 − g)·m, g = sigmoid(s + 2), with m and s of `MADE`; then z is reversed
    (Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016,
    equations 12 to 14).

    The form is that of github.com/altosaar/variational-autoencoder. The numbers added to s are
    learned, as part of the last layer's bias.
    """

    def __init__(self, latent: int, hidden: int = HIDDEN, context: int = CONTEXT) -> None:
        super().__init__()
        self.made = MADE(latent, hidden, context)
        with torch.no_grad():
            self.made.last.bias[latent:] += OPEN_GATE

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z (S, B, D), context (B, C) → the new z (S, B, D), log |det ∂new/∂z| (S, B) in nats."""
        m, s = self.made(z, context)
        gate = torch.sigmoid(s)
        return (m + gate * (z - m)).flip(-1), logsigmoid(s).sum(-1)
