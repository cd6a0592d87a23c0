"""What the study measures of a run: the decay of z's distance from N(0, I), latents and images."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaez_kernels import rsample, uniform

from .. import streams
from ..config import TrainConfig
from ..data import SPLITS, Dataset, Pixels
from ..measures.aggregate import (
    AGGREGATE_IMAGES,
    Estimate,
    active_units,
    held_out_marginal_kl,
    kl_per_dimension,
    moments,
    null_sample_kl,
    sample_kl,
    surgery,
)
from ..measures.codes import Codes, encode
from ..measures.densities import Embedded
from ..measures.features import Networks, kept_networks
from ..measures.image_metrics import Reference, floors, image_scores
from ..measures.law import KINDS, best_density, fit_densities, measure_law
from ..measures.law_summary import summary_of
from ..measures.normality import normality_tests, testable
from ..measures.replaced_prior import log_px_gain
from ..measures.samplers import SAMPLERS, fit
from ..model import VAE
from ..training.train import steps_of, train
from .arrays import LAW, RECONSTRUCTIONS, TEST_IMAGES
from .likelihood import both_sides, k_curve, log_px_of_many
from .published_code import kept_and_decoded
from .readings import ANALYTIC, AS_PUBLISHED

# The surgery's 20,000 × 400 × 128 exponentials take one core three seconds.
AGGREGATE_DRAWS = 400
GENERATED, SHOWN = 10_000, 12
NEAREST_AMONG = 10_000
# A flow takes longer to fit than all other densities and bounds the KL no better (see the ordinary
# VAE, for which it is fitted).
WITHOUT_FLOW = tuple(kind for kind in KINDS if kind != "flow")
# The test images and samples of the gain of another prior.
GAIN_IMAGES, GAIN_SAMPLES = 2_000, 128

# Epochs from one validation pass to the next; the validation ELBO selects the joint arms' state.
LOOK_EVERY = 5

Record = dict[str, Any]


class Measure:
    """Trains arms on one data set and measures all of them in the same way.

    Args:
        base: the settings that the arms share.
        dataset: the images.
        device: the device of training and measuring.
        networks_file: stores the networks whose features compare images, so that a study that is
            continued later, or on another machine, uses the same features.
    """

    def __init__(
        self, base: TrainConfig, dataset: Dataset, device: torch.device, networks_file: Path
    ) -> None:
        self.base, self.dataset, self.device = base, dataset.to(device), device
        self.networks_file = networks_file
        self.steps = steps_of(base, dataset)
        self.pixels = Pixels(self.dataset, base.binarize)
        self.train_x, self.validation_x, self.test_x = (self.pixels.x(split) for split in SPLITS)
        # As many generated as real images, because feature distances depend on their number.
        self.generated = min(GENERATED, len(self.test_x), len(self.validation_x))

    @cached_property
    def networks(self) -> Networks:
        return kept_networks(self.dataset, self.networks_file)

    @cached_property
    def reference(self) -> Reference:
        nets = [net for net, _ in self.networks]
        return Reference(self._spread(self.test_x), self.train_x[:NEAREST_AMONG], nets)

    def run(
        self, config: TrainConfig, observe_at: frozenset[int]
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """Train an arm and measure it: its record, and the arrays that `arrays` reads back."""
        decay: list[Record] = []

        def observe(phase: str, step: int, vae: VAE) -> None:
            if phase != "decoder" or config.decoder == "randn":
                decay.append({"step": step, **self._distance(vae, config.seed, len(decay))})

        result = train(
            config,
            self.dataset,
            look_every=LOOK_EVERY,
            observe=observe,
            observe_at=observe_at,
        )
        with torch.no_grad():
            pixels = Pixels(self.dataset, config.binarize, config.seed)
            codes = encode(result.vae, pixels, config.seed)
            kinds = KINDS if config.arm == ANALYTIC else WITHOUT_FLOW
            densities = fit_densities(codes, config.seed, kinds)
            images, scores = self._images(result.vae, codes, densities, config.seed)
            latents = self._latents(codes, densities, config.seed)
            if config.decoder == "joint":
                latents["gain"] = self._gain(result.vae, codes, densities, config.seed)
            of = (self.pixels.test, self.pixels.scale, config.seed, self.base.precision)
            log_px = log_px_of_many(result.vae, result.test, *of)
        record = {
            "arm": config.arm,
            "seed": config.seed,
            "steps": result.steps,
            "train_seconds": result.train_seconds,
            "best_step": result.best_step,
            "curve": result.curve,
            "decay": decay,
            "test": result.test.as_dict(),
            "log_px": log_px,
            "latents": latents,
            "images": scores,
        }
        if config.arm == ANALYTIC and config.seed == 0:
            record["k_curve"] = k_curve(result.vae, *of)
            record["both_sides"] = both_sides(result.vae, self.test_x, config.seed)
        if config.arm == AS_PUBLISHED:
            record["kept"] = kept_and_decoded(config, self.dataset, self.steps)
        law = summary_of(codes, self.dataset.test.labels, config.seed)
        return record, images | {LAW + name: array for name, array in law.items()}

    @torch.no_grad()
    def _distance(self, vae: VAE, seed: int, index: int) -> Record:
        # On the validation split, one z per image, with new noise at each observation.
        mu, logvar = vae.encode(self.validation_x)
        z = rsample(mu, logvar, streams.DECAY.key(seed, index, device=self.device))[0]
        rate = float(kl_per_dimension(mu, logvar).sum())
        return {"sample_kl": sample_kl(z), "rate": rate}

    def _latents(self, codes: Codes, densities: dict[str, Embedded], seed: int) -> Record:
        mu, logvar, z = codes.test
        own = (codes.train.mu[:AGGREGATE_IMAGES], codes.train.logvar[:AGGREGATE_IMAGES])
        noise = streams.SURGERY.key(seed, device=self.device)
        parts = surgery(*own, noise, AGGREGATE_DRAWS)
        noise = streams.HELD_OUT_KL.key(seed, device=self.device)
        held_out = held_out_marginal_kl(*own, mu, logvar, noise, AGGREGATE_DRAWS)
        return {
            "n": len(z),
            "sample_kl": sample_kl(z),
            "kl_per_dimension": kl_per_dimension(mu, logvar).tolist(),
            "active_units": active_units(mu),
            "moments": {name: _finite(value) for name, value in asdict(moments(z)).items()},
            "surgery": {
                name: value._asdict() if isinstance(value, Estimate) else value
                for name, value in vars(parts).items()
            },
            "held_out_marginal_kl": held_out._asdict(),
            "law": measure_law(codes, seed, densities).as_dict(),
            "tests": {
                name: asdict(test)
                for name, test in normality_tests(z, seed, testable(codes)).items()
            },
        }

    def _gain(self, vae: VAE, codes: Codes, densities: dict[str, Embedded], seed: int) -> Record:
        best = best_density(densities, codes.validation.z)
        noise = streams.REPLACED_PRIOR.key(seed, device=self.device)
        x = self.test_x[:GAIN_IMAGES]
        gain = log_px_gain(vae, densities[best], x, noise, GAIN_SAMPLES)
        return {"density": best, **gain.as_dict()}

    def _images(
        self, vae: VAE, codes: Codes, densities: dict[str, Embedded], seed: int
    ) -> tuple[dict[str, np.ndarray], Record]:
        def key(use: streams.Use) -> Tensor:
            return use.key(seed, device=self.device)

        pixels = uniform(key(streams.GENERATED_PIXELS), 1, self.generated, self.test_x.shape[1])[0]
        decoded = torch.sigmoid(vae.decode(codes.test.z[:SHOWN]))
        shown = {
            TEST_IMAGES: _grey_levels(self.test_x[:SHOWN]),
            RECONSTRUCTIONS: _grey_levels(decoded),
        }
        scores = {}
        for name in SAMPLERS:
            if name == "flow" and name not in densities:
                continue
            z = fit(name, codes, densities).draw(key(streams.GENERATED_Z), self.generated)
            means = torch.sigmoid(vae.decode(z))
            shown[name] = _grey_levels(means[:SHOWN])
            # Grey data are compared with means, binary data with binary samples.
            generated = means if self.base.binarize == "none" else (pixels < means).float()
            scores[name] = image_scores(generated, self.reference)
        return shown, scores

    def _spread(self, images: Tensor) -> Tensor:
        # As many images as are generated, from the whole split: the first need not be typical.
        return images[:: len(images) // self.generated][: self.generated]

    def beside(self) -> Record:
        """References for the arms' numbers that belong to no arm: floors, ceilings and nulls."""
        trainings = [training for _, training in self.networks]
        splits = streams.REAL_SPLITS.key(0, device=self.device)
        noise = streams.MEAN_IMAGE_PIXELS.key(0, device=self.device)
        grey = self.base.binarize == "none"
        real = self._spread(self.validation_x)
        bounds = floors(real, self.reference, splits, None if grey else noise)
        # Pixel frequencies of the training split, half a count added, scored on the test split.
        count = len(self.train_x)
        frequency = (self.train_x.double().sum(0) + 0.5) / (count + 1)
        x = self.test_x.double()
        score = (x * frequency.log() + (1 - x) * (-frequency).log1p()).sum(1).mean()
        latent = VAE(self.base.model).architecture.latent
        return {
            "images": bounds,
            "features": {
                "accuracy_binary": fmean(training.accuracy_binary for training in trainings),
                "networks": [training.as_dict() for training in trainings],
            },
            "marginal_log_prob": float(score),
            "null_sample_kl": null_sample_kl(len(self.test_x), latent),
            "latent": latent,
            "n": len(self.test_x),
            "log_aggregate_images": math.log(min(AGGREGATE_IMAGES, count)),
        }


def _grey_levels(x: Tensor) -> np.ndarray:
    # x (N, 784) in [0, 1] → uint8
    return (255 * x).round().to(torch.uint8).cpu().numpy()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
