"""A finished training run, opened again: measured on either split, or asked for images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import noise_key, rsample

from ..measures.aggregate import active_units, null_sample_kl, sample_kl
from ..config import ConfigError, TrainConfig, check_backend, choose_device, choose_precision
from ..data import PIXELS, Dataset, binarized, load, pixel_scale
from ..system.errors import printable
from ..measures.evaluate import Evaluator, Metrics
from ..system.files import OutputError
from ..study.measure import AGGREGATE_IMAGES, CODES, DRAW, FINAL
from ..model import VAE
from ..system.progress import Progress
from .folder import load_run
from ..training.loop import evaluator
from ..measures.samplers import fit
from ..system.world import ALONE, World

# Rows of one product: always as many, because a product of other rows may round them otherwise.
DECODED_AT_ONCE = 256
SHOWN_AT_ONCE = 50


@dataclass(frozen=True)
class Trained:
    """A run's model on its device, and its settings as they hold now.

    `config` is the record's, with the device, the precision and the data's folder of the day.
    """

    folder: Path
    vae: VAE
    config: TrainConfig
    record: dict[str, Any]

    @property
    def title(self) -> str:
        c = self.config
        return (
            f"{printable(self.folder)}: {c.model} on {c.data} ({c.binarize}), {c.arm}, "
            f"seed {c.seed}, {c.precision} on {c.device}"
        )

    def images(self) -> Dataset:
        """The run's data set, on its device.

        Raises:
            DataError: it is not at hand.
        """
        return load(self.config.data, self.config.data_root).to(self.config.device)


@dataclass(frozen=True)
class Law:
    """How far z is from N(0, I) over the n images of a split, one z each."""

    n: int
    latent: int  # D
    sample_kl: float  # nats, of a diagonal Gaussian fitted to the n z
    null_sample_kl: float  # what the same fit finds in n draws of N(0, I)
    active_units: int  # of D


def open_run(
    folder: Path,
    *,
    data_root: str | None = None,
    device: str = "auto",
    precision: str | None = None,
) -> Trained:
    """Open a run's folder; what is None stays as the run had it.

    Raises:
        OutputError: the folder holds no whole run, or one that cannot be read.
        ConfigError: a device that is not here, an unknown precision, or a backend that cannot run.
    """
    chosen = choose_device(device)
    check_backend(chosen)
    vae, record = load_run(folder)
    names = {field.name for field in fields(TrainConfig)}
    try:
        stated = TrainConfig(**{k: v for k, v in record["config"].items() if k in names})
    except ConfigError as error:
        raise OutputError(f"{folder} holds a run that cannot be read: {error}") from None
    config = replace(
        stated,
        device=str(chosen),
        data_root=data_root or stated.data_root,
        precision=precision or stated.precision,
    )
    dtype = choose_precision(config.precision, chosen)
    config = replace(config, precision=str(dtype).removeprefix("torch."))
    return Trained(folder, vae.to(chosen), config, record)


class _ShownEvaluator(Evaluator):
    """One that shows how far it is; each image's numbers are what they are without."""

    progress: Progress

    def _encoded(self, vae: VAE) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        for first, *encoded in super()._encoded(vae):
            # Encoded together as in training, then a few at a time: 5,000 samples take a while.
            parts = zip(*(tensor.split(SHOWN_AT_ONCE) for tensor in encoded), strict=True)
            for i, (x, mu, logvar) in enumerate(parts):
                yield first + i * SHOWN_AT_ONCE, x, mu, logvar
                self.progress.advance(len(x))


def evaluate(
    run: Trained,
    images: Dataset,
    split: str,
    num_samples: int,
    *,
    show_progress: bool = False,
    world: World = ALONE,
) -> Metrics:
    """Evaluate a run on "validation" or "test" from the noise of training's own evaluation.

    The test split with as many samples, the same precision and device gives the numbers of the
    run's metrics.json, to the last digit. Of several ranks each evaluates its share of the images.
    """
    own = evaluator(run.config, images, split, world)
    shown = _ShownEvaluator(own.pixels, own.pixel_scale, own.noise, own.precision, world)
    mine = len(world.share(len(own.pixels)))
    with Progress(mine, str(run.folder), show=show_progress, unit="image") as progress:
        shown.progress = progress
        return shown(run.vae, num_samples)


@torch.no_grad()
def law_of_z(run: Trained, images: Dataset, split: str) -> Law:
    """What the study measures of z's law (`vaez_fast.study.measure`), on a split of the run's images."""
    mu, logvar = run.vae.encode(_pixels(run, images, split))
    z = rsample(mu, logvar, noise_key(run.config.seed, "evaluate", FINAL, device=mu.device))[0]
    n, latent = z.shape
    return Law(n, latent, sample_kl(z), null_sample_kl(n, latent), active_units(mu))


def _pixels(run: Trained, images: Dataset, split: str) -> Tensor:
    how = run.config.binarize
    return binarized(images, split, how).float() * pixel_scale(how)


@torch.no_grad()
def draw(run: Trained, sampler: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw z from a law of `vaez_fast.measures.samplers`, and decode it.

    Fitted laws are fitted to one z for each of the first 20,000 training images, as in the study.
    Row i does not depend on `count`; it has the same base noise under every sampler.

    Returns:
        z (count, D) and the means of the pixels (count, 784), float32 on the CPU.

    Raises:
        DataError: the training images are needed and not at hand.
        ConfigError: the law cannot be fitted to this run's z.
    """
    device = run.config.device
    means = torch.empty(count, PIXELS)  # first: where memory is short, it is so at once
    noise = noise_key(seed, "generate", DRAW, device=device)
    codes = torch.zeros(1, run.vae.architecture.latent, device=device)
    if sampler != "standard-normal":
        x = _pixels(run, run.images(), "train")[:AGGREGATE_IMAGES]
        key = noise_key(run.config.seed, "evaluate", CODES, device=device)
        codes = rsample(*run.vae.encode(x), key)[0]
    try:
        law = fit(sampler, codes)
    except ImportError as error:
        raise ConfigError(f"sampler {sampler!r} needs scikit-learn ({error})") from None
    except (ValueError, RuntimeError) as error:  # a covariance that is not positive definite
        raise ConfigError(
            f"sampler {sampler!r} cannot be fitted to this run's z: {error}"
        ) from None
    whole = -(-count // DECODED_AT_ONCE) * DECODED_AT_ONCE
    z = law.draw(noise, whole)
    for first in range(0, count, DECODED_AT_ONCE):
        part = torch.sigmoid(run.vae.decode(z[first : first + DECODED_AT_ONCE]))
        means[first : first + DECODED_AT_ONCE] = part[: count - first]
    return z[:count].cpu(), means
