"""Expectation-maximisation against scikit-learn's, and the number of components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from vaez_fast.measures import mixtures
from vaez_fast.measures.densities import GaussianMixture
from vaez_fast.measures.mixtures import fit_components, fit_mixtures, maximise_likelihood
from vaez_kernels import noise_key, normal


def clusters(n: int, seed: int) -> Tensor:
    """Five clusters in three dimensions, off centre, (n, 3)."""
    eps = normal(noise_key(seed, "evaluate"), 1, n, 3)[0]
    centre = 8 * normal(noise_key(99, "evaluate"), 1, 5, 3)[0]
    return 20 + centre[torch.arange(n) % 5] + eps * torch.tensor([0.3, 1.0, 2.0])


@pytest.mark.parametrize("iterations", [1, 7])
def test_each_iteration_is_scikit_learns(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = clusters(900, 1)
    points = z.double().numpy()
    means = points[:4] + 0.1
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    precisions = np.stack([np.eye(3) * p for p in (0.5, 1.0, 1.5, 2.0)])
    theirs = Reference(
        4, max_iter=iterations, tol=0, means_init=means, weights_init=weights,
        precisions_init=precisions,
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        theirs.fit(points)
    factors = torch.linalg.cholesky(torch.linalg.inv(torch.from_numpy(precisions)))
    start = GaussianMixture(torch.from_numpy(weights), torch.from_numpy(means), factors)
    monkeypatch.setattr(mixtures, "BLOCK", 2_000)  # several blocks of rows
    ours = maximise_likelihood(z, z, start, iterations, tolerance=-torch.inf)
    # Sums of 900 terms in float64, in another order.
    assert np.allclose(ours.weights, theirs.weights_, rtol=1e-7)
    assert np.allclose(ours.means, theirs.means_, rtol=1e-7)
    assert np.allclose(ours.factors @ ours.factors.mT, theirs.covariances_, rtol=1e-6, atol=1e-8)
    assert float(ours.log_prob(z).mean()) == pytest.approx(theirs.score(points), abs=1e-9)


def test_as_many_components_as_clusters_explain_codes_as_well_as_scikit_learns() -> None:
    z, held_out = clusters(2_000, 1), clusters(2_000, 2)
    ours = fit_components(z, held_out, 5)
    theirs = Reference(5, random_state=0, n_init=3).fit(z.numpy())
    # Both find the five clusters; stopping rules and restarts differ.
    assert float(ours.log_prob(held_out).mean()) == pytest.approx(
        theirs.score(held_out.numpy()), abs=0.02
    )


def test_iteration_stops_before_it_fits_what_other_codes_do_not_have() -> None:
    z, validation, test = clusters(400, 1), clusters(400, 2), clusters(4_000, 3)
    stopped = fit_components(z, validation, 20)
    converged = fit_components(z, z, 20)
    assert converged.log_prob(z).mean() > stopped.log_prob(z).mean()
    assert stopped.log_prob(test).mean() > converged.log_prob(test).mean()


def test_few_codes_get_few_components() -> None:
    assert list(fit_mixtures(clusters(1_000, 1), clusters(100, 2))) == [10, 50]
    assert list(fit_mixtures(clusters(999, 1), clusters(100, 2))) == [10]
    wide = normal(noise_key(1, "evaluate"), 1, 1_499, 4)[0]
    assert list(fit_mixtures(wide, wide[:100])) == [10]  # 15 parameters a component
    assert list(fit_mixtures(wide.repeat(2, 1)[:1_500], wide[:100])) == [10, 50]
    with pytest.raises(ValueError, match="10 components need 200 draws, got 199"):
        fit_mixtures(clusters(199, 1), clusters(100, 2))


def test_equal_codes_keep_a_density() -> None:
    z = torch.cat([torch.ones(100, 2), clusters(100, 1)[:, :2]])
    fitted = fit_components(z, z, 3)
    assert bool(fitted.log_prob(z).isfinite().all())


def test_the_seed_decides_the_start() -> None:
    z = clusters(500, 1)
    first, again, other = (fit_components(z, z, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)
