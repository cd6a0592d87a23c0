"""Who draws which numbers of the noise: the only list of steps of `noise_key(seed, purpose, step)`.

For one seed, no two uses share a purpose and a step. Models of one seed share the numbers of each
use on purpose: differences between arms of the study are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaez_kernels import noise_key
from vaez_kernels.checks import check_count


@dataclass(frozen=True)
class Use:
    """The steps `first`, …, `first + count − 1` of a purpose."""

    purpose: str
    first: int
    count: int = 1

    def key(self, seed: int, index: int = 0, *, device: torch.device | str | None = None) -> Tensor:
        """The `noise` argument of the ops for step `first + index`: (2,) int64.

        Raises:
            TypeError, ValueError: a seed outside 0 … 2³² − 1, or an index outside 0 … count − 1.
        """
        check_count("Use.key", "index", index, below=self.count)
        return noise_key(seed, self.purpose, self.first + index, device=device)


TRAINING = Use("train", 0, 2**32)  # index: the training step

# Index: the epoch. Training and the feature network visit their images in the same order.
EPOCH_ORDER = Use("permute", 0, 2**32)

# Pixels that are drawn once take the largest seed, which seeds counted up from 0 never reach.
STATIC_SEED = 2**32 - 1
STATIC_PIXELS = {name: Use("binarize", i) for i, name in enumerate(("train", "validation", "test"))}
DYNAMIC_PIXELS = Use("binarize", 3, 2**31 - 3)  # index: the epoch
FEATURE_PIXELS = Use("binarize", 2**31, 2**31)  # index: the epoch of the feature network

# z during and after training
EVALUATION = {"validation": Use("evaluate", 0), "test": Use("evaluate", 1)}
LAW_OF_Z = Use("evaluate", 10)
SURGERY = Use("evaluate", 11)
HELD_OUT_KL = Use("evaluate", 12)  # the marginal KL on held-out images
TRAINING_CODES = Use("evaluate", 13)  # to which samplers are fitted
AGGREGATE_DENSITY = Use("evaluate", 14)  # bench.likelihood
K_CURVE = Use("evaluate", 15)  # log p(x) against the number of samples
VALIDATION_CODES = Use("evaluate", 16)  # on which fitted densities are compared
KL_BOUND = Use("evaluate", 17)  # draws of q(z) for the upper bound of KL(q(z) ‖ N(0, I))
REPLACED_PRIOR = Use("evaluate", 18)  # importance samples under another prior
FLOW_FIT = Use("evaluate", 19)  # the order of codes in which a flow is fitted
EXACT_NORMALS = Use("evaluate", 20)  # controls of the tests of normality
NORMALITY = Use("evaluate", 21, 9)  # index: the test that compares z with normal draws
ANNEALED = Use("evaluate", 40, 14)  # index: the use, listed in vaez_fast.measures.annealed
MORE_SAMPLES = Use("evaluate", 54)  # log p(x) of some images, from more samples
WATCHED = Use("evaluate", 60, 40)  # index: the steps before the one that is watched
DECAY = Use("evaluate", 100, 900)  # index: the observation during training

# Index: the step of the fit; 0 also for u in the fitted density
SECOND_STAGE = Use("evaluate", 2_000, 3_001)

# The theory's draws
MONTE_CARLO_KL = Use("evaluate", 1000)
KL_GRADIENT = Use("evaluate", 1001)
NULL_FITS = Use("evaluate", 1002, 98)  # index: the place of the sample size in `FITS`
LINEAR_CODES = Use("evaluate", 1100)  # images and codes of the linear VAE
ROTATIONS = Use("evaluate", 1101)
IDENTITY = Use("evaluate", 1102)  # decoder, images and q of the identity's check

GENERATED_Z = Use("generate", 0)
GENERATED_PIXELS = Use("generate", 1)  # drawn from the means of generated images
MEAN_IMAGE_PIXELS = Use("generate", 2)  # drawn from the mean training image
REAL_SPLITS = Use("generate", 3)  # halves of real images, whose distance is the floor
SPRITES = Use("generate", 4)  # the factors of made pictures
HELD_OUT_ROWS = Use("generate", 5)  # of a user's data
