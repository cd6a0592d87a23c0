"""Ten million numbers of the stream against the distribution of independent normals.

For a correct stream each statistic exceeds its limit with probability 1e-3 (at most, where a bound
is used). There are 34 statistics, so a new key fails one of them once in 30 tries. The keys are
fixed, so a test that passes once always passes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from vaez_kernels import PURPOSES, noise_key, normal, rsample, uniform

KEY = noise_key(7, "generate", 3)
SHAPE = (10, 10_000, 100)

NORMAL_LIMIT = 3.2905  # of |N(0, 1)|
KOLMOGOROV_LIMIT = 1.9495  # 2 exp(−2x²) = 1e-3


@pytest.fixture(scope="module")
def normals() -> Tensor:
    return normal(KEY, *SHAPE)


def _beyond(x: float) -> float:
    """P(N(0, 1) > x)."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def _chi_square_p(observed: Tensor, wanted: Tensor) -> float:
    """The probability of counts this far from `wanted`, which has the same sum as `observed`."""
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def _kolmogorov_smirnov(cdf: Tensor) -> float:
    """√n times the largest distance between the empirical and the uniform distribution."""
    ranked = cdf.flatten().sort().values.double()
    steps = torch.arange(len(ranked) + 1, dtype=torch.float64) / len(ranked)
    distance = max((ranked - steps[:-1]).max().item(), (steps[1:] - ranked).max().item())
    return math.sqrt(len(ranked)) * distance


def test_the_law_is_the_normal_one(normals: Tensor) -> None:
    # Sort in float32 first: the cumulative distribution function keeps the order.
    ranked = normals.flatten().sort().values.double()
    assert _kolmogorov_smirnov(torch.special.ndtr(ranked)) < KOLMOGOROV_LIMIT


def test_uniforms_are_uniform() -> None:
    assert _kolmogorov_smirnov(uniform(KEY, *SHAPE)) < KOLMOGOROV_LIMIT


def test_the_first_six_moments_are_a_normals(normals: Tensor) -> None:
    n = normals.double()
    # The mean of xᵏ, (k − 1)!! for even k, and its variance, which follows from the 2k-th moment.
    moments = [(0, 1), (1, 2), (0, 15), (3, 96), (0, 945), (15, 10_170)]
    for k, (mean, variance) in enumerate(moments, start=1):
        score = ((n**k).mean().item() - mean) / math.sqrt(variance / n.numel())
        assert abs(score) < NORMAL_LIMIT, f"moment {k}: {score:.2f} standard deviations"


@pytest.mark.parametrize("sign", [1, -1])
def test_tails_beyond_4_sigma_hold_as_much_as_they_should(normals: Tensor, sign: int) -> None:
    edges = [4.0, 4.2, 4.4, 4.6, 4.8, 5.0]  # three numbers are expected beyond the last
    tail = (sign * normals).flatten()
    tail = tail[tail > edges[0]]
    above = [float((tail > edge).sum()) for edge in edges] + [0.0]
    wanted = [normals.numel() * _beyond(edge) for edge in edges] + [0.0]
    observed = [normals.numel() - above[0], *(a - b for a, b in pairwise(above))]
    expected = [normals.numel() - wanted[0], *(a - b for a, b in pairwise(wanted))]
    counts = (torch.tensor(x, dtype=torch.float64) for x in (observed, expected))
    assert _chi_square_p(*counts) > 1e-3


@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_are_uncorrelated_in_every_direction(normals: Tensor, power: int) -> None:
    # Also squares: only they would show that two numbers share a radius.
    later = normal(noise_key(7, "generate", 4), *SHAPE)
    n, later = ((x - x.mean()) / x.std() for x in (normals**power, later**power))
    pairs = {f"columns {k} apart": (n[..., k:], n[..., :-k]) for k in (1, 2, 3, 4, 8, 50)}
    pairs |= {f"rows {k} apart": (n[:, k:], n[:, :-k]) for k in (1, 2, 4096)}
    pairs |= {"samples": (n[1:], n[:-1]), "steps": (n, later)}
    for name, (one, other) in pairs.items():
        score = (one * other).sum(dtype=torch.float64).item() / math.sqrt(one.numel())
        assert abs(score) < NORMAL_LIMIT, f"{name}: {score:.2f} standard deviations"


def test_no_two_of_a_thousand_rows_are_correlated() -> None:
    rows, columns = 1000, 10_000
    n = normal(KEY, 1, rows, columns)[0]
    products = (n @ n.T) / math.sqrt(columns)
    pairs = products[torch.ones(rows, rows).triu(1) > 0].double()
    # Bonferroni's bound on the largest of 499,500: each exceeds 6.2 with probability 5.6e-10.
    assert pairs.abs().max().item() < 6.2
    # Products of normals: the mean of the square is 1 and its variance 2 + O(1 / columns).
    score = ((pairs**2).mean().item() - 1) / math.sqrt(2 / len(pairs))
    assert abs(score) < NORMAL_LIMIT


def test_purposes_seeds_and_steps_share_no_quad() -> None:
    # A single number has 24 bits and recurs by chance. A quad has 96 bits: among 1.4 million quads
    # the probability is 1e-17.
    keys = [noise_key(7, purpose, 3) for purpose in PURPOSES]
    keys += [noise_key(8, "train", 3), noise_key(7, "train", 4)]
    quads = np.concatenate([uniform(key, 4, 2_500, 68).numpy().reshape(-1, 4) for key in keys])
    words = np.ascontiguousarray(quads).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    ranked = words[order]
    assert len(ranked) == 8 * 4 * 2_500 * 17
    assert not (ranked[1:] == ranked[:-1]).all(axis=1).any()


def test_backward_differentiates_at_the_noise_that_forward_drew() -> None:
    # At mu = logvar = 0, z is eps and dz/dlogvar is eps/2, both exactly.
    mu, logvar = torch.zeros(2, 1000, 100).unbind()
    z = rsample(mu, logvar.requires_grad_(), KEY, 3, row_offset=11, sample_offset=5)
    assert torch.equal(z, normal(KEY, 3, 1000, 100, row_offset=11, sample_offset=5))
    for sample in range(3):
        (grad,) = torch.autograd.grad(z[sample].sum(), logvar, retain_graph=True)
        assert torch.equal(grad, 0.5 * z[sample])
