"""Who mends it: posteriors, priors and ways of training beside the ordinary VAE.

Each remedy is one change of the settings of an ordinary VAE (`ordinary_remedy`). Runs of a seed
share data order, noise and the initial weights of encoder and decoder, so differences are paired.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaez_kernels import normal, uniform

from .. import streams
from ..config import TrainConfig
from ..data import Dataset, Pixels
from ..flows import log_standard_normal
from ..measures.aggregate import mean_of_draws
from ..measures.codes import Codes, encode
from ..measures.densities import Embedded
from ..measures.features import kept_networks
from ..measures.image_metrics import Reference, image_scores
from ..measures.law import best_density, fit_densities
from ..measures.replaced_prior import log_px_gain
from ..measures.two_stage import fit_second_stage
from ..model import VAE
from ..richer.vae import RicherVAE
from ..system.world import ALONE, World
from ..training.train import train
from .config import RemedyConfig as RemedyConfig
from .grid import FEATURES, Setup, run_grid
from .readings import ANALYTIC

KIND, SCHEMA = "vaez-fast remedies", 1
GENERATED, NEAREST_AMONG = 10_000, 10_000
DENSITIES = ("full-covariance", "mixture")
# The test images and samples of the gain of a prior that is replaced afterwards.
GAIN_IMAGES, GAIN_SAMPLES = 2_000, 128

Record = dict[str, Any]


def run_remedies(
    config: RemedyConfig, out: Path, *, show_progress: bool = False, world: World = ALONE
) -> None:
    """Do the runs that `out` does not hold yet; several ranks share them.

    More seeds continue a folder, and so do more remedies. Beside the files of `run_grid`:
    features.pt, the networks in whose features images are compared.

    Raises:
        As `run_grid`.
    """

    def setup(dataset: Dataset, device: torch.device) -> Setup:
        reference = _reference(config.base, dataset, out / FEATURES)
        return Setup(lambda run: (measure(run, dataset, reference), {}))

    header = {"kind": KIND, "schema": SCHEMA}
    run_grid(
        *(config, out, header, "remedies", setup),
        growing=("remedies",), show_progress=show_progress, world=world,
    )  # fmt: skip


def _reference(base: TrainConfig, dataset: Dataset, file: Path) -> Reference:
    networks = kept_networks(dataset, file)
    pixels = Pixels(dataset, base.binarize)
    real, train_x = pixels.x("test")[:GENERATED], pixels.x("train")[:NEAREST_AMONG]
    return Reference(real, train_x, [net for net, _ in networks])


def measure(config: TrainConfig, dataset: Dataset, reference: Reference) -> Record:
    """Train a run, and measure its likelihood, what its prior misses, and its images.

    The ordinary VAE also has what other priors gain `afterwards`: see `_afterwards`.

    `left` is the lower bound of KL(q(z) ‖ p(z)) for the run's own prior p, in nats, by the best of
    a Gaussian and mixtures: what a better prior could still gain. It is null where q(z|x) is not
    diagonal, since the densities need to know which latents are informative. `frechet` is that of
    images whose z come from the run's own prior.
    """
    result = train(config, dataset)
    vae = result.vae
    with torch.no_grad():
        record = {
            "arm": config.arm,
            "seed": config.seed,
            "steps": result.steps,
            "train_seconds": result.train_seconds,
            "best_step": result.best_step,
            "test": result.test.as_dict(),
            "left": None,
            "images": _scores(vae, _own_prior(vae, config.seed, reference), config, reference),
        }
        if config.posterior == "diagonal":
            codes = encode(vae, Pixels(dataset, config.binarize, config.seed), config.seed)
            densities = fit_densities(codes, config.seed, DENSITIES)
            record["left"] = _left(vae, codes, densities)
            if config.arm == ANALYTIC:
                record["afterwards"] = _afterwards(
                    vae, codes, densities, config, dataset, reference
                )
    return record


def _left(vae: VAE, codes: Codes, densities: dict[str, Embedded]) -> Record:
    best = best_density(densities, codes.validation.z)
    z = codes.test.z
    log_p = vae.law().log_prob(z).double() if isinstance(vae, RicherVAE) else _log_normal(z)
    value, error = mean_of_draws(densities[best].log_prob(z) - log_p)
    return {"value": value, "standard_error": error, "how": best}


def _afterwards(
    vae: VAE,
    codes: Codes,
    densities: dict[str, Embedded],
    config: TrainConfig,
    dataset: Dataset,
    reference: Reference,
) -> Record:
    """What densities of z gain in place of N(0, I) once the model is trained.

    By name ("full-covariance", "mixture", "two-stage"): the gains in `elbo` and `log_px` over the
    first test images, in nats, and the scores of `images` whose z come from the density.
    """
    measured = codes.measured()
    second = fit_second_stage(
        codes.train.z[:, measured], codes.validation.z[:, measured], config.seed
    )
    mixtures = {name: r for name, r in densities.items() if name.startswith("mixture")}
    priors = {
        "full-covariance": densities["full-covariance"],
        "mixture": mixtures[best_density(mixtures, codes.validation.z)],
        "two-stage": Embedded(second, measured, codes.train.z.shape[1]),
    }
    x = Pixels(dataset, config.binarize).x("test")[:GAIN_IMAGES]
    noise = streams.REPLACED_PRIOR.key(config.seed, device=x.device)
    key = streams.GENERATED_Z.key(config.seed, device=x.device)
    found = {}
    for name, density in priors.items():
        gain = log_px_gain(vae, density, x, noise, GAIN_SAMPLES)
        z = density.draw(key, len(reference.real))
        found[name] = {**gain.as_dict(), "images": _scores(vae, z, config, reference)}
    return found


def _log_normal(z: Tensor) -> Tensor:
    return log_standard_normal(z.double())


def _own_prior(vae: VAE, seed: int, reference: Reference) -> Tensor:
    # Draws of p(z), as many as there are real images.
    device, count = reference.real.device, len(reference.real)
    noise = streams.GENERATED_Z.key(seed, device=device)
    if isinstance(vae, RicherVAE):
        return vae.law().draw(noise, count)
    return normal(noise, 1, count, vae.architecture.latent)[0]


def _scores(vae: VAE, z: Tensor, config: TrainConfig, reference: Reference) -> Record:
    means = torch.sigmoid(vae.decode(z))
    if config.binarize == "none":
        return image_scores(means, reference)
    key = streams.GENERATED_PIXELS.key(config.seed, device=z.device)
    return image_scores((uniform(key, 1, *means.shape)[0] < means).float(), reference)
