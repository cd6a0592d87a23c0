"""vaez_fast: what distribution do a VAE's latents z really have?

`Trainer` and what goes with it (likelihoods, posteriors, priors, schedules, logs) are imported when
they are first used, because PyTorch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .moved import install

if TYPE_CHECKING:
    from .likelihoods import Bernoulli as Bernoulli
    from .likelihoods import Categorical as Categorical
    from .likelihoods import DiscretizedLogistic as DiscretizedLogistic
    from .likelihoods import Gaussian as Gaussian
    from .likelihoods import LogisticMixture as LogisticMixture
    from .likelihoods import NegativeBinomial as NegativeBinomial
    from .likelihoods import ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial
    from .trainer import AutoregressiveFlow as AutoregressiveFlow
    from .trainer import Evaluation as Evaluation
    from .trainer import FlowPrior as FlowPrior
    from .trainer import FullGaussian as FullGaussian
    from .trainer import MixturePrior as MixturePrior
    from .trainer import StandardNormal as StandardNormal
    from .trainer import Trainer as Trainer
    from .trainer import constant as constant
    from .trainer import cosine as cosine
    from .trainer import to_csv as to_csv
    from .trainer import to_tensorboard as to_tensorboard
    from .trainer import warmup as warmup

__version__ = "0.1.0"

LIKELIHOODS = (
    "Bernoulli",
    "Categorical",
    "DiscretizedLogistic",
    "Gaussian",
    "LogisticMixture",
    "NegativeBinomial",
    "ZeroInflatedNegativeBinomial",
)
TRAINER = (
    "AutoregressiveFlow",
    "Evaluation",
    "FlowPrior",
    "FullGaussian",
    "MixturePrior",
    "StandardNormal",
    "Trainer",
    "constant",
    "cosine",
    "to_csv",
    "to_tensorboard",
    "warmup",
)
__all__ = [*LIKELIHOODS, *TRAINER]


def __getattr__(name: str) -> Any:
    if name in LIKELIHOODS:
        return getattr(import_module(".likelihoods", __name__), name)
    if name in TRAINER:
        return getattr(import_module(".trainer", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


install()
