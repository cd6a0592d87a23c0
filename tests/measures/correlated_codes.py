"""Codes of no model, whose law is known."""

from __future__ import annotations

import torch

from vaez_fast.measures.codes import Codes, Encoded
from vaez_kernels import noise_key, normal


def codes_of(n: int, scales: list[float], *, train: int = 3_000) -> Codes:
    """Codes with mu_j ~ N(0, scale_j²) and σ² = max(1 − scale², 0.1), so that z is about N(0, I).

    In the training images latents 1 and 4 move together, in the test images 1 and 3.
    """

    def encoded(step: int, count: int, follower: int) -> Encoded:
        eps = normal(noise_key(1, "evaluate", step), 2, count, len(scales))
        scale = torch.tensor(scales)
        mu = eps[0] * scale
        if len(scales) > follower:
            mu[:, follower] = mu[:, 1].sign() * mu[:, follower].abs()
        logvar = (1.0 - scale**2).clamp(min=0.1).log().expand(count, -1)
        return Encoded(mu, logvar, mu + torch.exp(0.5 * logvar) * eps[1])

    return Codes(encoded(0, train, 4), encoded(1, 50, 4), encoded(2, n, 3))
