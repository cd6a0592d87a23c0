"""A finished training run: evaluated again on either split, or used to generate images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError, TrainConfig, check_backend, choose_device, choose_precision
from ..data import PIXELS, Dataset, Pixels, load
from ..measures.aggregate import active_units, null_sample_kl, sample_kl
from ..measures.codes import encode
from ..measures.densities import standard_normal
from ..measures.evaluate import Evaluator, Metrics, evaluator
from ..measures.samplers import Sampler, fit
from ..model import VAE
from ..richer.vae import RicherVAE, codes
from ..streams import GENERATED_Z, LAW_OF_Z
from ..system.errors import printable
from ..system.files import OutputError
from ..system.progress import Progress
from ..system.world import ALONE, World
from .folder import load_run

# Rows of one product: always the same number, because another number may round differently.
DECODED_AT_ONCE = 256
SHOWN_AT_ONCE = 50


@dataclass(frozen=True)
class Trained:
    """A run's model on its device, and its current settings.

    `config` is the record's, with the device, the precision and the data folder that are used now.
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
            DataError: it is missing, damaged or cannot be downloaded.
        """
        return load(self.config.data, self.config.data_root).to(self.config.device)


@dataclass(frozen=True)
class Law:
    """How far z is from N(0, I) over the n images of a split, one z per image."""

    n: int
    latent: int  # D
    sample_kl: float  # nats, of a diagonal Gaussian fitted to the n z
    null_sample_kl: float  # expectation of the same fit to n draws of N(0, I)
    active_units: int | None  # of D; None unless q(z|x) is a diagonal Gaussian


def open_run(
    folder: Path,
    *,
    data_root: str | None = None,
    device: str = "auto",
    precision: str | None = None,
) -> Trained:
    """Open a run's folder; settings that are None stay as the run had them.

    Raises:
        OutputError: the folder holds no finished run, or one that cannot be read.
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
    """An evaluator with a progress bar; the numbers of each image are the same as without."""

    progress: Progress

    def _encoded(self, vae: VAE) -> Iterator[tuple[Any, ...]]:
        for first, *encoded in super()._encoded(vae):
            # Encoded together as in training, then in small parts, since 5,000 samples take long.
            parts = zip(*(tensor.split(SHOWN_AT_ONCE) for tensor in encoded), strict=True)
            for i, (x, *parameters) in enumerate(parts):
                yield first + i * SHOWN_AT_ONCE, x, *parameters
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
    """Evaluate a run on "validation" or "test" with the noise of training's own evaluation.

    The test split with the same number of samples, precision and device gives the numbers of the
    run's metrics.json to the last digit. Each of several ranks evaluates its share of the images.
    """
    own = evaluator(run.config, images, split, world)
    shown = _ShownEvaluator(own.pixels, own.pixel_scale, own.noise, own.precision, world)
    mine = len(world.share(len(own.pixels)))
    with Progress(mine, str(run.folder), show=show_progress, unit="image") as progress:
        shown.progress = progress
        return shown(run.vae, num_samples)


@torch.no_grad()
def law_of_z(run: Trained, images: Dataset, split: str) -> Law:
    """The law of z as the study measures it (`vaez_fast.study.measure`), on a split."""
    x = Pixels(images, run.config.binarize, run.config.seed).x(split)
    z = codes(run.vae, x, LAW_OF_Z.key(run.config.seed, device=x.device))
    n, latent = z.shape
    active = active_units(run.vae.encode(x)[0]) if run.config.posterior == "diagonal" else None
    return Law(n, latent, sample_kl(z), null_sample_kl(n, latent), active)


@torch.no_grad()
def draw(run: Trained, sampler: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw z from a sampler of `vaez_fast.measures.samplers`, and decode it.

    Samplers are fitted to one z for each training image, as in the study; "prior" is the run's own
    p(z). Row i does not depend on `count` and has the same base noise under every sampler.

    Returns:
        z (count, D) and the means of the pixels (count, 784), float32 on the CPU.

    Raises:
        DataError: the sampler needs the training images, and they cannot be loaded.
        ConfigError: the sampler cannot be fitted to this run's z, or is "standard-normal" and the
            run's prior is not.
    """
    device, prior = run.config.device, run.config.prior
    if sampler == "standard-normal" and prior != "standard-normal":
        raise ConfigError(
            f"sampler must be prior or one fitted to z: this run's prior is {prior}, "
            "not standard-normal"
        )
    means = torch.empty(count, PIXELS)  # allocated first, to fail at once if memory is short
    noise = GENERATED_Z.key(seed, device=device)
    try:
        law = _sampler(run, sampler)
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


def _sampler(run: Trained, name: str) -> Sampler:
    if name == "prior" and isinstance(run.vae, RicherVAE):
        return run.vae.law()
    if name in ("prior", "standard-normal"):  # which need no images
        return standard_normal(run.vae.architecture.latent, torch.device(run.config.device))
    pixels = Pixels(run.images(), run.config.binarize, run.config.seed)
    return fit(name, encode(run.vae, pixels, run.config.seed), seed=run.config.seed)
