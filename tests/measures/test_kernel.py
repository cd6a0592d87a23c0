"""The kernel distance, compared with torchmetrics, all pairs and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from vaez_fast.measures.kernel import kernel_distance, kernel_sums
from vaez_kernels import noise_key, normal


def draws(n: int, d: int, step: int) -> Tensor:
    return normal(noise_key(0, "evaluate", step), 1, n, d)[0].double()


def distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    return kernel_distance([kernel_sums(a)], [kernel_sums(b)])


def cubic_mmd_of_shift(square: float, d: int) -> float:
    """MMD² under (xᵀy/d + 1)³ of N(0, I_d) and N(δ, I_d), |δ|² = square, from their moments."""
    return 3 * square / d + 3 * square**2 / d**2 + cubic_moment(square, d) / d**3


def cubic_moment(square: float, d: int) -> float:
    """E[(xᵀy)³] of two draws of N(δ, I_d), from xᵀy ~ N(δᵀy, |y|²) for a given y."""
    return square**3 + 6 * square**2 + 3 * d * square + 6 * square


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_the_distance_of_a_shift_is_known_and_its_error_is_its_deviation(shift: float) -> None:
    d, repeats = 4, 60
    found = [distance(draws(300, d, 2 * i) + shift, draws(300, d, 2 * i + 1)) for i in range(60)]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    truth = cubic_mmd_of_shift(d * shift**2, d)
    # Five standard errors of independent repeats. It is unbiased, so without a shift some values
    # are negative.
    assert abs(float(values.mean()) - truth) <= 5 * float(values.std()) / math.sqrt(repeats)
    assert shift > 0 or bool((values < 0).any())
    # Root mean squares over 60 repeats; the jackknife of equal laws is too large by √2.
    ratio = float(errors.square().mean().sqrt() / values.std())
    assert (0.7 if shift else 1.1) < ratio < (1.4 if shift else 1.8)


def test_the_distance_is_that_of_torchmetrics_with_all_features() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(nn.Module):
        num_features = 6

        def forward(self, features: Tensor) -> Tensor:
            return features

    a, b = draws(61, 6, 1) + 0.2, draws(61, 6, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=61)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert distance(a, b)[0] == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def all_pairs(a: Tensor, b: Tensor) -> float:
    """MMD² under (xᵀy/d + 1)³ from all pairs of different features."""
    d, total = a.shape[1], 0.0
    for x in (a, b):
        kernel = (x @ x.T / d + 1) ** 3
        total += float(kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))
    return total - 2 * float(((a @ b.T / d + 1) ** 3).mean())


def test_the_distance_is_over_all_pairs_and_the_error_by_leaving_parts_out() -> None:
    a, b = draws(93, 5, 3) + 0.2, draws(61, 5, 4)
    value, error = distance(a, b)
    assert value == pytest.approx(all_pairs(a, b), rel=1e-9)

    def without(x: Tensor, part: int) -> Tensor:
        return x[torch.arange(len(x)) % 10 != part]

    left = [all_pairs(without(a, part), without(b, part)) for part in range(10)]
    spread = torch.tensor(left, dtype=torch.float64).std(correction=0)
    assert error == pytest.approx(3 * float(spread), rel=1e-9)


def test_several_networks_share_their_images_in_mean_and_error() -> None:
    a, b = draws(93, 5, 3) + 0.2, draws(61, 5, 4)
    sums = [(kernel_sums(scale * a), kernel_sums(scale * b)) for scale in (1.0, 1.5)]
    first, second = (kernel_distance([x], [y]) for x, y in sums)
    both = kernel_distance([x for x, _ in sums], [y for _, y in sums])
    assert both[0] == pytest.approx((first[0] + second[0]) / 2)
    # The networks see the same images, so the errors do not cancel as independent ones do.
    assert both[1] > 1.1 * math.hypot(first[1], second[1]) / 2
    assert both[1] <= (first[1] + second[1]) / 2 * (1 + 1e-9)


def test_features_of_any_dtype_are_summed_in_float64() -> None:
    a, b = draws(50, 3, 5).float(), draws(50, 3, 6).float()
    assert kernel_sums(a).phi.dtype == torch.float64
    assert distance(a, b) == distance(a.double(), b.double())


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least 20, got 19"):
        kernel_sums(draws(19, 2, 1))
