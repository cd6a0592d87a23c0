"""What figures of the law of z need: at most 200 kB of numbers of a run, from its held-out z.

The z are those of the test images, one an image. The training images decide which latents and pairs
are shown, so what the test images show of these is not the result of a choice among noise.
Exact normal draws, as many and of as many dimensions, are summarised in the same way beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vaez_kernels import normal

from ..streams import EXACT_NORMALS
from .codes import Codes

Summary = Mapping[str, np.ndarray]

SHOWN = 12  # latents
POINTS = 2_000
EDGES = np.linspace(-5.0, 5.0, 51)
RANKS = 200
SHELL_BINS = 80
# Standard deviations of χ² above its mean up to which |z|² is counted.
SHELL_REACH = 8.0
# Images for each cell of a table of two latents, at least, and cells on a side.
IN_A_CELL, MOST_CELLS = 25, 16


def summary_of(codes: Codes, labels: Tensor, seed: int) -> dict[str, np.ndarray]:
    """The arrays that `vaez_fast.drawing.latents` draws, float32 unless said otherwise.

    With n test images, d measured latents, s = min(d, 12) of them shown, p = 1 or 2 pairs,
    r ≤ 200 ranks and m = min(n, 2,000) points:

    - `images` n, `latents_measured` d, `latents_in_all` D, `latents_informative`: () int32.
    - `latents` (s,) int32 and `kl` (s,): the measured latents of the largest KL, largest first, and
      that KL over the training images in nats.
    - `edges` (51,) and `counts` (s, 51 − 1): histograms of z_j from −5 to 5; what is outside is not
      counted.
    - `ranks` (r,) int32 and `order_statistics` (s, r): the k-th smallest of the n values of z_j for
      these k from 1 to n, evenly spaced in normal quantiles.
    - `squared_norm_edges` (81,), `squared_norm_counts` (80,): the histogram of |z|² over all d
      measured latents; `squared_norm_moments` (2,): its mean and variance; N(0, I) has d and 2d.
    - `pairs` (p, 2) int32: the two latents of the largest KL, and the shown pair that is the most
      dependent one, unless it is the same. `pair_information` (p,): their mutual information in
      nats. `points` (p, m, 2) and `labels` (m,) uint8: z and class of images spread over the split.
    - `normal_counts`, `normal_order_statistics`, `normal_squared_norm_counts`,
      `normal_squared_norm_moments`, `normal_points` (m, 2): the same of draws of N(0, I).

    Args:
        codes: of a model with at least two latents.
        labels: (n,) integers below 256, the classes of the test images.
        seed: of the exact normals, the run's own.

    Raises:
        ValueError: another number of labels than of test images, or a model of one latent.
    """
    n, latents_in_all = codes.test.z.shape
    if len(labels) != n:
        raise ValueError(f"summary_of: labels must be of the {n} test images, got {len(labels)}")
    if latents_in_all < 2:
        raise ValueError("summary_of: a pair of latents is shown, and the model has one")
    measured = codes.measured()
    by_kl = codes.kl.argsort(descending=True, stable=True)
    shown = by_kl[: min(len(measured), SHOWN)]
    z = codes.test.z
    key = EXACT_NORMALS.key(seed, device=z.device)
    # Two columns at least: the points of a pair.
    exact = normal(key, 1, n, max(len(measured), 2))[0]

    pairs = [tuple(by_kl[:2].tolist())]
    if len(shown) > 2 and set(dependent := _most_dependent(codes.train.z, shown)) != set(pairs[0]):
        pairs.append(dependent)
    spread = torch.arange(min(n, POINTS), device=z.device) * n // min(n, POINTS)
    ranks = _ranks(n)
    edges = _squared_norm_edges(len(measured))
    found = {
        "kl": codes.kl[shown],
        "edges": EDGES,
        "counts": _counts(z[:, shown]),
        "order_statistics": _order_statistics(z[:, shown], ranks),
        "squared_norm_edges": edges,
        **_squared_norm("squared_norm", z[:, measured], edges),
        "pair_information": [mutual_information(z[:, a], z[:, b]) for a, b in pairs],
        "points": [z[spread][:, list(pair)].cpu().numpy() for pair in pairs],
        "normal_counts": _counts(exact[:, : len(shown)]),
        "normal_order_statistics": _order_statistics(exact[:, : len(shown)], ranks),
        **_squared_norm("normal_squared_norm", exact[:, : len(measured)], edges),
        "normal_points": exact[spread, :2],
    }
    integers = {
        "images": n,
        "latents_in_all": latents_in_all,
        "latents_measured": len(measured),
        "latents_informative": len(codes.informative()),
        "latents": shown,
        "ranks": ranks,
        "pairs": pairs,
    }
    return {
        **{name: _array(value, np.int32) for name, value in integers.items()},
        **{name: _array(value, np.float32) for name, value in found.items()},
        "labels": _array(labels.to(z.device)[spread], np.uint8),
    }


def mutual_information(a: Tensor, b: Tensor) -> float:
    """I(a; b) in nats of n pairs of real numbers, each (n,); invariant under monotone maps of each.

    The plug-in estimate of a table of B × B cells of equal marginal counts, at least 25 pairs a
    cell and B ≤ 16, less its bias (B − 1)²/2n for independent a and b (Miller, "Note on the bias of
    information estimates", 1955). It may be slightly negative. A table cannot show more than log B.
    """
    n = len(a)
    cells = int(min(max((n / IN_A_CELL) ** 0.5, 2), MOST_CELLS))
    row, column = (_rank(values) * cells // n for values in (a, b))
    table = torch.bincount(row * cells + column, minlength=cells * cells).double() / n
    table = table.view(cells, cells)
    independent = table.sum(1, keepdim=True) * table.sum(0)
    occupied = table > 0
    plug_in = (table[occupied] * (table[occupied] / independent[occupied]).log()).sum()
    return float(plug_in) - (cells - 1) ** 2 / (2 * n)


def _rank(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort(stable=True)


def _most_dependent(z: Tensor, among: Tensor) -> tuple[int, int]:
    latents = among.tolist()
    pairs = [(a, b) for i, a in enumerate(latents) for b in latents[i + 1 :]]
    return max(pairs, key=lambda pair: mutual_information(z[:, pair[0]], z[:, pair[1]]))


def _counts(z: Tensor) -> np.ndarray:
    return np.stack([np.histogram(column, EDGES)[0] for column in _float64(z).T])


def _ranks(n: int) -> np.ndarray:
    """At most 200 ranks from 1 to n, evenly spaced in Φ⁻¹((k − ½)/n) as far as ranks allow."""
    end = torch.special.ndtri(torch.tensor(1.0 - 0.5 / n, dtype=torch.float64)).item()
    scores = torch.linspace(-end, end, min(n, RANKS), dtype=torch.float64)
    ranks = (n * torch.special.ndtr(scores) + 0.5).round().clamp(1, n)
    return ranks.long().unique().numpy()


def _order_statistics(z: Tensor, ranks: np.ndarray) -> np.ndarray:
    return np.sort(_float64(z), 0)[ranks - 1].T


def _squared_norm_edges(d: int) -> np.ndarray:
    return np.linspace(0.0, d + SHELL_REACH * (2 * d) ** 0.5, SHELL_BINS + 1)


def _squared_norm(name: str, z: Tensor, edges: np.ndarray) -> dict[str, np.ndarray]:
    squared = np.square(_float64(z)).sum(1)
    return {
        f"{name}_counts": np.histogram(squared, edges)[0],
        f"{name}_moments": np.array([squared.mean(), squared.var()]),
    }


def _float64(z: Tensor) -> np.ndarray:
    return z.double().cpu().numpy()


def _array(values: object, dtype: type[np.generic]) -> np.ndarray:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=dtype)
