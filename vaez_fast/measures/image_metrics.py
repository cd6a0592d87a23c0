"""How far generated images are from real ones, with a floor and a ceiling for each number.

Images are (N, 784) float32 in [0, 1]. Compare binary samples with binarised images and means (grey)
with grey levels, because binary pixels are far from their means in every metric below. All metrics
also depend on the number of images (`count`, `reference_count`), so floor, ceiling and the compared
sets should have the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaez_kernels import uniform

from .features import CLASSES, FeatureNet
from .kernel import kernel_distance, kernel_sums
from .neighbours import neighbours, squared_radii

FLOOR_SPLITS = 10
# 1,000 × 4,000 squared distances are 16 MB.
NEAREST_ROWS, NEAREST_COLUMNS = 1000, 4000


class Reference:
    """Real images that generated ones are compared with; what does not change is computed once.

    Attributes:
        features: of `real` in each network, (M, 64) float32.
        radii: `squared_radii` of the features.
        kernel: `kernel_sums` of the features.
        shares: `label_shares` of each network.
    """

    def __init__(self, real: Tensor, train: Tensor, networks: Sequence[FeatureNet]) -> None:
        """
        Args:
            real: (M, 784), images that were not used for training; M ≥ 20.
            train: (T, 784), the images that the decoder was trained on, binarised in the same way.
            networks: trained independently of each other, on the images' device.
        """
        self.real, self.train, self.networks = real, train, tuple(networks)
        self.features = [net.features(real) for net in self.networks]
        self.radii = [squared_radii(of_real) for of_real in self.features]
        self.kernel = [kernel_sums(of_real) for of_real in self.features]
        self.shares = self.shares_of(self.features)

    def shares_of(self, features: Sequence[Tensor]) -> Tensor:
        """`label_shares` by the classes that each network sees, mean over networks."""
        seen = zip(self.networks, features, strict=True)
        return torch.stack([label_shares(net.classes_of(of)) for net, of in seen]).mean(0)


def image_scores(generated: Tensor, reference: Reference) -> dict[str, Any]:
    """Scores of one set of generated images; what is computed in features is a mean over networks.

    Args:
        generated: (N, 784) float32 in [0, 1], N ≥ 20, on the reference's device.
        reference: the real images.

    Returns:
        count, reference_count: N and M.
        frechet: `frechet_distance` of the features; frechet_by_network: of each network.
        kernel, kernel_standard_error: `kernel_distance` of the features, and its standard error.
        precision, recall, density, coverage: `neighbours` of the features.
        label_histogram: fractions of the 10 classes that the networks assign to the images.
        label_distance: total variation between it and the reference's, 0 to 1.
        nearest_train: median over the generated images of the distance to the nearest training
            image (`nearest_distance`). If it is well below that of real images, the decoder has
            memorised; grey means are nearer to all images than samples are.
    """
    features = [net.features(generated) for net in reference.networks]
    pairs = list(zip(features, reference.features, strict=True))
    frechet = [frechet_distance(*pair) for pair in pairs]
    kernel, spread = kernel_distance([kernel_sums(of) for of in features], reference.kernel)
    near = [neighbours(y, x, r) for (x, y), r in zip(pairs, reference.radii, strict=True)]
    shares = reference.shares_of(features)
    return {
        "count": len(generated),
        "reference_count": len(reference.real),
        "frechet": fmean(frechet),
        "frechet_by_network": frechet,
        "kernel": kernel,
        "kernel_standard_error": spread,
        "precision": fmean([of.precision for of in near]),
        "recall": fmean([of.recall for of in near]),
        "density": fmean([of.density for of in near]),
        "coverage": fmean([of.coverage for of in near]),
        "label_histogram": shares.tolist(),
        "label_distance": total_variation(shares, reference.shares),
        "nearest_train": float(nearest_distance(generated, reference.train).median()),
    }


class FloorSplits(NamedTuple):
    """The Fréchet distance of real images to real images, over random splits of all of them."""

    mean: float
    deviation: float  # standard deviation over the splits
    by_network: list[float]  # means


def frechet_floor(first: Sequence[Tensor], second: Sequence[Tensor], noise: Tensor) -> FloorSplits:
    """How far sets of real images are from each other by chance alone.

    Both sets are put together and split again at random, ten times, into sets of the same sizes.
    So what the splits of a data set differ in (MNIST's test images are of other writers) is not
    part of this distance.

    Args:
        first, second: features (N, d), (M, d) of two sets of real images, one of each network.
        noise: from the stream.
    """
    count, total = len(first[0]), len(first[0]) + len(second[0])
    order = uniform(noise, FLOOR_SPLITS, total, 1)[..., 0].argsort(dim=1, stable=True)
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    found = torch.tensor(
        [[frechet_distance(of[rows[:count]], of[rows[count:]]) for of in both] for rows in order],
        dtype=torch.float64,
    )  # (splits, networks)
    over_splits = found.mean(1)
    return FloorSplits(float(over_splits.mean()), float(over_splits.std()), found.mean(0).tolist())


def floors(
    real: Tensor, reference: Reference, splits: Tensor, pixels: Tensor | None = None
) -> dict[str, dict[str, Any]]:
    """The `image_scores` of real images and of a collapsed decoder's images.

    Args:
        real: (N, 784), other real images that were not used for training, such as the validation
            split; if possible as many as the generated images.
        reference: as for `image_scores`.
        splits: noise of `frechet_floor`.
        pixels: noise, given if the generated images are binary samples.

    Returns:
        "floor": the scores of `real`, the best possible, with `frechet_splits` for
        `frechet_floor`; "ceiling": the scores of N copies of the mean training image, which a
        decoder that ignores z would show. With `pixels` they are binary samples of it.
    """
    mean_digit = reference.train.mean(0, keepdim=True).expand(len(real), -1)
    if pixels is not None:
        mean_digit = (uniform(pixels, 1, *real.shape)[0] < mean_digit).float()
    features = [net.features(real) for net in reference.networks]
    by_chance = frechet_floor(features, reference.features, splits)
    return {
        "floor": {**image_scores(real, reference), "frechet_splits": by_chance._asdict()},
        "ceiling": image_scores(mean_digit, reference),
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

    # Several ranks measure different models; by default torchmetrics would pool their features.
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1]), sync_on_compute=False)
    metric.update(a.double().cpu(), real=False)
    metric.update(b.double().cpu(), real=True)
    return float(metric.compute())


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
