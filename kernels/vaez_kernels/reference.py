"""The ops as textbook float64 formulas, the ground truth of every test. Slow, but easy to read.

The noise uses NumPy's unsigned 64-bit integers and library functions, and shares no code with the
ops. Everything else is PyTorch in float64, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def philox4x32(key: tuple[int, int], counter: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of Salmon et al. 2011; counter (..., 4) uint64 words → (..., 4)."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k = [np.uint64(word) for word in key]
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    for _ in range(10):
        product = (c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57))
        c = [
            (product[1] >> shift) ^ c[1] ^ k[0],
            product[1] & mask,
            (product[0] >> shift) ^ c[3] ^ k[1],
            product[0] & mask,
        ]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, -1)


def words(
    noise: Tensor, S: int, B: int, D: int, row_offset: int = 0, sample_offset: int = 0
) -> np.ndarray:
    """The integers of the stream, (S, B, ⌈D/4⌉, 4) uint64 below 2³²."""
    key, step = (int(n) for n in noise)
    quads = -(-D // 4)
    s, r, q = np.meshgrid(
        np.arange(S, dtype=np.uint64) + np.uint64(sample_offset),
        np.arange(B, dtype=np.uint64) + np.uint64(row_offset),
        np.arange(quads, dtype=np.uint64),
        indexing="ij",
    )
    index = r * np.uint64(quads) + q
    low, high = index & np.uint64(0xFFFFFFFF), index >> np.uint64(32)
    counter = np.stack([low, high, s, np.full_like(s, step)], -1)
    return philox4x32((key & 0xFFFFFFFF, key >> 32), counter)


def uniform(
    noise: Tensor, S: int, B: int, D: int, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """(S, B, D) float64: (x + ½)·2⁻³²."""
    u = (words(noise, S, B, D, row_offset, sample_offset).astype(np.float64) + 0.5) * 2.0**-32
    return torch.from_numpy(u.reshape(S, B, -1)[..., :D].copy())


def normal(
    noise: Tensor, S: int, B: int, D: int, row_offset: int = 0, sample_offset: int = 0
) -> Tensor:
    """(S, B, D) float64: Box–Muller of the uniforms of each quad."""
    u = (words(noise, S, B, D, row_offset, sample_offset).astype(np.float64) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2.0 * np.log(u[..., 0::2])), 2.0 * np.pi * u[..., 1::2]
    n = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)  # (S, B, quads, 2, 2)
    return torch.from_numpy(n.reshape(S, B, -1)[..., :D].copy())


def rsample(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z (S, B, D) float64 from mu, logvar (B, D) and eps (S, B, D)."""
    return mu.double() + torch.exp(0.5 * logvar.double()) * eps.double()


def kl_terms(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL(q ‖ p) of each element, (B, *event) float64; p = N(0, I) if no prior is given.

    expm1 keeps float64's digits at logvar → 0.
    """
    mu, logvar = mu.double(), logvar.double()
    if prior_mu is not None and prior_logvar is not None:
        mu = (mu - prior_mu.double()) * torch.exp(-0.5 * prior_logvar.double())
        logvar = logvar - prior_logvar.double()
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def kl_terms_mc(
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor,
    estimator: str = "total-derivative",
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
) -> Tensor:
    """The mean over S of log q(z|x) − log p(z) of each element, from torch.distributions.

    eps is (S, B, *event), and the result is (B, *event) float64.
    """
    mu, logvar = mu.double(), logvar.double()
    z = rsample(mu, logvar, eps)
    if estimator == "sticking-the-landing":
        mu, logvar = mu.detach(), logvar.detach()
    at = torch.zeros_like(mu) if prior_mu is None else prior_mu.double()
    log_variance = torch.zeros_like(mu) if prior_logvar is None else prior_logvar.double()
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    p = torch.distributions.Normal(at, torch.exp(0.5 * log_variance), validate_args=False)
    return (q.log_prob(z) - p.log_prob(z)).mean(0)


def reduced(terms: Tensor, reduce: str) -> Tensor:
    """A KL of each element, (B, *event), reduced as the latent ops do."""
    if reduce == "sum":
        return terms.flatten(1).sum(1)
    if reduce == "channels":
        return terms.flatten(2).sum(2) if terms.dim() > 2 else terms
    return terms.mean(0) if reduce == "batch-mean" else terms


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """(B,) float64."""
    return kl_terms(mu, logvar).sum(1)


def kl_standard_normal_mc(
    mu: Tensor, logvar: Tensor, eps: Tensor, estimator: str = "total-derivative"
) -> Tensor:
    """(B,) float64."""
    return kl_terms_mc(mu, logvar, eps, estimator).sum(1)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """(S, B) float64 from logits (S, B, P) and x (B, P); log sigmoid(−l) is −softplus(l)."""
    logits, x = logits.double(), x.double()
    return (x * logits + torch.nn.functional.logsigmoid(-logits)).sum(2)


def mixture_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, leave_out: Tensor | None = None
) -> Tensor:
    """(M,) float64 from z (M, D), mu and logvar (N, D), one z at a time."""
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    rows = []
    for m, point in enumerate(z):
        squares = (point - mu).square() * torch.exp(-logvar)
        log_q = -0.5 * (squares + logvar + np.log(2.0 * np.pi)).sum(1)
        if leave_out is not None:
            log_q = log_q[torch.arange(len(mu), device=mu.device) != leave_out[m]]
        rows.append(torch.logsumexp(log_q, 0) - np.log(len(log_q)))
    return torch.stack(rows) if rows else z.sum(1)


def importance_log_weights(
    decoder: Callable[[Tensor], Tensor], mu: Tensor, logvar: Tensor, x: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(x, z)/q(z|x) and log p(x|z), (S, B) float64, from a float64 decoder and eps (S, B, D).

    logsumexp over S of the first, minus log S, estimates log p(x) (Burda et al. 2016, eq. 8).
    """
    mu, logvar = mu.double(), logvar.double()
    z = rsample(mu, logvar, eps)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    log_prob = bernoulli_log_prob(decoder(z), x)
    return log_prob + (p.log_prob(z) - q.log_prob(z)).sum(2), log_prob
