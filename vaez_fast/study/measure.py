"""What the study measures of a run: the decay of z's distance from N(0, I), latents and images."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
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
from ..measures.evaluate import Evaluator
from ..measures.features import FeatureNet, Training, load_features, save_features, train_features
from ..measures.image_metrics import floors, image_scores
from ..measures.samplers import SAMPLERS, fit
from ..model import VAE
from ..training.train import steps_of, train

# The surgery's 20,000 × 400 × 128 exponentials take one core three seconds.
AGGREGATE_DRAWS = 400
GENERATED, SHOWN = 1_000, 12
NEAREST_AMONG = 10_000
# The numbers of samples and test images for the curve of log p(x).
K_CURVE, K_CURVE_IMAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000), 500

# Epochs from one validation pass to the next; the validation ELBO selects the joint arms' state.
LOOK_EVERY = 5

Record = dict[str, Any]


class Measure:
    """Trains arms on one data set and measures all of them in the same way.

    Args:
        base: the settings that the arms share.
        dataset: the images.
        device: the device of training and measuring.
        classifier_file: stores the network whose features compare images, so that a study that is
            continued later, or on another machine, uses the same features.
    """

    def __init__(
        self, base: TrainConfig, dataset: Dataset, device: torch.device, classifier_file: Path
    ) -> None:
        self.base, self.dataset, self.device = base, dataset.to(device), device
        self.classifier_file = classifier_file
        self.steps = steps_of(base, dataset)
        self.pixels = Pixels(self.dataset, base.binarize)
        self.train_x, self.validation_x, self.test_x = (self.pixels.x(split) for split in SPLITS)
        # As many generated as real images, because feature distances depend on their number.
        self.generated = min(GENERATED, len(self.test_x), len(self.validation_x))

    @cached_property
    def classifier(self) -> tuple[FeatureNet, Training]:
        if self.classifier_file.exists():
            return load_features(self.classifier_file, self.device)
        net, training = train_features(self.dataset)
        save_features(net, training, self.classifier_file)
        return net, training

    def run(
        self, config: TrainConfig, observe_at: frozenset[int]
    ) -> tuple[Record, dict[str, np.ndarray]]:
        """Train an arm and measure it: its record, and images to show (SHOWN, 784) by sampler."""
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
        images, scores = self._images(result.vae, config.seed)
        record = {
            "arm": config.arm,
            "seed": config.seed,
            "steps": result.steps,
            "train_seconds": result.train_seconds,
            "best_step": result.best_step,
            "curve": result.curve,
            "decay": decay,
            "test": result.test.as_dict(),
            "latents": self._latents(result.vae, config.seed),
            "images": scores,
        }
        if config.arm == "elbo/analytic/joint" and config.seed == 0:
            record["k_curve"] = self._k_curve(result.vae, config.seed)
        return record, images

    @torch.no_grad()
    def _distance(self, vae: VAE, seed: int, index: int) -> Record:
        # On the validation split, one z per image, with new noise at each observation.
        mu, logvar = vae.encode(self.validation_x)
        z = rsample(mu, logvar, streams.DECAY.key(seed, index, device=self.device))[0]
        rate = float(kl_per_dimension(mu, logvar).sum())
        return {"sample_kl": sample_kl(z), "rate": rate}

    @torch.no_grad()
    def _latents(self, vae: VAE, seed: int) -> Record:
        mu, logvar = vae.encode(self.test_x)
        z = rsample(mu, logvar, streams.LAW_OF_Z.key(seed, device=self.device))[0]
        own = vae.encode(self.train_x[:AGGREGATE_IMAGES])
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
        }

    @torch.no_grad()
    def _images(self, vae: VAE, seed: int) -> tuple[dict[str, np.ndarray], Record]:
        def key(use: streams.Use) -> Tensor:
            return use.key(seed, device=self.device)

        net, _ = self.classifier
        posteriors = vae.encode(self.train_x[:AGGREGATE_IMAGES])
        codes = rsample(*posteriors, key(streams.TRAINING_CODES))[0]
        pixels = uniform(key(streams.GENERATED_PIXELS), 1, self.generated, self.test_x.shape[1])[0]
        test, train = self._spread(self.test_x), self.train_x[:NEAREST_AMONG]
        shown, scores = {}, {}
        for name in SAMPLERS:
            z = fit(name, codes).draw(key(streams.GENERATED_Z), self.generated)
            means = torch.sigmoid(vae.decode(z))
            shown[name] = (255 * means[:SHOWN]).round().to(torch.uint8).cpu().numpy()
            # Grey data are compared with means, binary data with binary samples.
            generated = means if self.base.binarize == "none" else (pixels < means).float()
            scores[name] = image_scores(generated, test, train, net)
        return shown, scores

    def _k_curve(self, vae: VAE, seed: int) -> Record:
        pixels, scale = self.pixels.test[:K_CURVE_IMAGES], self.pixels.scale
        noise = streams.K_CURVE.key(seed, device=self.device)
        curve = Evaluator(pixels, scale, noise, self.base.precision).log_px_curve(vae, K_CURVE)
        return {"images": len(pixels), "k": list(K_CURVE), "log_px": curve.mean(1).tolist()}

    def _spread(self, images: Tensor) -> Tensor:
        # As many images as are generated, from the whole split: the first need not be typical.
        return images[:: len(images) // self.generated][: self.generated]

    def beside(self) -> Record:
        """References for the arms' numbers that belong to no arm: floors, ceilings and nulls."""
        net, training = self.classifier
        noise = streams.MEAN_IMAGE_PIXELS.key(0, device=self.device)
        real = self._spread(self.validation_x)
        train_x = self.train_x[:NEAREST_AMONG]
        grey = self.base.binarize == "none"
        bounds = floors(real, self._spread(self.test_x), train_x, net, None if grey else noise)
        # Pixel frequencies of the training split, half a count added, scored on the test split.
        count = len(self.train_x)
        frequency = (self.train_x.double().sum(0) + 0.5) / (count + 1)
        x = self.test_x.double()
        score = (x * frequency.log() + (1 - x) * (-frequency).log1p()).sum(1).mean()
        latent = VAE(self.base.model).architecture.latent
        return {
            "images": bounds,
            "features": training.as_dict(),
            "marginal_log_prob": float(score),
            "null_sample_kl": null_sample_kl(len(self.test_x), latent),
            "latent": latent,
            "n": len(self.test_x),
            "log_aggregate_images": math.log(min(AGGREGATE_IMAGES, count)),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
