"""Trains any VAE: your own module, data, likelihood, prior and optimiser."""

from .elbo import Elbo as Elbo
from .evaluation import Evaluation as Evaluation
from .log import to_csv as to_csv
from .log import to_tensorboard as to_tensorboard
from .posteriors import AutoregressiveFlow as AutoregressiveFlow
from .posteriors import FullGaussian as FullGaussian
from .priors import FlowPrior as FlowPrior
from .priors import MixturePrior as MixturePrior
from .priors import StandardNormal as StandardNormal
from .schedules import constant as constant
from .schedules import cosine as cosine
from .schedules import warmup as warmup
from .trainer import Trainer as Trainer
