"""Mixtures of full-covariance Gaussians, fitted to 50,000 codes by expectation-maximisation.

A component's log-density is linear in the features [z_i z_j (i ≤ j), z, 1]. So an E step is one
matrix product, features × coefficients, and an M step another, responsibilitiesᵀ × features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows import LOG_2PI
from .densities import GaussianMixture

COMPONENTS = (10, 50, 200)
# A component needs this many codes, and twice as many as it has parameters. Only the smallest
# mixture is fitted with fewer codes than that.
CODES_A_COMPONENT = 20
# Added to variances, as by scikit-learn: a component on a few equal codes keeps a density.
FLOOR = 1e-6
MOST_ITERATIONS = 100
TOLERANCE = 1e-4  # nats
STARTED_ON = 10_000
KMEANS_ITERATIONS = 10
# Elements of a block of features and responsibilities: 16 MB of float64.
BLOCK = 1 << 21


def supported(components: int, N: int, d: int) -> bool:
    """Whether N codes of d latents are enough to fit so many components."""
    parameters = (d + 1) * (d + 2) // 2
    return components * max(CODES_A_COMPONENT, 2 * parameters) <= N


def fit_mixtures(z: Tensor, validation_z: Tensor) -> dict[int, GaussianMixture]:
    """The mixtures of `COMPONENTS` that the codes z (N, d) support, by number of components.

    The smallest is always among them.

    Raises:
        ValueError: fewer codes than 20 for each component of the smallest.
    """
    smallest, *others = COMPONENTS
    if len(z) < smallest * CODES_A_COMPONENT:
        raise ValueError(
            f"fit_mixtures: {smallest} components need {smallest * CODES_A_COMPONENT} draws, "
            f"got {len(z)}"
        )
    fitted = (smallest, *(K for K in others if supported(K, *z.shape)))
    return {K: fit_components(z, validation_z, K) for K in fitted}


def fit_components(z: Tensor, validation_z: Tensor, K: int, seed: int = 0) -> GaussianMixture:
    """The mixture of K components by expectation-maximisation from scikit-learn's k-means.

    Args:
        z: (N, d), N ≥ K: the codes whose likelihood is maximised.
        validation_z: (V, d): iteration stops when their mean log density no longer rises. With 200
            components on 50,000 codes that is long before the likelihood converges.
        seed: k-means' random_state; k-means sees the first 10,000 rows.
    """
    from sklearn.cluster import KMeans

    first = z[:STARTED_ON].double()
    means = KMeans(K, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
    clusters = means.fit_predict(first.cpu().numpy())
    own = torch.as_tensor(clusters, dtype=torch.int64, device=z.device)
    shares = torch.nn.functional.one_hot(own, K).double()
    centre = first.mean(0)
    start = _maximised(shares.T @ _features(first - centre), centre)
    return maximise_likelihood(z, validation_z, start)


def maximise_likelihood(
    z: Tensor,
    watched_z: Tensor,
    start: GaussianMixture,
    iterations: int = MOST_ITERATIONS,
    tolerance: float = TOLERANCE,
) -> GaussianMixture:
    """Expectation-maximisation (Bishop 2006, section 9.2.2), stopped by the codes `watched_z`.

    Args:
        z: (N, d), whose likelihood rises in each iteration.
        watched_z: (V, d).
        iterations: at most so many.
        tolerance: nats; iteration stops when the mean log density of `watched_z` rises by less.

    Returns:
        The last mixture under which the density of `watched_z` rose.
    """
    z = z.double()
    centre = z.mean(0)  # centred features cancel less
    features = [_features(rows) for rows in (z - centre).split(_rows(start))]
    mixture, before = start, float(start.log_prob(watched_z).mean())
    for _ in range(iterations):
        coefficients = _coefficients(mixture, centre)
        total = torch.zeros_like(coefficients.T)
        for block in features:
            total += torch.softmax(block @ coefficients, 1).T @ block
        after = _maximised(total, centre)
        now = float(after.log_prob(watched_z).mean())
        if now < before + tolerance:
            return after if now > before else mixture
        mixture, before = after, now
    return mixture


def _rows(mixture: GaussianMixture) -> int:
    K, d = mixture.means.shape
    return max(1, BLOCK // (K + d * (d + 3) // 2 + 1))


def _features(z: Tensor) -> Tensor:
    # (n, d) → (n, F), F = d (d + 1)/2 + d + 1
    i, j = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
    return torch.cat([z[:, i] * z[:, j], z, torch.ones_like(z[:, :1])], 1)


def _coefficients(mixture: GaussianMixture, centre: Tensor) -> Tensor:
    # → (F, K), so that features @ coefficients is log weight_k + log N(z; mean_k, L_k L_kᵀ)
    d = len(centre)
    means = mixture.means - centre
    precision = torch.cholesky_inverse(mixture.factors)
    linear = (precision @ means[:, :, None])[:, :, 0]
    log_det = mixture.factors.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = mixture.weights.log() - log_det - 0.5 * d * LOG_2PI - 0.5 * (linear * means).sum(1)
    i, j = torch.triu_indices(d, d, device=centre.device)
    twice = torch.where(i == j, 0.5, 1.0).to(centre)  # z_i z_j stands for z_j z_i, too
    return torch.cat([-precision[:, i, j] * twice, linear, constant[:, None]], 1).T.contiguous()


def _maximised(total: Tensor, centre: Tensor) -> GaussianMixture:
    # total (K, F): each component's sums of the features
    d = len(centre)
    count = total[:, -1] + 10 * torch.finfo(total.dtype).eps
    means = total[:, -1 - d : -1] / count[:, None]
    i, j = torch.triu_indices(d, d, device=total.device)
    covariance = total.new_zeros(len(total), d, d)
    covariance[:, i, j] = total[:, : len(i)] / count[:, None] - means[:, i] * means[:, j]
    covariance[:, j, i] = covariance[:, i, j]
    covariance.diagonal(dim1=1, dim2=2).add_(FLOOR)
    factors = torch.linalg.cholesky(covariance)
    return GaussianMixture(count / count.sum(), means + centre, factors)
