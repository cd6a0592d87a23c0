"""How far generated images are from real ones, with a floor and a ceiling for each number.

Images are (N, 784) float32 in [0, 1]. Compare binary samples with binarised images and means (grey)
with grey levels, because binary pixels are far from their means in every metric below. All metrics
also depend on the number of images (`count`, `reference_count`), so floor, ceiling and the compared
sets should have the same number.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vaez_kernels import uniform

from .features import CLASSES, FeatureNet

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
KERNEL_SEED = 0
# 1,000 × 4,000 squared distances are 16 MB.
NEAREST_ROWS, NEAREST_COLUMNS = 1000, 4000


def image_scores(
    generated: Tensor, reference: Tensor, train: Tensor, net: FeatureNet
) -> dict[str, Any]:
    """Scores of one set of generated images.

    Args:
        generated: (N, 784) float32 in [0, 1].
        reference: (M, 784), real images that were not used for training.
        train: (T, 784), the images that the decoder was trained on, binarised in the same way.
        net: from `train_features`, on the images' device.

    Returns:
        count, reference_count: N and M.
        frechet: `frechet_distance` of the features.
        kernel, kernel_spread: `kernel_distance` of the features.
        label_histogram: fractions of the 10 classes that `net` assigns to the generated images.
        label_distance: total variation between it and the reference's, 0 to 1.
        nearest_train: median over the generated images of the distance to the nearest training
            image (`nearest_distance`). If it is well below that of real images, the decoder has
            memorised; grey means are nearer to all images than samples are.
    """
    features, real_features = net.features(generated), net.features(reference)
    kernel, spread = kernel_distance(features, real_features)
    shares = label_shares(net.classes_of(features))
    real_shares = label_shares(net.classes_of(real_features))
    return {
        "count": len(generated),
        "reference_count": len(reference),
        "frechet": frechet_distance(features, real_features),
        "kernel": kernel,
        "kernel_spread": spread,
        "label_histogram": shares.tolist(),
        "label_distance": total_variation(shares, real_shares),
        "nearest_train": float(nearest_distance(generated, train).median()),
    }


def floors(
    real: Tensor,
    reference: Tensor,
    train: Tensor,
    net: FeatureNet,
    noise: Tensor | None = None,
) -> dict[str, dict[str, Any]]:
    """The `image_scores` of real images and of a collapsed decoder's images.

    Args:
        real: (N, 784), other real images that were not used for training, such as the validation
            split; if possible as many as the generated images.
        reference, train, net: as for `image_scores`.
        noise: given if the generated images are binary samples; from
            `noise_key(seed, "generate", …)`.

    Returns:
        "floor": the scores of `real`, the best possible; "ceiling": those of N copies of the mean
        training image, which a decoder that ignores z would show. With `noise` they are binary
        samples of it.
    """
    mean_digit = train.mean(0, keepdim=True).expand(len(real), -1)
    if noise is not None:
        mean_digit = (uniform(noise, 1, *real.shape)[0] < mean_digit).float()
    return {
        "floor": image_scores(real, reference, train, net),
        "ceiling": image_scores(mean_digit, reference, train, net),
    }


class _Given(nn.Module):
    """Passes features that are already computed to torchmetrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a − m_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) of features a (n, d), b (m, d), in float64.

    Heusel et al., "GANs trained by a two time-scale update rule", 2017, equation 6. Finite sets
    have a positive distance even if their distribution is the same.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(a.shape[1]))
    metric.update(a.double().cpu(), real=False)
    metric.update(b.double().cpu(), real=True)
    return float(metric.compute())


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy of features a (n, d), b (m, d), kernel (xᵀy/d + 1)³.

    Bińkowski et al., "Demystifying MMD GANs", 2018, section 4. It is unbiased: if the distributions
    agree, it scatters around 0 and may be negative.

    Returns:
        Mean and standard deviation over 100 pairs of random subsets, of 1,000 features or half of
        the smaller set. Subsets overlap, so the deviation is not a standard error of the mean.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET_SIZE, min(len(a), len(b)) // 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            feature=_Given(a.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size
        )
    metric.update(a.double().cpu(), real=False)
    metric.update(b.double().cpu(), real=True)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the global generator
        torch.manual_seed(KERNEL_SEED)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def label_shares(classes: Tensor) -> Tensor:
    """classes (N,) int64 in 0…9 → their fractions (10,) float64."""
    return classes.bincount(minlength=CLASSES).double() / len(classes)


def total_variation(p: Tensor, q: Tensor) -> float:
    """½ Σ |p − q|: 0 for equal fractions, 1 for disjoint ones."""
    return float(0.5 * (p.double() - q.double()).abs().sum())


def nearest_distance(images: Tensor, train: Tensor) -> Tensor:
    """Euclidean distance in pixels to the nearest of `train`: (N, 784), (T, 784) → (N,) float64.

    |x|² − 2xᵀt + |t|² finds the nearest; its distance is then computed from the difference. So a
    copy of a training image has distance 0, without the rounding errors of the expansion.
    """
    lengths = train.square().sum(1)
    found = []
    for x in images.split(NEAREST_ROWS):
        best = torch.full((len(x),), torch.inf, device=x.device)
        index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for start in range(0, len(train), NEAREST_COLUMNS):
            part = slice(start, start + NEAREST_COLUMNS)
            # |x|² is left out: it does not change the minimum.
            value, place = torch.addmm(lengths[part], x, train[part].T, alpha=-2.0).min(1)
            index = torch.where(value < best, place + start, index)
            best = torch.minimum(value, best)
        found.append((x.double() - train[index].double()).square().sum(1).sqrt())
    return torch.cat(found)
