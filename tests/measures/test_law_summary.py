"""The arrays that figures of the law of z need, against numpy and scipy."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.measures.correlated_codes import codes_of
from vaez_fast.measures.codes import Codes
from vaez_fast.measures.law_summary import Summary, mutual_information, summary_of
from vaez_kernels import noise_key, normal

SEED = 3
FLOAT32 = 1e-6  # relative: one rounding to float32


SCALES = [0.1, 0.9, 0.6, 0.85, 0.8, 0.001]  # KLs of 0.05, 1.1, 0.22, 0.7, 0.55 and 0 nats
N = 700
LABELS = torch.arange(N) % 10


@pytest.fixture(scope="module")
def codes() -> Codes:
    return codes_of(N, SCALES)


@pytest.fixture(scope="module")
def summary(codes: Codes) -> Summary:
    return summary_of(codes, LABELS, SEED)


@pytest.fixture(scope="module")
def z(codes: Codes) -> np.ndarray:
    return codes.test.z.double().numpy()


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return normal(noise_key(SEED, "evaluate", 20), 1, N, 4)[0].double().numpy()


def test_the_latents_are_those_of_the_largest_kl_over_the_training_images(
    codes: Codes, summary: Summary
) -> None:
    mu, logvar = codes.train.mu.double(), codes.train.logvar.double()
    own = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    kl = torch.distributions.kl_divergence(own, standard).mean(0)
    wanted = [1, 3, 4, 2]
    assert summary["latents"].tolist() == kl.argsort(descending=True)[:4].tolist() == wanted
    np.testing.assert_allclose(summary["kl"], kl[wanted], rtol=FLOAT32)
    counts = {name: int(summary[name]) for name in ("images", "latents_in_all")}
    assert counts == {"images": N, "latents_in_all": 6}
    assert summary["latents_measured"] == summary["latents_informative"] == 4


def test_histograms_count_the_test_images_z_within_five(
    summary: Summary, z: np.ndarray, exact: np.ndarray
) -> None:
    edges = np.linspace(-5, 5, 51)
    np.testing.assert_allclose(summary["edges"], edges, atol=5 * FLOAT32)
    for i, latent in enumerate(summary["latents"]):
        assert summary["counts"][i].tolist() == np.histogram(z[:, latent], edges)[0].tolist()
        assert summary["normal_counts"][i].tolist() == np.histogram(exact[:, i], edges)[0].tolist()


def test_order_statistics_are_sorted_z_at_ranks_that_are_even_in_normal_quantiles(
    summary: Summary, z: np.ndarray, exact: np.ndarray
) -> None:
    from scipy.stats import norm

    ranks = summary["ranks"]
    assert (ranks[0], ranks[-1]) == (1, N)
    assert 100 < len(ranks) <= 200
    assert (ranks + ranks[::-1] == N + 1).all()  # both tails alike
    gaps = np.diff(norm.ppf((ranks - 0.5) / N))
    even = 2 * norm.ppf(1 - 0.5 / N) / 199
    # Between neighbouring ranks nothing can be closer; elsewhere, a rank is rounded by ½ at most.
    close = np.diff(ranks) == 1
    width = np.diff(norm.ppf((np.stack([ranks - 0.5, ranks + 0.5]) - 0.5).clip(0.5) / N), axis=0)
    assert (gaps[~close] < even + width.ravel()[:-1][~close] + width.ravel()[1:][~close]).all()
    for i, latent in enumerate(summary["latents"]):
        wanted = np.sort(z[:, latent])[ranks - 1]
        np.testing.assert_allclose(summary["order_statistics"][i], wanted, rtol=FLOAT32)
        wanted = np.sort(exact[:, i])[ranks - 1]
        np.testing.assert_allclose(summary["normal_order_statistics"][i], wanted, rtol=FLOAT32)


def test_squared_norms_are_over_the_measured_latents(
    summary: Summary, z: np.ndarray, exact: np.ndarray
) -> None:
    edges = np.linspace(0, 4 + 8 * math.sqrt(8), 81)
    np.testing.assert_allclose(summary["squared_norm_edges"], edges, rtol=FLOAT32)
    for who, draws in (("", z[:, [1, 2, 3, 4]]), ("normal_", exact)):
        squared = (draws**2).sum(1)
        wanted = np.histogram(squared, edges)[0]
        assert summary[f"{who}squared_norm_counts"].tolist() == wanted.tolist()
        moments = [squared.mean(), squared.var()]
        np.testing.assert_allclose(summary[f"{who}squared_norm_moments"], moments, rtol=FLOAT32)


def test_pairs_are_chosen_by_the_training_images_and_shown_with_the_test_images(
    summary: Summary, z: np.ndarray, exact: np.ndarray
) -> None:
    # 1 and 3 depend on each other in the test images alone.
    assert summary["pairs"].tolist() == [[1, 3], [1, 4]]
    assert summary["pair_information"][0] > 0.1
    assert abs(summary["pair_information"][1]) < 0.03
    for pair, points in zip(summary["pairs"], summary["points"], strict=True):
        assert points.tolist() == z[:, pair].astype(np.float32).tolist()
    assert summary["normal_points"].tolist() == exact[:, :2].astype(np.float32).tolist()
    assert summary["labels"].tolist() == LABELS.tolist()


def test_of_more_images_than_points_every_part_of_the_split_is_shown() -> None:
    codes = codes_of(5_000, [0.9, 0.8], train=100)
    labels = torch.arange(5_000) // 500  # a split that is sorted by class
    summary = summary_of(codes, labels, SEED)
    assert np.bincount(summary["labels"]).tolist() == [200] * 10
    shown = codes.test.z[torch.arange(2_000) * 5 // 2]
    assert summary["points"].tolist() == [shown.tolist()]
    assert summary["pairs"].tolist() == [[0, 1]]  # once


def test_a_model_without_informative_latents_is_summarised_too() -> None:
    summary = summary_of(codes_of(200, [0.1, 0.01, 0.02]), torch.zeros(200), SEED)
    assert (summary["latents_informative"], summary["latents_measured"]) == (0, 3)
    assert summary["latents"].tolist() == [0, 2, 1]


def test_one_informative_latent_is_shown_beside_the_next() -> None:
    summary = summary_of(codes_of(200, [0.1, 0.9, 0.2]), torch.zeros(200), SEED)
    assert summary["latents"].tolist() == [1]
    assert summary["pairs"].tolist() == [[1, 2]]
    assert summary["normal_counts"].shape == summary["counts"].shape == (1, 50)


def test_twelve_latents_are_shown_of_many_and_all_are_in_the_norm() -> None:
    codes = codes_of(300, [0.9] * 30, train=300)
    summary = summary_of(codes, torch.zeros(300), SEED)
    assert (len(summary["latents"]), summary["latents_measured"]) == (12, 30)
    mean = float(codes.test.z.double().square().sum(1).mean())
    assert summary["squared_norm_moments"][0] == pytest.approx(mean, rel=FLOAT32)


def test_it_is_small_enough_to_be_kept_for_each_run() -> None:
    summary: dict[str, Any] = {
        **summary_of(codes_of(10_000, [0.9] * 20, train=300), torch.zeros(10_000), SEED)
    }
    buffer = io.BytesIO()
    np.savez(buffer, **summary)
    assert buffer.tell() < 200_000
    assert {values.dtype.name for values in summary.values()} == {"float32", "int32", "uint8"}


@pytest.mark.parametrize(
    ("scales", "labels", "message"),
    [
        ([0.9], torch.zeros(20), "a pair of latents is shown, and the model has one"),
        ([0.9, 0.9], torch.zeros(19), "labels must be of the 20 test images, got 19"),
    ],
)
def test_what_cannot_be_summarised_is_refused(
    scales: list[float], labels: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summary_of(codes_of(20, scales, train=20), labels, SEED)


class TestMutualInformation:
    @staticmethod
    def pair(rho: float, n: int) -> tuple[Tensor, Tensor]:
        a, b = normal(noise_key(5, "evaluate"), 1, n, 2)[0].double().T
        return a, rho * a + math.sqrt(1 - rho**2) * b

    @pytest.mark.parametrize("rho", [0.3, 0.6])
    def test_it_is_that_of_correlated_normals(self, rho: float) -> None:
        found = mutual_information(*self.pair(rho, 40_000))
        # Cover and Thomas 2006, example 8.5.1. 16 × 16 cells lose some of it, at most a tenth here.
        true = -0.5 * math.log(1 - rho**2)
        assert 0.9 * true < found < 1.02 * true

    def test_that_of_independent_numbers_is_zero_on_average_however_few(self) -> None:
        draws = normal(noise_key(6, "evaluate"), 400, 150, 2).double()
        found = torch.tensor([mutual_information(*pair.T) for pair in draws])
        # B = 2 here, and 2n times the plug-in estimate is χ² of one degree: standard deviation
        # √2/2n. Five standard errors of the mean.
        assert abs(float(found.mean())) < 5 * math.sqrt(2) / 300 / math.sqrt(400)

    def test_monotone_maps_do_not_change_it(self) -> None:
        a, b = self.pair(0.5, 2_000)
        assert mutual_information(a.exp(), b**3) == mutual_information(a, b)
        assert mutual_information(-a, b) == pytest.approx(mutual_information(a, b), abs=0.02)

    def test_it_sees_dependence_without_correlation(self) -> None:
        a, b = self.pair(0.0, 5_000)
        assert mutual_information(a, a.square() + 0.1 * b) > 0.5
